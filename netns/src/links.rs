//! Addresses and routes inside a sandbox.
//!
//! A made sandbox has `lo` and nothing else. Its default routes end on that `lo`: without them a direct attempt
//! would fail in the routing table, unseen; with them it reaches the fence, which names and refuses it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The index of `lo`, the same in every namespace (`LOOPBACK_IFINDEX`).
const LO: u32 = 1;

/// Sets up the calling thread's new namespace: `lo` up with `proxy` on it, default routes that end there.
pub(crate) fn set_up_made(proxy: IpAddr) -> Result<(), Error> {
    set_sysctls()?;
    let has_ipv6 = has_ipv6();
    over_netlink(async move |handle| {
        bring_up_lo(&handle).await?;
        add_address(&handle, proxy).await?;
        add_default_route(&handle, default_route_v4()).await?;
        if has_ipv6 {
            add_default_route(&handle, default_route_v6()).await?;
        }
        Ok(())
    })
}

/// Sets up the calling thread's new namespace as an island: `lo` up with `addresses` on it and no route anywhere.
pub(crate) fn set_up_island(addresses: &[IpAddr]) -> Result<(), Error> {
    over_netlink(async move |handle| {
        bring_up_lo(&handle).await?;
        for address in addresses {
            add_address(&handle, *address).await?;
        }
        Ok(())
    })
}

/// What an attached namespace lacks, and so what is added to it and removed at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lacking {
    address: bool,
    route_v4: bool,
    route_v6: bool,
}

impl Lacking {
    /// Looks at the calling thread's namespace. Adding a default route where there is one would lead its traffic
    /// astray; where there is none, attempts would fail unseen.
    pub(crate) fn in_own_namespace(proxy: IpAddr) -> Result<Self, Error> {
        Ok(Self {
            // Only an address of the namespace can be bound.
            address: UdpSocket::bind((proxy, 0)).is_err(),
            route_v4: !has_default_route("/proc/thread-self/net/route", is_default_v4)?,
            route_v6: has_ipv6() && !has_default_route("/proc/thread-self/net/ipv6_route", is_default_v6)?,
        })
    }

    /// What either lacked.
    pub(crate) fn with(self, other: Self) -> Self {
        Self {
            address: self.address || other.address,
            route_v4: self.route_v4 || other.route_v4,
            route_v6: self.route_v6 || other.route_v6,
        }
    }

    /// Adds what is lacking to the calling thread's namespace, whose `lo` is brought up.
    pub(crate) fn add(self, proxy: IpAddr) -> Result<(), Error> {
        over_netlink(async move |handle| {
            bring_up_lo(&handle).await?;
            if self.address {
                add_address(&handle, proxy).await?;
            }
            if self.route_v4 {
                add_default_route(&handle, default_route_v4()).await?;
            }
            if self.route_v6 {
                add_default_route(&handle, default_route_v6()).await?;
            }
            Ok(())
        })
    }

    /// Removes what [`Self::add`] added from the calling thread's namespace. What is no longer there is fine.
    pub(crate) fn remove(self, proxy: IpAddr) -> Result<(), Error> {
        over_netlink(async move |handle| {
            if self.route_v4 {
                let removed = handle.route().del(default_route_v4()).execute().await;
                step("remove the IPv4 route that ends on lo", unless_gone(removed))?;
            }
            if self.route_v6 {
                let removed = handle.route().del(default_route_v6()).execute().await;
                step("remove the IPv6 route that ends on lo", unless_gone(removed))?;
            }
            if self.address {
                let removed = handle.address().del(address_on_lo(proxy)).execute().await;
                step("remove the proxy's address from lo", unless_gone(removed))?;
            }
            Ok(())
        })
    }
}

/// Whether a line of a routing table in /proc satisfies `is_default`. No table: no such route.
fn has_default_route(table: &str, is_default: impl Fn(&str) -> bool) -> Result<bool, Error> {
    match fs::read_to_string(table) {
        Ok(text) => Ok(text.lines().any(is_default)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", table)(error)),
    }
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, addresses in hex.
fn is_default_v4(line: &str) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")
}

/// `destination length source length gateway metric …`; the kernel's own "nowhere" has the largest metric.
fn is_default_v6(line: &str) -> bool {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let to_anywhere =
        fields.first().is_some_and(|destination| destination.bytes().all(|digit| digit == b'0'));
    to_anywhere && fields.get(1) == Some(&"00") && fields.get(5).is_some_and(|metric| *metric != "ffffffff")
}

/// Settings of the namespace itself.
fn set_sysctls() -> Result<(), Error> {
    // `ping` without privileges, as distributions allow it: the attempt is then made, refused and named, where it
    // would otherwise fail in socket(2) and leave no trace.
    write_sysctl("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    if has_ipv6() {
        // A host that disables IPv6 by default would make IPv6 attempts fail unseen.
        for link in ["all", "default", "lo"] {
            write_sysctl(&format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "0")?;
        }
    }
    Ok(())
}

fn write_sysctl(path: &str, value: &str) -> Result<(), Error> {
    fs::write(path, value).map_err(Error::io("set", path))
}

/// Whether this kernel speaks IPv6 at all (`ipv6.disable=1` removes it, and with it the need for a fence).
fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

async fn bring_up_lo(handle: &Handle) -> Result<(), Error> {
    step("bring up lo", handle.link().set(LinkUnspec::new_with_index(LO).up().build()).execute().await)
}

async fn add_address(handle: &Handle, address: IpAddr) -> Result<(), Error> {
    let added = handle.address().add(LO, address, prefix_length(address)).execute().await;
    step(&format!("add the address {address} to lo"), added)
}

/// An address is one address, not a network.
fn prefix_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn address_on_lo(address: IpAddr) -> AddressMessage {
    let length = prefix_length(address);
    match address {
        IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new().index(LO).address(v4, length).build(),
        IpAddr::V6(v6) => AddressMessageBuilder::<Ipv6Addr>::new().index(LO).address(v6, length).build(),
    }
}

async fn add_default_route(handle: &Handle, route: RouteMessage) -> Result<(), Error> {
    step("add a default route that ends on lo", handle.route().add(route).execute().await)
}

fn default_route_v4() -> RouteMessage {
    // Without a gateway the destination is on the link; the kernel refuses any wider scope.
    RouteMessageBuilder::<Ipv4Addr>::new().output_interface(LO).scope(RouteScope::Link).build()
}

fn default_route_v6() -> RouteMessage {
    RouteMessageBuilder::<Ipv6Addr>::new().output_interface(LO).build()
}

/// Runs `work` with a netlink connection of the calling thread's namespace, to its end.
fn over_netlink(work: impl AsyncFnOnce(Handle) -> Result<(), Error>) -> Result<(), Error> {
    let setup = |error: io::Error| Error::Netlink {
        action: "open a netlink socket".to_owned(),
        reason: error.to_string(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(setup)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(setup)?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result
    })
}

/// An object that is already gone, or whose link is, need not be removed.
fn unless_gone(answer: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match answer {
        Err(rtnetlink::Error::NetlinkError(message))
            if matches!(
                -message.raw_code(),
                libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL | libc::ENODEV
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Gives a netlink answer the words of what was asked.
fn step<T>(action: &str, answer: Result<T, rtnetlink::Error>) -> Result<T, Error> {
    answer.map_err(|error| Error::Netlink {
        action: action.to_owned(),
        reason: match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
            other => other.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{is_default_v4, is_default_v6};

    #[test]
    fn a_default_route_is_known_in_the_tables_of_proc() {
        assert!(is_default_v4("eth0 00000000 0111A8C0 0003 0 0 100 00000000 0 0 0"));
        assert!(!is_default_v4("eth0 0011A8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0"));
        assert!(!is_default_v4("Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT"));
        let zero = "0".repeat(32);
        assert!(is_default_v6(&format!(
            "{zero} 00 {zero} 00 {zero} 00000400 00000001 00000000 00000001 eth0"
        )));
        assert!(!is_default_v6(&format!(
            "{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo"
        )));
        assert!(!is_default_v6(&format!(
            "{zero} 80 {zero} 00 {zero} 00000000 00000002 00000000 80200001 lo"
        )));
        assert!(!is_default_v6(""));
    }
}
