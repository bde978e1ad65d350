//! What holds for any octets handed to the TLS modules.

use sluice::tls::client_hello::{HELLO_OCTETS_MAX, Hello, HelloReader};

/// A ClientHello: the same verdict however it arrives, and one within the bound.
pub(crate) fn client_hello(bytes: &[u8]) {
    let whole = HelloReader::default().read(bytes);
    let mut reader = HelloReader::default();
    let pieces = (0..=bytes.len()).map(|end| reader.read(&bytes[..end]));
    let in_pieces = pieces.into_iter().find(|verdict| *verdict != Hello::Incomplete);
    assert_eq!(in_pieces.unwrap_or(Hello::Incomplete), whole);
    assert!(whole != Hello::Incomplete || bytes.len() <= HELLO_OCTETS_MAX);
}

/// Octets of a client behind or within its handshake, in pieces of any size: nothing panics, and what is held stays
/// within what was given and one record.
pub(crate) fn records(bytes: &[u8]) {
    use std::sync::{Arc, OnceLock};
    use std::time::SystemTime;

    use sluice::destination::Host;
    use sluice::tls::{Interception, Oldest, Records, Roots, Trust};

    static MADE: OnceLock<(Interception, Arc<rustls::sign::CertifiedKey>)> = OnceLock::new();
    let (interception, leaf) = MADE.get_or_init(|| {
        let trust = Trust::new(Roots::default(), Oldest::Tls12).expect("a configuration");
        let made = Interception::new(&trust, "a", None, SystemTime::now()).expect("an authority");
        let host = Host::parse(b"a.example").expect("a name");
        let leaf = made.authority().sign(&host, SystemTime::now()).expect("a leaf");
        (made, leaf.certified)
    });
    let Some((&first, rest)) = bytes.split_first() else { return };
    let (piece, room) = (usize::from(first) + 1, usize::from(first & 15));
    let mut ends = [
        Records::server(Arc::clone(interception.server(false)), Arc::clone(leaf)).expect("a server"),
        Records::client(Arc::clone(interception.client(false)), "a.example".try_into().expect("a name"))
            .expect("a client"),
    ];
    let mut into = [0; 16];
    for end in &mut ends {
        for part in rest.chunks(piece) {
            match end.open(part, into.get_mut(..room).unwrap_or_default()) {
                Ok(given) => assert!(given <= room),
                Err(_) => break,
            }
            let mut sent = Vec::new();
            while end.has_sealed() && end.send(&mut sent).is_ok_and(|count| count > 0) {}
        }
    }
}
