use std::time::SystemTime;

use super::*;
use crate::destination::Host;
use crate::tls::{Interception, Oldest, Roots, Trust};

/// A connected pair: the origin's end is a client that trusts the sandbox' authority.
struct Pair {
    client: Records,
    server: Records,
}

fn interception() -> Interception {
    let trust = Trust::new(Roots::default(), Oldest::Tls12).unwrap();
    Interception::new(&trust, "a", None, SystemTime::now()).unwrap()
}

fn client_of(interception: &Interception) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(interception.authority().certificate().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

fn server_of(interception: &Interception) -> Records {
    let leaf = interception.authority().sign(&Host::parse(b"a.example").unwrap(), SystemTime::now()).unwrap();
    Records::server(Arc::clone(interception.server(false)), leaf.certified).unwrap()
}

/// Everything one end has to send.
fn sealed(from: &mut Records) -> Vec<u8> {
    let mut octets = Vec::new();
    while from.has_sealed() {
        from.send(&mut octets).unwrap();
    }
    octets
}

impl Pair {
    fn new(client: Arc<ClientConfig>, interception: &Interception) -> Self {
        let client = Records::client(client, "a.example".try_into().unwrap()).unwrap();
        let mut pair = Self { client, server: server_of(interception) };
        while pair.client.is_handshaking() || pair.server.is_handshaking() {
            assert_eq!(pair.server.open(&sealed(&mut pair.client), &mut []), Ok(0));
            assert_eq!(pair.client.open(&sealed(&mut pair.server), &mut []), Ok(0));
        }
        pair
    }
}

#[test]
fn bytes_pass_however_they_are_cut_and_however_little_room_there_is() {
    let interception = interception();
    for (step, room) in [(1, 1), (7, 3), (4096, 1 << 16), (1 << 20, 10), (1 << 20, 1 << 20)] {
        let mut pair = Pair::new(client_of(&interception), &interception);
        let sent: Vec<u8> = (0..50_000_u32).map(|n| n.to_be_bytes()[3] ^ n.to_be_bytes()[2]).collect();
        assert_eq!(pair.client.seal(&sent), sent.len());
        pair.client.close();
        let mut got = Vec::new();
        let mut into = vec![0; room];
        for part in sealed(&mut pair.client).chunks(step) {
            let mut given = pair.server.open(part, &mut into).unwrap();
            while given > 0 {
                got.extend_from_slice(&into[..given]);
                given = pair.server.open(&[], &mut into).unwrap();
            }
            assert!(!pair.server.has_plain());
        }
        assert!(got == sent, "cut by {step}, room for {room}");
        assert!(pair.server.has_ended());
    }
}

#[test]
fn what_is_sealed_and_not_sent_is_bounded() {
    let interception = interception();
    let mut pair = Pair::new(client_of(&interception), &interception);
    let much = vec![0; 1 << 20];
    assert!(pair.server.seal(&much) <= 64 << 10);
    assert_eq!(pair.server.seal(&much), 0);
}

#[test]
fn a_second_connection_resumes_the_first() {
    let interception = interception();
    let config = client_of(&interception);
    let mut first = Pair::new(Arc::clone(&config), &interception);
    // The tickets come behind the handshake.
    let _ = first.client.open(&sealed(&mut first.server), &mut []);
    assert!(!first.server.is_resumed());
    assert!(Pair::new(config, &interception).server.is_resumed());
}

#[test]
fn a_client_with_no_protocol_in_common_is_refused() {
    let interception = interception();
    let mut config = (*client_of(&interception)).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = Records::client(config.into(), "a.example".try_into().unwrap()).unwrap();
    let mut server = server_of(&interception);
    assert_eq!(server.open(&sealed(&mut client), &mut []), Err(Error::NoApplicationProtocol));
}

#[test]
fn http11_is_chosen_where_http2_is_offered_too() {
    let interception = interception();
    let mut config = (*client_of(&interception)).clone();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let pair = Pair::new(config.into(), &interception);
    assert_eq!(pair.client.connection.alpn_protocol(), Some(b"http/1.1".as_slice()));
}

#[test]
fn early_data_is_never_accepted() {
    let interception = interception();
    let mut config = (*client_of(&interception)).clone();
    config.enable_early_data = true;
    let config = Arc::new(config);
    let mut first = Pair::new(Arc::clone(&config), &interception);
    let _ = first.client.open(&sealed(&mut first.server), &mut []);
    let second = Records::client(config, "a.example".try_into().unwrap()).unwrap();
    let Connection::Client(mut second) = second.connection else { unreachable!() };
    assert!(second.early_data().is_none(), "the ticket must not offer it");
}

#[test]
fn octets_that_are_no_tls_are_an_error_and_leave_nothing_behind() {
    let interception = interception();
    let mut server = server_of(&interception);
    assert!(server.open(b"GET / HTTP/1.1\r\n\r\n", &mut [0; 64]).is_err());
    assert!(!server.has_plain());
    let mut server = server_of(&interception);
    // A handshake message of 16 MiB is announced.
    let mut record = vec![22, 3, 3, 0x40, 0];
    record.extend([1, 0xff, 0xff, 0xff]);
    record.resize(5 + 0x4000, 0);
    let error = (0..100).find_map(|_| server.open(&record, &mut []).err());
    assert!(error.is_some());
}
