//! HTTP/2 for either end of a scripted connection, by the library that the daemon uses too: what is not said by it is
//! written by hand.

use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};

use super::inside::{self as tls, BOTH, Inside, Root};
use super::{DEADLINE, Origin, Proxy, Setup};

/// Resolves to loopback without being asked of any server (RFC 6761 section 6.3).
pub(crate) const HOST: &str = "api.localhost";
pub(crate) const ANY: &str = "protocol: http, rules: [{allow: {method: \"*\", path: \"/**\"}}]";
pub(crate) const READ_ONLY: &str = "protocol: rest, access: read-only";

/// A daemon between a client and an origin that both have the wish to speak these protocols.
pub(crate) struct Scene {
    pub(crate) proxy: Proxy,
    pub(crate) port: u16,
    pub(crate) root: Root,
    pub(crate) origin: Option<Origin>,
}

impl Scene {
    pub(crate) fn new(endpoint: &str) -> Self {
        Self::with(endpoint, |setup| setup, "")
    }

    pub(crate) fn with(endpoint: &str, how: impl FnOnce(Setup) -> Setup, tls: &str) -> Self {
        let (root, origin) = (Root::new(), Origin::new());
        let port = origin.port();
        let setup = how(Setup::default()).endpoints(&[format!("host: {HOST}, port: {port}, {endpoint}")]);
        let proxy = setup.tls(&format!("{}{tls}", root.entry())).start();
        Self { proxy, port, root, origin: Some(origin) }
    }

    /// Enters a tunnel and waits for who comes out of it at the origin.
    pub(crate) fn enter(&mut self, client: &[&str], origin: &[&str]) -> (Inside, Inside) {
        let words = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let mut serving = tls::server(&self.root.issue(&[HOST]), BOTH);
        Arc::get_mut(&mut serving).unwrap().alpn_protocols = words(origin);
        let mut asking = tls::client(&self.proxy.authority(), BOTH);
        asking.alpn_protocols = words(client);
        let accepted = tls::accepting(self.origin.take().unwrap(), &serving);
        let client = tls::enter(&self.proxy, self.authority(), HOST, &Arc::new(asking)).unwrap();
        let (origin, upstream) = accepted.join().unwrap();
        self.origin = Some(origin);
        (client, upstream.unwrap())
    }

    /// The same where both speak HTTP/2.
    pub(crate) fn join(&mut self) -> (TcpStream, TcpStream) {
        let (client, origin) = self.enter(&["h2", "http/1.1"], &["h2", "http/1.1"]);
        assert_eq!(client.alpn.as_deref(), Some(b"h2".as_slice()));
        assert_eq!(origin.alpn.as_deref(), Some(b"h2".as_slice()));
        (client.peer.into_stream(), origin.peer.into_stream())
    }

    pub(crate) fn authority(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> Request<()> {
        let uri = format!("https://{}{path}", self.authority());
        Request::builder().method(method).uri(uri).body(()).unwrap()
    }

    /// Runs a test with an origin that answers as [`answer`] does.
    pub(crate) fn run(&mut self, test: impl AsyncFnOnce(&Scene, SendRequest<Bytes>)) {
        let (client, origin) = self.join();
        within(async {
            tokio::spawn(serve(asynchronous(origin)));
            // Streams that stop are not to stop the others for want of the connection's window.
            let mut client_of = h2::client::Builder::new();
            client_of.initial_connection_window_size(8 << 20).initial_window_size(1 << 20);
            let (sender, connection) = client_of.handshake(asynchronous(client)).await.unwrap();
            tokio::spawn(connection);
            test(self, sender).await;
        });
    }
}

pub(crate) fn within(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("within the deadline") });
}

pub(crate) fn asynchronous(stream: TcpStream) -> tokio::net::TcpStream {
    stream.set_nonblocking(true).unwrap();
    tokio::net::TcpStream::from_std(stream).unwrap()
}

/// The origin.
pub(crate) async fn serve(stream: tokio::net::TcpStream) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, respond))) = connection.accept().await {
        if request.uri().path() == "/last" {
            connection.graceful_shutdown();
        }
        tokio::spawn(answer(request, respond));
    }
}

pub(crate) async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let ok = || Response::builder().header("x-via", parts.headers.get("via").cloned().unwrap());
    match parts.uri.path() {
        "/echo" => {
            let mut out = respond.send_response(ok().body(()).unwrap(), false).unwrap();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                write(&mut out, data).await;
            }
            let trailers = body.trailers().await.unwrap().unwrap_or_default();
            out.send_trailers(trailers).unwrap();
        }
        "/big" => {
            let mut out = respond.send_response(ok().body(()).unwrap(), false).unwrap();
            for _ in 0..2_048 {
                if !write(&mut out, Bytes::from(vec![7; 16 << 10])).await {
                    return;
                }
            }
            out.send_data(Bytes::new(), true).unwrap();
        }
        "/reset" => respond.send_reset(Reason::ENHANCE_YOUR_CALM),
        "/never" => {
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
            assert_eq!(reason, Reason::CANCEL);
        }
        "/early" => {
            let hints = Response::builder().status(103).header("link", "</x>").body(()).unwrap();
            respond.send_informational(hints).unwrap();
            respond.send_response(ok().body(()).unwrap(), true).unwrap();
        }
        _ => {
            let mut out = respond.send_response(ok().body(()).unwrap(), false).unwrap();
            out.send_data(Bytes::from(format!("{} {}", parts.method, parts.uri)), true).unwrap();
        }
    }
}

pub(crate) async fn write(out: &mut SendStream<Bytes>, mut data: Bytes) -> bool {
    while !data.is_empty() {
        out.reserve_capacity(data.len());
        if out.capacity() == 0 {
            match std::future::poll_fn(|cx| out.poll_capacity(cx)).await {
                Some(Ok(_)) => continue,
                _ => return false,
            }
        }
        let part = data.split_to(out.capacity().min(data.len()));
        if out.send_data(part, false).is_err() {
            return false;
        }
    }
    true
}

pub(crate) async fn ask(
    sender: &SendRequest<Bytes>,
    request: Request<()>,
) -> Result<Response<RecvStream>, h2::Error> {
    open(sender, request, true).await.0.await
}

pub(crate) async fn open(
    sender: &SendRequest<Bytes>,
    request: Request<()>,
    ends: bool,
) -> (ResponseFuture, SendStream<Bytes>) {
    sender.clone().ready().await.unwrap().send_request(request, ends).unwrap()
}

pub(crate) async fn text(body: &mut RecvStream) -> String {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    String::from_utf8(all).unwrap()
}
