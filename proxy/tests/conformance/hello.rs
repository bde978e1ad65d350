//! TLS ClientHellos (RFC 8446 section 4.1.2), as far as a proxy looks into them.

/// One record with a hello that names `server`, and with an `encrypted_client_hello` extension if `ech`.
pub(crate) fn client_hello(server: Option<&str>, ech: bool) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(server) = server {
        // server_name: a list of one entry of type host_name.
        let entry = [&[0][..], &long(server.as_bytes())].concat();
        extensions.extend(extension(0, &long(&entry)));
    }
    // supported_versions: TLS 1.3.
    extensions.extend(extension(43, &[2, 3, 4]));
    if ech {
        extensions.extend(extension(0xfe0d, &[0; 32]));
    }
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    // No session id, one cipher suite, no compression.
    hello.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    hello.extend(long(&extensions));
    let length = u32::try_from(hello.len()).unwrap().to_be_bytes();
    let message = [&[1][..], &length[1..], &hello].concat();
    record(22, &message)
}

/// A TLS record.
pub(crate) fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &long(payload)].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &long(content)].concat()
}

/// With its length in two octets before it.
fn long(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
}
