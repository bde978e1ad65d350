//! NFLOG messages: whole, cut, and made of anything.

use std::net::Ipv6Addr;

use proptest::prelude::*;
use sluice_bypass::{Icmp, Line, Malformed, Proto, nflog};

const PREFIX: &[u8] = b"sluice[box-1:0123456789abcdef] \0";

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A message as the kernel orders it: packet header, prefix, device, mark, payload, uid, gid, number.
fn message(prefix: &[u8], packet: &[u8]) -> Vec<u8> {
    let attributes = [
        attribute(1, &[0x08, 0, 3, 0]),
        attribute(10, prefix),
        attribute(5, &7_u32.to_be_bytes()),
        attribute(2, &42_u32.to_be_bytes()),
        attribute(9, packet),
        attribute(11, &1000_u32.to_be_bytes()),
        attribute(14, &1001_u32.to_be_bytes()),
        attribute(12, &99_u32.to_be_bytes()),
    ]
    .concat();
    let mut bytes = (20 + attributes.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(0x0400_u16.to_ne_bytes());
    bytes.extend([0; 14]);
    bytes.extend(attributes);
    bytes
}

fn ipv4(protocol: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x46, 0, 0, 24 + body.len() as u8, 0, 1];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 200, 0, 1, 9, 9, 9, 9]);
    packet.extend([1, 1, 1, 0]); // IP options
    packet.extend(body);
    packet
}

fn ipv6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, body.len() as u8, next, 64];
    packet.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets());
    packet.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).octets());
    packet.extend(body);
    packet
}

/// SPT 1111, DPT 80, SYN.
const TCP: [u8; 20] = [4, 87, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0];

#[test]
fn every_field_of_a_message_is_read() {
    let message = message(PREFIX, &ipv4(6, 0, &TCP));
    let (seq, Line::Attempt(attempt)) = nflog::parse(&message, 5) else { panic!("no attempt") };
    assert_eq!((seq, attempt.seq, attempt.time_us), (Some(99), 99, 5));
    assert_eq!((attempt.tag.name, attempt.tag.token), ("box-1", 0x0123_4567_89ab_cdef));
    assert_eq!((attempt.uid, attempt.gid, attempt.mark), (Some(1000), Some(1001), Some(42)));
    assert_eq!(attempt.out_interface, sluice_bypass::Interface::Index(7));
    assert_eq!(
        (attempt.src.to_string().as_str(), attempt.dst.to_string().as_str()),
        ("10.200.0.1", "9.9.9.9")
    );
    assert_eq!((attempt.proto, attempt.src_port, attempt.dst_port), (Proto::Tcp, Some(1111), Some(80)));
    assert!(attempt.tcp.opens_connection() && !attempt.by_kernel());
}

#[test]
fn extension_headers_are_followed_to_the_transport() {
    let hop_and_destination = [&[60, 0, 1, 4, 0, 0, 0, 0], &[6, 0, 1, 4, 0, 0, 0, 0], &TCP[..]].concat();
    let authentication = [&[6, 4][..], &[0; 22], &TCP].concat();
    let first_fragment = [&[6, 0, 0, 1, 0, 0, 0, 9], &TCP[..]].concat();
    for (next, body) in
        [(6, TCP.to_vec()), (0, hop_and_destination), (51, authentication), (44, first_fragment)]
    {
        let message = message(PREFIX, &ipv6(next, &body));
        let (_, Line::Attempt(attempt)) = nflog::parse(&message, 0) else { panic!("next header {next}") };
        assert_eq!((attempt.proto, attempt.dst_port), (Proto::Tcp, Some(80)), "next header {next}");
        assert!(!attempt.later_fragment);
    }
}

#[test]
fn later_fragments_and_cut_headers_have_no_ports() {
    let later_v6 = ipv6(44, &[17, 0, 5, 200, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8]);
    for (packet, proto, fragment) in [
        (ipv4(17, 0x00b9, &TCP), Proto::Udp, true),
        (later_v6, Proto::Udp, true),
        (ipv4(6, 0x2000, &TCP[..3]), Proto::Tcp, false),
        (ipv6(0, &[6]), Proto::Unknown, false),
        (ipv6(50, &[0; 8]), Proto::Other(50), false),
    ] {
        let message = message(PREFIX, &packet);
        let (_, Line::Attempt(attempt)) = nflog::parse(&message, 0) else { panic!("{packet:?}") };
        assert_eq!((attempt.proto, attempt.dst_port), (proto, None));
        assert_eq!(attempt.later_fragment, fragment);
    }
}

#[test]
fn icmp_has_a_type_and_no_ports() {
    let message = message(PREFIX, &ipv6(58, &[128, 0, 0, 0, 0, 7, 0, 1]));
    let (_, Line::Attempt(attempt)) = nflog::parse(&message, 0) else { panic!("no attempt") };
    assert_eq!(attempt.icmp, Some(Icmp { kind: 128, code: 0, id: Some(7) }));
    assert_eq!(attempt.dst_port, None);
}

#[test]
fn what_is_not_ours_or_not_whole_is_told_apart() {
    let packet = ipv4(6, 0, &TCP);
    assert_eq!(nflog::parse(&message(b"other: \0", &packet), 0).1, Line::Foreign);
    assert_eq!(nflog::parse(&[0; 64], 0).1, Line::Foreign);
    for (prefix, packet, why) in [
        (&b"sluice[box-1:0123456789abcdef] more\0"[..], &packet[..], Malformed::Tag),
        (b"sluice[box-1\0", &packet, Malformed::Tag),
        (PREFIX, &[], Malformed::Truncated),
        (PREFIX, &packet[..19], Malformed::Truncated),
        (PREFIX, &[0x15; 40], Malformed::Version),
    ] {
        assert_eq!(nflog::parse(&message(prefix, packet), 0).1, Line::Malformed(why));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_the_parsers_panic(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..10),
        cut in any::<proptest::sample::Index>(),
        v6 in any::<bool>(),
    ) {
        let packet = if v6 { ipv6(0, &[44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 9]) } else { ipv4(6, 0, &TCP) };
        let mut datagram = message(PREFIX, &packet);
        let second = datagram.clone();
        datagram.extend(second);
        for (at, byte) in edits {
            let at = at.index(datagram.len());
            datagram[at] = byte;
        }
        datagram.truncate(cut.index(datagram.len() + 1));
        let bytes: usize = nflog::messages(&datagram).map(|message| { let _ = nflog::parse(message, 0); message.len() }).sum();
        prop_assert!(bytes <= datagram.len());
    }
}
