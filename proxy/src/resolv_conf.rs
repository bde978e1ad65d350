//! The `/etc/resolv.conf` a made sandbox sees: it says that names are the proxy's business, and keeps lookups visible.
//!
//! Inside, a resolver on loopback (systemd-resolved's 127.0.0.53) would be a local destination: the query would fail
//! unseen. It is replaced by an address off loopback, so that the attempt reaches the fence and is named. Other servers
//! stay as they are: the event then says whom the program would have asked.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Stands for a resolver on loopback: TEST-NET-1 (RFC 5737), where nothing is.
const STAND_IN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53));

/// The file for a sandbox whose proxy is at `proxy`, made from the host's.
pub fn for_sandbox(host: &str, proxy: SocketAddr) -> String {
    let mut text = format!(
        "# This is a Sluice sandbox: nothing answers here. Names are resolved by the proxy, http://{proxy}; hand it the\n\
         # host name (CONNECT host:port, or a whole URL). A lookup of a program's own is refused and reported.\n"
    );
    let mut servers: Vec<IpAddr> = Vec::new();
    for line in host.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // A zone (fe80::1%eth0) names a link that is not in the sandbox.
        let Some(server) = words.next().and_then(|word| word.split('%').next()?.parse::<IpAddr>().ok())
        else {
            continue;
        };
        let seen = if server.is_loopback() || server.is_unspecified() { STAND_IN } else { server };
        if !servers.contains(&seen) {
            servers.push(seen);
        }
    }
    if servers.is_empty() {
        // Without any the C library asks loopback.
        servers.push(STAND_IN);
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    text.push_str("options timeout:1 attempts:1\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(host: &str) -> Vec<String> {
        let text = for_sandbox(host, SocketAddr::from(([10, 200, 0, 1], 3128)));
        assert!(text.starts_with("# This is a Sluice sandbox"), "{text}");
        assert!(text.contains("http://10.200.0.1:3128"), "{text}");
        text.lines().filter_map(|line| line.strip_prefix("nameserver ").map(str::to_owned)).collect()
    }

    #[test]
    fn a_resolver_on_loopback_is_replaced_so_that_lookups_are_seen() {
        assert_eq!(servers("nameserver 127.0.0.53\noptions edns0\nsearch corp.example\n"), ["192.0.2.53"]);
        assert_eq!(servers("nameserver ::1\nnameserver 127.0.0.1\n"), ["192.0.2.53"]);
        assert_eq!(servers(""), ["192.0.2.53"]);
        assert_eq!(servers("nameserver nonsense\n"), ["192.0.2.53"]);
    }

    #[test]
    fn other_resolvers_stay() {
        assert_eq!(
            servers("nameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver 10.0.0.2"),
            ["10.0.0.2", "fe80::1"]
        );
    }
}
