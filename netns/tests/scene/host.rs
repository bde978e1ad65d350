//! A host with guests on links of their own, and the fence on its side.

use std::net::{IpAddr, SocketAddr, TcpListener};

use sluice_netns::{Admit, GuardedLink, HostCounterReader, HostFence, LogLimit, Traffic};

use super::Scene;
use super::bare::{Bare, run, within};

/// A stand-in for a host that forwards, with two guests on links of their own:
/// `tap0` (10.9.0.1, fd09:0::1) to guest 0 (….2) and `tap1` (10.9.1.1, fd09:1::1) to guest 1.
pub(crate) struct Host {
    pub(crate) host: Bare,
    pub(crate) guests: [Bare; 2],
}

impl Host {
    pub(crate) fn start() -> Self {
        let stand_in = Self { host: Bare::start(), guests: [Bare::start(), Bare::start()] };
        run(&stand_in.host, &["ip", "link", "set", "lo", "up"]);
        for (number, guest) in stand_in.guests.iter().enumerate() {
            let (tap, pid) = (format!("tap{number}"), guest.id().to_string());
            run(
                &stand_in.host,
                &["ip", "link", "add", &tap, "type", "veth", "peer", "name", "eth0", "netns", &pid],
            );
            run(guest, &["ip", "link", "set", "lo", "up"]);
            for (of, link, last) in [(&stand_in.host, tap.as_str(), 1), (guest, "eth0", 2)] {
                run(of, &["ip", "addr", "add", &format!("10.9.{number}.{last}/24"), "dev", link]);
                run(of, &["ip", "addr", "add", &format!("fd09:{number}::{last}/64"), "dev", link, "nodad"]);
                run(of, &["ip", "link", "set", link, "up"]);
            }
            run(guest, &["ip", "route", "add", "default", "via", &format!("10.9.{number}.1")]);
            run(guest, &["ip", "-6", "route", "add", "default", "via", &format!("fd09:{number}::1")]);
        }
        within(&stand_in.host, || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forward");
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forward");
        });
        stand_in
    }

    pub(crate) fn load(&self, links: &[GuardedLink]) {
        let fence = HostFence { links: links.to_vec(), limit: LogLimit::default() };
        within(&self.host, || fence.load()).expect("load the host fence");
    }

    pub(crate) fn violations(&self, name: &str) -> Traffic {
        let all = within(&self.host, || HostCounterReader::open()?.read()).expect("violations");
        *all.get(name).expect("a counter of that sandbox")
    }

    pub(crate) fn guest(&self, number: usize) -> &Bare {
        &self.guests[number]
    }

    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        within(&self.host, || TcpListener::bind(address).expect(address))
    }
}

/// Guest `number`, on its link, with `admit`.
pub(crate) fn guarded(scene: &Scene, number: usize, admit: Admit) -> GuardedLink {
    let sandbox = scene.sandbox(&format!("token-{number}"));
    GuardedLink {
        name: format!("guest-{number}").parse().expect("name"),
        token: sandbox.log_token(),
        link: format!("tap{number}").parse().expect("link"),
        admit,
    }
}

pub(crate) fn proxy_for(source: &str, listen: &str) -> Admit {
    Admit::Proxy {
        source: source.parse::<IpAddr>().expect("source"),
        listen: listen.parse::<SocketAddr>().expect("listen"),
    }
}
