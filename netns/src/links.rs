//! Addresses and routes inside a sandbox.
//!
//! A made sandbox has `lo` and nothing else. Its default routes end on that `lo`: without them a direct attempt
//! would fail in the routing table, unseen; with them it reaches the fence, which names and refuses it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::Error;

/// The index of `lo`, the same in every namespace (`LOOPBACK_IFINDEX`).
const LO: u32 = 1;

/// Sets up the calling thread's new namespace: `lo` up with `proxy` on it, default routes that end there.
pub(crate) fn set_up_made(proxy: IpAddr) -> Result<(), Error> {
    set_sysctls()?;
    let has_ipv6 = has_ipv6();
    over_netlink(async move |handle| {
        step("bring up lo", handle.link().set(LinkUnspec::new_with_index(LO).up().build()).execute().await)?;
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
        step("bring up lo", handle.link().set(LinkUnspec::new_with_index(LO).up().build()).execute().await)?;
        for address in addresses {
            add_address(&handle, *address).await?;
        }
        Ok(())
    })
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

async fn add_address(handle: &Handle, address: IpAddr) -> Result<(), Error> {
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    let added = handle.address().add(LO, address, prefix).execute().await;
    step(&format!("add the address {address} to lo"), added)
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
