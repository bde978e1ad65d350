//! The guard in front of every dial.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use thiserror::Error;

use super::Class;
use super::class::embedded_v4;

/// How far an address reaches, as far as a policy is concerned. All others are refused before it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Globally reachable.
    Public,
    /// Private, carrier-grade, unique local, documentation: only where the policy names it.
    Private,
}

/// Why an address is not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// It is a listener of ours: the request would come back.
    #[error("the address is Sluice's own listener")]
    OwnListener,
    /// No policy can allow it; an operator can (`permit_special_addresses`).
    #[error("{}; an operator can permit it with permit_special_addresses", .0.refusal())]
    Special(Class),
    /// The policy could have allowed it, and did not.
    #[error("{}", .0.refusal())]
    Unnamed(Class),
}

/// An address and port that may be dialled. Only [`Guard::check`] makes one, and the dialler takes nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Checked(SocketAddr);

impl Checked {
    /// Where to dial.
    pub fn address(self) -> SocketAddr {
        self.0
    }
}

/// What may be dialled from this host.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    permitted: Vec<IpNet>,
    own: Vec<IpAddr>,
    listeners: Vec<SocketAddr>,
}

impl Guard {
    /// `permitted`: what the operator lets through although it is special. `own`: the addresses of the host's
    /// interfaces. `listeners`: where Sluice itself listens, whatever the operator permits; an unspecified address
    /// stands for all of the host's own.
    pub fn new(permitted: &[IpNet], own: &[IpAddr], listeners: &[SocketAddr]) -> Self {
        let mut own: Vec<IpAddr> = own.iter().map(|&ip| unmapped(ip)).collect();
        own.sort_unstable();
        own.dedup();
        let listeners = listeners.iter().map(|at| SocketAddr::new(unmapped(at.ip()), at.port())).collect();
        Self { permitted: permitted.to_vec(), own, listeners }
    }

    /// Checks an address that a name resolved to, or that was asked for by itself. `admits` is the policy's say for an
    /// address of the given reach; it is not asked about special ones.
    pub fn check(
        &self,
        ip: IpAddr,
        port: u16,
        admits: impl FnOnce(IpAddr, Reach) -> bool,
    ) -> Result<Checked, Refused> {
        // A dial to ::ffff:a.b.c.d is one to a.b.c.d.
        let ip = unmapped(ip);
        let class = self.class(ip);
        if self.is_listener(ip, port, class) {
            return Err(Refused::OwnListener);
        }
        let permitted = self.permitted.iter().any(|net| net.contains(&ip));
        let reach = match class {
            // To the policy a permitted address is as good as a public one; `allowed_ips` still holds.
            _ if permitted || class == Class::Public => Reach::Public,
            _ if class.is_nameable() => Reach::Private,
            _ => return Err(Refused::Special(class)),
        };
        if admits(ip, reach) { Ok(Checked(SocketAddr::new(ip, port))) } else { Err(Refused::Unnamed(class)) }
    }

    /// The class of an address on this host.
    pub fn class(&self, ip: IpAddr) -> Class {
        let class = Class::of(ip);
        if self.is_own(ip) { class.max(Class::Own) } else { class }
    }

    /// Whether it is an address of this host, or leads to one through a translator or a tunnel.
    fn is_own(&self, ip: IpAddr) -> bool {
        let is_own = |ip: IpAddr| self.own.binary_search(&ip).is_ok();
        match unmapped(ip) {
            IpAddr::V6(v6) => {
                is_own(v6.into()) || embedded_v4(v6).into_iter().flatten().any(|v4| is_own(v4.into()))
            }
            v4 @ IpAddr::V4(_) => is_own(v4),
        }
    }

    fn is_listener(&self, ip: IpAddr, port: u16, class: Class) -> bool {
        let here = self.is_own(ip) || matches!(class, Class::Loopback | Class::Unspecified);
        let mut listeners = self.listeners.iter().filter(|at| at.port() == port);
        listeners
            .any(|at| at.ip() == ip || (here && (at.ip().is_unspecified() || class == Class::Unspecified)))
    }
}

/// An IPv4-mapped address as the IPv4 address it is.
fn unmapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    const ANYTHING: fn(IpAddr, Reach) -> bool = |_, _| true;
    const PUBLIC_ONLY: fn(IpAddr, Reach) -> bool = |_, reach| reach == Reach::Public;

    #[test]
    fn special_addresses_are_refused_whatever_the_policy_says() {
        let guard = Guard::new(&[], &[ip("198.51.100.7"), ip("93.184.216.34")], &[]);
        let special = [
            ("127.0.0.1", Class::Loopback),
            ("::1", Class::Loopback),
            ("169.254.1.1", Class::LinkLocal),
            ("fe80::1", Class::LinkLocal),
            ("169.254.169.254", Class::Metadata),
            ("::ffff:169.254.169.254", Class::Metadata),
            ("64:ff9b::a9fe:a9fe", Class::Metadata),
            ("fd00:ec2::254", Class::Metadata),
            ("0.0.0.0", Class::Unspecified),
            ("::", Class::Unspecified),
            ("224.0.0.1", Class::Multicast),
            ("255.255.255.255", Class::Broadcast),
            ("240.0.0.1", Class::Reserved),
            ("93.184.216.34", Class::Own),
            ("::ffff:93.184.216.34", Class::Own),
            ("64:ff9b::93.184.216.34", Class::Own),
            ("64:ff9b:1::93.184.216.34", Class::Own),
            ("2002:5db8:d822::1", Class::Own),
            ("2001:0:808:808::a247:27dd", Class::Own),
            ("198.51.100.7", Class::Own),
        ];
        for (address, class) in special {
            assert_eq!(guard.check(ip(address), 80, ANYTHING), Err(Refused::Special(class)), "{address}");
        }
    }

    #[test]
    fn private_addresses_take_a_policy_that_names_them() {
        let guard = Guard::default();
        let private = [
            ("10.1.2.3", Class::Private),
            ("100.64.0.1", Class::Cgnat),
            ("192.0.2.1", Class::TestNet),
            ("fd12::1", Class::UniqueLocal),
            ("64:ff9b::10.0.0.1", Class::Private),
        ];
        for (address, class) in private {
            assert_eq!(guard.check(ip(address), 80, PUBLIC_ONLY), Err(Refused::Unnamed(class)), "{address}");
            assert!(guard.check(ip(address), 80, ANYTHING).is_ok(), "{address}");
        }
        assert!(guard.check(ip("8.8.8.8"), 80, PUBLIC_ONLY).is_ok());
        assert_eq!(guard.check(ip("8.8.8.8"), 80, |_, _| false), Err(Refused::Unnamed(Class::Public)));
    }

    #[test]
    fn an_operator_permits_special_addresses_by_their_own_net() {
        let guard = Guard::new(&[net("127.0.0.0/8")], &[], &[]);
        assert!(guard.check(ip("127.0.0.1"), 80, PUBLIC_ONLY).is_ok());
        assert!(guard.check(ip("::ffff:127.0.0.1"), 80, PUBLIC_ONLY).is_ok());
        // The permit is for the address as dialled, not for every disguise of it.
        assert!(guard.check(ip("64:ff9b::7f00:1"), 80, ANYTHING).is_err());
        assert!(guard.check(ip("::1"), 80, ANYTHING).is_err());
        // Nor does it overrule a policy that lists other addresses.
        let refused = Err(Refused::Unnamed(Class::Loopback));
        assert_eq!(guard.check(ip("127.0.0.1"), 80, |_, _| false), refused);
    }

    #[test]
    fn our_own_listener_is_refused_even_where_its_address_is_permitted() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let permitted = [net("127.0.0.0/8"), net("0.0.0.0/8"), net("::1/128")];
        let own = [ip("10.0.0.5"), ip("fe80::5")];
        let guard = Guard::new(&permitted, &own, &[at("127.0.0.1:3128"), at("0.0.0.0:9464")]);
        let rows = [
            ("127.0.0.1", 3128, true),
            ("::ffff:127.0.0.1", 3128, true),
            ("0.0.0.0", 3128, true),
            ("127.0.0.1", 9464, true),
            ("127.9.9.9", 9464, true),
            ("10.0.0.5", 9464, true),
            ("::1", 9464, true),
            ("fe80::5", 9464, true),
            ("127.0.0.1", 80, false),
            ("8.8.8.8", 9464, false),
        ];
        for (address, port, refused) in rows {
            let answer = guard.check(ip(address), port, ANYTHING);
            assert_eq!(answer == Err(Refused::OwnListener), refused, "{address} {port} {answer:?}");
        }
    }

    #[test]
    fn what_is_dialled_is_what_was_checked() {
        let guard = Guard::default();
        let checked = guard.check(ip("::ffff:8.8.8.8"), 53, ANYTHING).map(|c| c.address().to_string());
        assert_eq!(checked, Ok("8.8.8.8:53".to_owned()));
        assert_eq!(unmapped(ip("::1")), ip("::1"));
    }
}
