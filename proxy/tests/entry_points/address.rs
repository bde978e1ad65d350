//! What holds for any address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice::address::{Class, Guard, Reach};

/// An address, as text or as 4 or 16 octets: nothing but public ones is dialled for a policy that names no others, and
/// no IPv6 spelling of an IPv4 address is better off than that address.
pub(crate) fn address(bytes: &[u8]) {
    let from_text = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<IpAddr>().ok());
    let from_v4 = bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets));
    let from_v6 = bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets));
    for ip in [from_text, from_v4, from_v6].into_iter().flatten() {
        check(ip);
        if let IpAddr::V4(v4) = ip {
            for disguise in disguises(v4) {
                check(disguise);
                assert!(Class::of(disguise) >= Class::of(ip), "{disguise} is better off than {ip}");
            }
        }
    }
}

fn check(ip: IpAddr) {
    let class = Class::of(ip);
    let dialled = Guard::default().check(ip, 80, |_, reach| reach == Reach::Public);
    assert_eq!(dialled.is_ok(), class == Class::Public, "{ip}");
    if let Ok(checked) = dialled {
        assert_eq!(Class::of(checked.address().ip()), Class::Public);
    }
    let named = Guard::default().check(ip, 80, |_, _| true);
    assert_eq!(named.is_ok(), class == Class::Public || class.is_nameable(), "{ip}");
    let own = Guard::new(&[], &[ip], &[]).check(ip, 80, |_, _| true);
    assert!(own.is_err(), "{ip}");
}

fn disguises(v4: Ipv4Addr) -> [IpAddr; 8] {
    let [a, b, c, d] = v4.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    [
        v4.to_ipv6_mapped().into(),
        Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low).into(),
        Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low).into(),
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(),
        Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0xf7f7, 0xf7f7).into(),
        Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low).into(),
        Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0x5efe, high, low).into(),
    ]
}
