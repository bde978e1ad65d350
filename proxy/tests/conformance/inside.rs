//! TLS for either end of a scripted connection: a [`Peer`] says and hears what is inside.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};
use socket2::SockRef;
use tempfile::TempDir;

use super::{DEADLINE, Origin, Peer, Proxy};

/// All that is spoken.
pub(crate) const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
pub(crate) const ONLY_12: &[&SupportedProtocolVersion] = &[&TLS12];

/// A certificate authority of the test's, in a file for `tls.upstream_ca`.
pub(crate) struct Root {
    issuer: Issuer<'static, KeyPair>,
    dir: TempDir,
}

/// A certificate and its key.
pub(crate) type Identity = (CertificateDer<'static>, PrivateKeyDer<'static>);

impl Root {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, format!("test root {:?}", SystemTime::now()));
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("root.pem"), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), dir }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    /// As the configuration wants it.
    pub(crate) fn entry(&self) -> String {
        format!("upstream_ca: [{}]", self.path().display())
    }

    /// A good certificate.
    pub(crate) fn issue(&self, names: &[&str]) -> Identity {
        self.issue_until(names, SystemTime::now() + Duration::from_secs(86_400))
    }

    pub(crate) fn issue_until(&self, names: &[&str], until: SystemTime) -> Identity {
        self.issue_with(names, |params| params.not_after = until.into())
    }

    /// A certificate that differs from a good one in what `change` does.
    pub(crate) fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = (SystemTime::now() + Duration::from_secs(86_400)).into();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), pkcs8(&key))
    }

    /// An authority that this one has issued a certificate to.
    pub(crate) fn below(&self) -> Self {
        self.issued(IsCa::Ca(BasicConstraints::Unconstrained)).0
    }

    /// The chain and the key of a certificate whose issuer is a leaf of this authority's.
    pub(crate) fn issue_by_leaf(
        &self,
        names: &[&str],
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let (leaf, its) = self.issued(IsCa::ExplicitNoCa);
        let (certificate, key) = leaf.issue(names);
        (vec![certificate, its], key)
    }

    fn issued(&self, is_ca: IsCa) -> (Self, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = is_ca;
        params.distinguished_name.push(rcgen::DnType::CommonName, "an issuer between");
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (Self { issuer: Issuer::new(params, key), dir: tempfile::tempdir().unwrap() }, certificate)
    }

    /// Its own certificate.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path()).unwrap()
    }
}

/// A certificate that vouches for itself.
pub(crate) fn self_signed(name: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.into()]).unwrap().self_signed(&key).unwrap();
    (certificate.der().clone(), pkcs8(&key))
}

fn pkcs8(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// How an origin speaks TLS.
pub(crate) fn server(
    identity: &Identity,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    Arc::new(server_of(vec![identity.0.clone()], identity.1.clone_key(), versions))
}

/// The same with a whole chain.
pub(crate) fn server_of(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth();
    config.with_single_cert(chain, key).unwrap()
}

/// How a client speaks TLS that trusts the authorities in `ca`.
pub(crate) fn client(ca: &Path, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_protocol_versions(versions).unwrap().with_root_certificates(roots);
    config.with_no_client_auth()
}

/// One end of a TLS connection.
pub(crate) struct Inside {
    /// Says and hears what is inside.
    pub(crate) peer: Peer,
    /// Whether a session was resumed.
    pub(crate) resumed: bool,
    /// The name the client asked for; on the origin's side.
    pub(crate) sni: Option<String>,
    /// The protocol that was agreed on.
    pub(crate) alpn: Option<Vec<u8>>,
    /// Whether data could go before the handshake had ended.
    pub(crate) early: bool,
    /// The certificate that was shown; on the client's side.
    pub(crate) shown: Option<CertificateDer<'static>>,
}

/// Opens a tunnel to `authority` and shakes hands with whoever answers for `name`.
pub(crate) fn enter(
    proxy: &Proxy,
    authority: impl std::fmt::Display,
    name: &str,
    config: &Arc<ClientConfig>,
) -> std::io::Result<Inside> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    shake(proxy.tunnel(authority).into_stream(), connection.into())
}

/// Shakes hands with whoever dials the origin next.
pub(crate) fn accept(origin: &Origin, config: &Arc<ServerConfig>) -> std::io::Result<Inside> {
    let connection = ServerConnection::new(Arc::clone(config)).unwrap();
    shake(origin.accept_speaking().into_stream(), connection.into())
}

/// The same while the test goes on: the proxy speaks to the origin only when the client has asked for something.
pub(crate) fn accepting(
    origin: Origin,
    config: &Arc<ServerConfig>,
) -> std::thread::JoinHandle<(Origin, std::io::Result<Inside>)> {
    let config = Arc::clone(config);
    std::thread::spawn(move || {
        let accepted = accept(&origin, &config);
        (origin, accepted)
    })
}

fn shake(mut stream: TcpStream, mut connection: Connection) -> std::io::Result<Inside> {
    let early = match &mut connection {
        Connection::Client(client) => client.early_data().is_some(),
        Connection::Server(_) => false,
    };
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    let (sni, early) = match &mut connection {
        Connection::Server(server) => {
            let early = server.early_data().is_some();
            (server.server_name().map(Into::into), early)
        }
        Connection::Client(_) => (None, early),
    };
    let shown =
        connection.peer_certificates().and_then(|chain| chain.first()).map(|c| c.clone().into_owned());
    let alpn = connection.alpn_protocol().map(Into::into);
    let (near, far) = pair();
    std::thread::spawn(move || carry(stream, connection, far));
    Ok(Inside { peer: Peer::new(near), resumed, sni, alpn, early, shown })
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// Carries bytes between the inside and the wire. A close without TLS' last word becomes a reset inside.
fn carry(mut wire: TcpStream, mut tls: Connection, mut inside: TcpStream) {
    wire.set_nonblocking(true).unwrap();
    inside.set_write_timeout(Some(DEADLINE)).unwrap();
    let (mut wire_open, mut inside_open) = (true, true);
    let mut buffer = vec![0; 64 << 10];
    let mut cut = false;
    while wire_open || inside_open {
        // What came with the end of the handshake is there already.
        loop {
            match tls.reader().read(&mut buffer) {
                Ok(0) if wire_open => {
                    wire_open = false;
                    let _ = inside.shutdown(Shutdown::Write);
                }
                Ok(count) if count > 0 => {
                    if inside.write_all(&buffer[..count]).is_err() {
                        return;
                    }
                }
                _ => break,
            }
        }
        if cut && wire_open {
            let _ = SockRef::from(&inside).set_linger(Some(Duration::ZERO));
            return;
        }
        let wait = |on: bool, flags: PollFlags| if on { flags } else { PollFlags::empty() };
        let out = wait(tls.wants_write(), PollFlags::POLLOUT);
        let mut fds = [
            PollFd::new(wire.as_fd(), wait(wire_open, PollFlags::POLLIN) | out),
            PollFd::new(inside.as_fd(), wait(inside_open && !tls.wants_write(), PollFlags::POLLIN)),
        ];
        if poll(&mut fds, PollTimeout::try_from(DEADLINE).unwrap()) != Ok(2)
            && fds.iter().all(|fd| fd.revents().is_none_or(|events| events.is_empty()))
        {
            return;
        }
        let readable = |fd: &PollFd<'_>| {
            fd.revents().is_some_and(|events| {
                events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)
            })
        };
        let (from_wire, from_inside) = (readable(&fds[0]) && wire_open, readable(&fds[1]) && inside_open);
        if from_wire {
            cut = match tls.read_tls(&mut wire) {
                Ok(0) => true,
                Ok(_) => tls.process_new_packets().is_err(),
                Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Other),
            };
        }
        if from_inside {
            match inside.read(&mut buffer) {
                Ok(0) => {
                    inside_open = false;
                    tls.send_close_notify();
                }
                Ok(count) => tls.writer().write_all(&buffer[..count]).unwrap(),
                // Reset: the wire is cut without a last word.
                Err(_) => return,
            }
        }
        while tls.wants_write() {
            match tls.write_tls(&mut wire) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    inside_open = false;
                    break;
                }
            }
        }
        if !inside_open && !tls.wants_write() {
            let _ = wire.shutdown(Shutdown::Write);
        }
    }
}
