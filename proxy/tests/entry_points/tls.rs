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
