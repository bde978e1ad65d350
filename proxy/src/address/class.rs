//! What kind of address an address is, after the IANA special-purpose registries (RFC 6890 and successors) and the
//! metadata services of the clouds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The class of an address. Ordered: of two readings of one address the greater, that is worse, counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Globally reachable.
    Public,
    /// Documentation and benchmark networks: TEST-NET-1 to 3, 198.18.0.0/15, 2001:db8::/32, 3fff::/20, 2001:2::/48.
    TestNet,
    /// RFC 1918, and the local NAT64 prefix 64:ff9b:1::/48.
    Private,
    /// Carrier-grade NAT, 100.64.0.0/10.
    Cgnat,
    /// fc00::/7.
    UniqueLocal,
    /// Set aside by IANA for anything else, or for nothing yet.
    Reserved,
    /// Many receivers.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// 0.0.0.0/8 and `::`: this host.
    Unspecified,
    /// An address of this host's own interfaces; the guard is told which.
    Own,
    /// 169.254.0.0/16 and fe80::/10.
    LinkLocal,
    /// 127.0.0.0/8 and `::1`.
    Loopback,
    /// Where clouds hand out credentials.
    Metadata,
}

impl Class {
    /// Of this address. Where it carries an IPv4 address, in whatever form, the worst reading counts.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    /// Whether a policy can allow it by naming it. All others but public ones take an operator.
    pub fn is_nameable(self) -> bool {
        matches!(self, Self::TestNet | Self::Private | Self::Cgnat | Self::UniqueLocal)
    }

    /// The stable word in events and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Public => "address_public",
            Self::TestNet => "address_test_net",
            Self::Private => "address_private",
            Self::Cgnat => "address_cgnat",
            Self::UniqueLocal => "address_unique_local",
            Self::Reserved => "address_reserved",
            Self::Multicast => "address_multicast",
            Self::Broadcast => "address_broadcast",
            Self::Unspecified => "address_unspecified",
            Self::Own => "address_own",
            Self::LinkLocal => "address_link_local",
            Self::Loopback => "address_loopback",
            Self::Metadata => "address_metadata",
        }
    }

    /// The phrase with which a client is refused.
    pub fn refusal(self) -> &'static str {
        match self {
            Self::Public => "Denied: an address that the policy does not name",
            Self::TestNet => "Denied: a documentation address that the policy does not name",
            Self::Private => "Denied: a private address that the policy does not name",
            Self::Cgnat => "Denied: a carrier-grade NAT address that the policy does not name",
            Self::UniqueLocal => "Denied: a unique local address that the policy does not name",
            Self::Reserved => "Denied: a reserved address",
            Self::Multicast => "Denied: a multicast address",
            Self::Broadcast => "Denied: the broadcast address",
            Self::Unspecified => "Denied: the unspecified address",
            Self::Own => "Denied: an address of the proxy's own host",
            Self::LinkLocal => "Denied: a link-local address",
            Self::Loopback => "Denied: a loopback address",
            Self::Metadata => "Denied: a cloud metadata address",
        }
    }

    #[allow(clippy::match_same_arms)] // one arm a registry row
    fn of_v4(ip: Ipv4Addr) -> Self {
        match ip.octets() {
            // AWS, GCP, Azure and most others; ECS tasks; EKS pods; Alibaba; Oracle; Azure's host agent.
            [169, 254, 169, 254] | [169, 254, 170, 2 | 23] | [100, 100, 100, 200] => Self::Metadata,
            [192, 0, 0, 192] | [168, 63, 129, 16] => Self::Metadata,
            [0, ..] => Self::Unspecified,
            [127, ..] => Self::Loopback,
            [169, 254, ..] => Self::LinkLocal,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            [100, 64..=127, ..] => Self::Cgnat,
            [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [198, 18 | 19, ..] => Self::TestNet,
            // IETF protocol assignments, and the relays 6to4 had.
            [192, 0, 0, _] | [192, 88, 99, _] => Self::Reserved,
            [224..=239, ..] => Self::Multicast,
            [255, 255, 255, 255] => Self::Broadcast,
            [240..=255, ..] => Self::Reserved,
            _ => Self::Public,
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        let embedded = embedded_v4(ip).into_iter().flatten().map(Self::of_v4);
        embedded.fold(Self::of_v6_prefix(ip), Self::max)
    }

    /// By prefix alone. Where all of a prefix carries IPv4 the embedded address decides: [`Class::Public`] is the least.
    #[allow(clippy::match_same_arms)] // one arm a registry row
    fn of_v6_prefix(ip: Ipv6Addr) -> Self {
        match ip.segments() {
            // AWS, GCP, Scaleway, Oracle and Alibaba.
            [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254] | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254] => Self::Metadata,
            [0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x42] | [0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe] => {
                Self::Metadata
            }
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            // IPv4-mapped, IPv4-translated (RFC 2765), NAT64.
            [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
                Self::Public
            }
            [0x64, 0xff9b, 1, ..] => Self::Private,
            // Teredo; 6to4.
            [0x2001, 0, ..] | [0x2002, ..] => Self::Public,
            [0x2001, 2, 0, ..] | [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Self::TestNet,
            // Of the IETF protocol assignments only these are reachable: anycast, AMT, AS112, ORCHIDv2, DRIP.
            [0x2001, 1, 0, 0, 0, 0, 0, 1..=3] | [0x2001, 3, ..] | [0x2001, 4, 0x112, ..] => Self::Public,
            [0x2001, 0x20..=0x3f, ..] => Self::Public,
            [0x2001, 0..=0x1ff, ..] => Self::Reserved,
            [0xfc00..=0xfdff, ..] => Self::UniqueLocal,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0xff00..=0xffff, ..] => Self::Multicast,
            // All that is allocated for unicast.
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }
}

/// Every IPv4 address that this address can be read as carrying.
pub(super) fn embedded_v4(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 4] {
    let octets = ip.octets();
    let at = |places: [usize; 4]| {
        let read = places.map(|place| octets.get(place).copied().unwrap_or(0));
        Ipv4Addr::from(read)
    };
    let low = at([12, 13, 14, 15]);
    let one = |v4| [Some(v4), None, None, None];
    match ip.segments() {
        // `::` and `::1` are what they are.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => [None; 4],
        // IPv4-compatible, -mapped, -translated; NAT64.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => {
            one(low)
        }
        // Local NAT64 (RFC 8215): the operator chose where in it the address lies (RFC 6052 section 2.2).
        [0x64, 0xff9b, 1, ..] => {
            // A reading that starts with 0 is one at the wrong place.
            let placed = [at([6, 7, 9, 10]), at([7, 9, 10, 11]), at([9, 10, 11, 12]), low];
            placed.map(|v4| Some(v4).filter(|v4| !matches!(v4.octets(), [0, ..])))
        }
        // Teredo (RFC 4380): the server, and the client with its bits inverted.
        [0x2001, 0, ..] => [Some(at([4, 5, 6, 7])), Some(Ipv4Addr::from(!u32::from(low))), None, None],
        // 6to4 (RFC 3056), which may hold an ISATAP identifier as any prefix may.
        [0x2002, _, _, _, 0 | 0x0200, 0x5efe, ..] => [Some(at([2, 3, 4, 5])), Some(low), None, None],
        [0x2002, ..] => one(at([2, 3, 4, 5])),
        // ISATAP (RFC 5214).
        [_, _, _, _, 0 | 0x0200, 0x5efe, ..] => one(low),
        _ => [None; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(ip: &str) -> Class {
        Class::of(ip.parse().unwrap())
    }

    #[test]
    fn every_registry_row_at_its_first_and_last_address() {
        use Class::{
            Broadcast, Cgnat, LinkLocal, Loopback, Multicast, Private, Public, Reserved, TestNet,
            UniqueLocal, Unspecified,
        };
        let rows = [
            ("0.0.0.0", "0.255.255.255", Unspecified),
            ("1.0.0.0", "9.255.255.255", Public),
            ("10.0.0.0", "10.255.255.255", Private),
            ("11.0.0.0", "100.63.255.255", Public),
            ("100.64.0.0", "100.127.255.255", Cgnat),
            ("100.128.0.0", "126.255.255.255", Public),
            ("127.0.0.0", "127.255.255.255", Loopback),
            ("169.254.0.0", "169.254.255.255", LinkLocal),
            ("172.15.255.255", "172.32.0.0", Public),
            ("172.16.0.0", "172.31.255.255", Private),
            ("192.0.0.0", "192.0.0.255", Reserved),
            ("192.0.2.0", "192.0.2.255", TestNet),
            ("192.88.99.0", "192.88.99.255", Reserved),
            ("192.168.0.0", "192.168.255.255", Private),
            ("198.18.0.0", "198.19.255.255", TestNet),
            ("198.51.100.0", "198.51.100.255", TestNet),
            ("203.0.113.0", "203.0.113.255", TestNet),
            ("224.0.0.0", "239.255.255.255", Multicast),
            ("240.0.0.0", "255.255.255.254", Reserved),
            ("255.255.255.255", "255.255.255.255", Broadcast),
            ("::", "::", Unspecified),
            ("::1", "::1", Loopback),
            ("100::", "100::ffff:ffff:ffff:ffff", Reserved),
            ("100:0:0:1::", "100:0:0:1:ffff::", Reserved),
            ("2000::", "2000:ffff::", Public),
            ("2001:1::1", "2001:1::3", Public),
            ("2001:2::", "2001:2:0:ffff::", TestNet),
            ("2001:10::", "2001:1f:ffff::", Reserved),
            ("2001:20::", "2001:3f:ffff::", Public),
            ("2001:200::", "2001:db7:ffff::", Public),
            ("2001:db8::", "2001:db8:ffff::", TestNet),
            ("2606:4700:4700::1111", "2a00::1", Public),
            ("3fff::", "3fff:fff:ffff::", TestNet),
            ("3fff:1000::", "3fff:ffff::", Public),
            ("4000::", "5f00::1", Reserved),
            ("fc00::", "fdff:ffff::", UniqueLocal),
            ("fe80::", "febf:ffff::", LinkLocal),
            ("fec0::", "feff:ffff::", Reserved),
            ("ff00::", "ffff:ffff::", Multicast),
        ];
        for (first, last, expected) in rows {
            assert_eq!(class(first), expected, "{first}");
            assert_eq!(class(last), expected, "{last}");
        }
    }

    #[test]
    fn metadata_services_are_known_in_every_form() {
        let rows = [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "fd00:ec2::254",
            "fd20:ce::254",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:a9fe:a9:fe00::",
            "64:ff9b:1:00a9:fe:a9fe::",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe::",
            "2001:0:808:808:0:0:5601:5601",
            "2606:4700::5efe:169.254.169.254",
            "2606:4700::200:5efe:169.254.169.254",
            "2002:808:808::5efe:169.254.169.254",
        ];
        for ip in rows {
            assert_eq!(class(ip), Class::Metadata, "{ip}");
        }
    }

    #[test]
    fn embedded_addresses_are_judged_by_the_worst_reading() {
        let rows = [
            ("::ffff:8.8.8.8", Class::Public),
            ("::ffff:127.0.0.1", Class::Loopback),
            ("::ffff:10.0.0.1", Class::Private),
            ("::7f00:1", Class::Loopback),
            ("::8.8.8.8", Class::Reserved),
            ("64:ff9b::8.8.8.8", Class::Public),
            ("64:ff9b::10.0.0.1", Class::Private),
            ("64:ff9b::1:0:0", Class::Reserved),
            ("64:ff9b:1::8.8.8.8", Class::Private),
            ("64:ff9b:1::127.0.0.1", Class::Loopback),
            ("2002:808:808::1", Class::Public),
            ("2002:7f00:1::1", Class::Loopback),
            ("2002:c0a8:101::1", Class::Private),
            // Server 8.8.8.8; client 127.0.0.1 and 8.8.4.4.
            ("2001:0:808:808:0:0:80ff:fffe", Class::Loopback),
            ("2001:0:808:808:0:0:f7f7:fbfb", Class::Public),
            ("fe80::5efe:8.8.8.8", Class::LinkLocal),
            ("2606:4700::5efe:10.0.0.1", Class::Private),
        ];
        for (ip, expected) in rows {
            assert_eq!(class(ip), expected, "{ip}");
        }
    }
}
