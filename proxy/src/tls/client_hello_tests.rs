//! Hellos, octet for octet, in whatever records and segments.

use proptest::prelude::*;

use super::*;

fn vector<const N: usize>(prefix_octets: usize, parts: [&[u8]; N]) -> Vec<u8> {
    let inner = parts.concat();
    let length = (inner.len() as u32).to_be_bytes();
    [length.get(4 - prefix_octets..).unwrap_or_default(), &inner].concat()
}

fn extension(kind: u16, parts: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector(2, [parts])].concat()
}

fn server_name(name: &str) -> Vec<u8> {
    extension(EXTENSION_SERVER_NAME, &vector(2, [b"\0", &vector(2, [name.as_bytes()])]))
}

/// A handshake message with these extensions.
fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let extensions = vector(2, [&extensions.concat()]);
    let session_id = vector(1, [&[7; 32]]);
    let hello = [&[3, 3][..], &[9; 32], &session_id, b"\x00\x02\x13\x01", b"\x01\x00", &extensions].concat();
    [&[CLIENT_HELLO][..], &vector(3, [&hello])].concat()
}

/// The message in records of at most so many octets.
fn records(message: &[u8], octets_max: usize) -> Vec<u8> {
    message
        .chunks(octets_max)
        .flat_map(|part| [&[HANDSHAKE, 3, 1][..], &vector(2, [part])].concat())
        .collect()
}

fn read(bytes: &[u8]) -> Hello {
    HelloReader::default().read(bytes)
}

fn hello(extensions: &[Vec<u8>]) -> Hello {
    read(&records(&message(extensions), 1 << 14))
}

fn sni_of(hello: &Hello) -> Option<&Sni> {
    match hello {
        Hello::Read(hello) => Some(&hello.sni),
        _ => None,
    }
}

fn host(name: &str) -> Host {
    Host::parse(name.as_bytes()).unwrap()
}

#[test]
fn a_hello_names_its_host() {
    let grease = extension(0x0a0a, b"\0");
    let alpn = extension(EXTENSION_ALPN, &vector(2, [b"\x02h2\x08http/1.1"]));
    let ech = extension(EXTENSION_ECH, b"anything");
    let expected = ClientHello { sni: Sni::Name(host("a.example")), ech: true, offers_h2: true };
    assert_eq!(hello(&[grease, server_name("A.example"), alpn, ech]), Hello::Read(expected));
    let expected = ClientHello { sni: Sni::Absent, ech: false, offers_h2: false };
    assert_eq!(hello(&[]), Hello::Read(expected));
}

#[test]
fn a_hello_of_old_may_have_no_extensions_field() {
    let old = [&[3, 1][..], &[9; 32], b"\x00", b"\x00\x02\x00\x2f", b"\x01\x00"].concat();
    let message = [&[CLIENT_HELLO][..], &vector(3, [&old])].concat();
    assert_eq!(sni_of(&read(&records(&message, 100))), Some(&Sni::Absent));
}

#[test]
fn what_names_no_host_is_told_from_naming_none() {
    let rows = [
        extension(EXTENSION_SERVER_NAME, b""),
        server_name("127.0.0.1"),
        server_name("a b"),
        server_name(""),
        server_name("127.1"),
        server_name("[::1]"),
        server_name(&"a".repeat(300)),
        extension(EXTENSION_SERVER_NAME, &vector(2, [b"\x01", &vector(2, [b"a"])])),
        extension(EXTENSION_SERVER_NAME, &vector(2, [b"\0\0\x01a", b"\0\0\x01b"])),
    ];
    for row in rows {
        assert_eq!(sni_of(&hello(std::slice::from_ref(&row))), Some(&Sni::Invalid), "{}", row.escape_ascii());
    }
}

#[test]
fn hellos_that_contradict_themselves_are_malformed() {
    let name = server_name("a.example");
    assert_eq!(hello(&[name.clone(), name.clone()]), Hello::Malformed);
    assert_eq!(hello(&[extension(EXTENSION_SERVER_NAME, b"\x00\x09\x00\x00\x01a")]), Hello::Malformed);
    assert_eq!(hello(&[extension(EXTENSION_ALPN, b"\x00\x03\x05h2")]), Hello::Malformed);
    let whole = message(&[name]);
    // Every length in it too long or too short for what surrounds it.
    for at in [3, 38, 72, 75, 78, 82, 84, 87] {
        for by in [1, 0xff] {
            let mut bent = whole.clone();
            if let Some(octet) = bent.get_mut(at) {
                *octet = octet.wrapping_add(by);
            }
            let verdict = read(&records(&bent, 1 << 14));
            assert_ne!(sni_of(&verdict), Some(&Sni::Name(host("a.example"))), "{at} {by} {verdict:?}");
        }
    }
}

#[test]
fn other_protocols_are_no_tls() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"SSH-2.0-x",
        b"\x15\x04",
        b"\x16\x02\x00",
        b"\x80\x2e\x02",
        b"\x80\x2e\x01\x00",
    ] {
        assert_eq!(read(bytes), Hello::NotTls, "{}", bytes.escape_ascii());
    }
    for bytes in [
        &b""[..],
        b"\x16",
        b"\x16\x03",
        b"\x16\x03\x01",
        b"\x16\x03\x01\x00\x05",
        b"\x16\x03\x01\x00\x05\x01",
        b"\x15",
        b"\x80\x2e\x01",
    ] {
        assert_eq!(read(bytes), Hello::Incomplete, "{}", bytes.escape_ascii());
    }
}

/// Whatever a server could take for the start of TLS is held against the name.
#[test]
fn tls_in_a_form_no_client_uses_is_tls_all_the_same() {
    let whole = records(&message(&[server_name("a.example")]), 1 << 14);
    for minor in 0..=255 {
        let mut bytes = whole.clone();
        bytes.splice(2..3, [minor]);
        assert_eq!(sni_of(&read(&bytes)), Some(&Sni::Name(host("a.example"))), "{minor}");
    }
    let warning = b"\x15\x03\x01\x00\x02\x01\x5a";
    assert_eq!(read(&[&warning[..], &whole].concat()), Hello::Malformed);
    assert_eq!(read(b"\x14\x03"), Hello::Malformed);
    assert_eq!(read(b"\x80\x2e\x01\x03\x01\x00\x15"), Hello::Malformed);
}

#[test]
fn records_that_no_client_sends_are_malformed() {
    let rows: &[&[u8]] = &[
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x05\x02",
        b"\x16\x03\x01\x00\x01\x01\x17\x03\x01\x00\x01\x00",
        b"\x16\x03\x01\x00\x04\x01\x00\x40\x01",
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    ];
    for bytes in rows {
        assert_eq!(read(bytes), Hello::Malformed, "{}", bytes.escape_ascii());
    }
    let whole = message(&[server_name("a.example")]);
    assert_eq!(read(&records(&whole, 1)), Hello::Malformed, "more records than the bound");
}

#[test]
fn a_hello_that_does_not_end_is_given_up() {
    let padding = extension(21, &vec![0; 15_000]);
    assert!(matches!(hello(std::slice::from_ref(&padding)), Hello::Read(_)));
    assert_eq!(hello(&[padding.clone(), padding]), Hello::Malformed);
    let mut endless = b"\x16\x03\x01\x3f\xff\x01\x00\x3f\xff".to_vec();
    endless.resize(HELLO_OCTETS_MAX + 1, 0);
    assert!(!matches!(read(&endless), Hello::Incomplete));
}

#[test]
fn a_hello_is_compared_with_the_host_that_was_judged() {
    let compare =
        |sni: Sni, ech, asked: &str| ClientHello { sni, ech, offers_h2: false }.compare(&host(asked));
    let named = |name: &str| Sni::Name(host(name));
    assert_eq!(compare(named("a.example"), false, "A.EXAMPLE."), SniMatch::Same);
    assert_eq!(compare(named("a.example"), true, "a.example"), SniMatch::Same);
    assert_eq!(compare(named("b.example"), false, "a.example"), SniMatch::Other);
    assert_eq!(compare(named("b.example"), true, "a.example"), SniMatch::Encrypted);
    assert_eq!(compare(Sni::Absent, false, "a.example"), SniMatch::Missing);
    assert_eq!(compare(Sni::Absent, true, "a.example"), SniMatch::Encrypted);
    assert_eq!(compare(Sni::Invalid, false, "a.example"), SniMatch::Other);
    assert_eq!(compare(Sni::Absent, false, "10.0.0.1"), SniMatch::Same);
    assert_eq!(compare(named("a.example"), false, "10.0.0.1"), SniMatch::Other);
}

fn hellos() -> impl Strategy<Value = Vec<u8>> {
    let extensions = prop::sample::subsequence(
        vec![
            server_name("a.example"),
            server_name("b"),
            extension(EXTENSION_ALPN, &vector(2, [b"\x02h2"])),
            extension(EXTENSION_ECH, b"x"),
            extension(0x0a0a, b""),
            extension(21, &[0; 300]),
        ],
        0..6,
    );
    let bends = prop::collection::vec((0..600_usize, any::<u8>()), 0..2);
    (extensions, 1..400_usize, bends).prop_map(|(extensions, octets_max, bends)| {
        let mut bytes = records(&message(&extensions), octets_max);
        for (at, octet) in bends {
            bytes.get_mut(at).into_iter().for_each(|place| *place = octet);
        }
        bytes
    })
}

proptest! {
    #[test]
    fn it_makes_no_difference_how_a_hello_arrives(bytes in hellos()) {
        let mut reader = HelloReader::default();
        let pieces = (0..=bytes.len()).map(|end| reader.read(bytes.get(..end).unwrap_or(&bytes)));
        let in_pieces = pieces.into_iter().find(|verdict| *verdict != Hello::Incomplete);
        prop_assert_eq!(in_pieces.unwrap_or(Hello::Incomplete), read(&bytes));
    }
}
