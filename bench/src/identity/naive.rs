//! The yardstick: what a proxy does that knows no better. Both tables parsed whole, every descriptor of every process
//! read.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// CPU of one scan for the process that has this connection, µs of this thread.
pub(super) fn cpu_us((client, proxy): &(SocketAddr, SocketAddr)) -> Result<f64> {
    let cpu = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let before = cpu()?;
    let exe = scan(*client, *proxy)?;
    let spent = cpu()?.saturating_sub(before);
    anyhow::ensure!(exe == std::env::current_exe()?, "the scan found {}", exe.display());
    Ok(spent.as_secs_f64() * 1e6)
}

fn scan(client: SocketAddr, proxy: SocketAddr) -> Result<std::path::PathBuf> {
    let mut inodes = HashMap::new();
    for table in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default().lines().skip(1) {
            if let Some((ends, inode)) = row(line) {
                inodes.insert(ends, inode);
            }
        }
    }
    let inode = inodes.get(&(client, proxy)).context("the tables do not have the connection")?;
    let sought = format!("socket:[{inode}]");
    let mut holder = None;
    for process in fs::read_dir("/proc")?.flatten() {
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let link = fs::read_link(descriptor.path()).unwrap_or_default();
            if link.as_os_str() == sought.as_str()
                && process.file_name().as_encoded_bytes()[0].is_ascii_digit()
            {
                holder = Some(process.path());
            }
        }
    }
    Ok(fs::read_link(holder.context("no process has the socket")?.join("exe"))?)
}

/// A row's ends, its own first, and its inode (`Documentation/networking/proc_net_tcp.rst`).
fn row(line: &str) -> Option<((SocketAddr, SocketAddr), u64)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let ends = (end(fields.next()?)?, end(fields.next()?)?);
    Some((ends, fields.nth(6)?.parse().ok()?))
}

fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words: Option<Vec<[u8; 4]>> = address
        .as_bytes()
        .chunks(8)
        .map(|word| Some(u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes()))
        .collect();
    let octets = words?.concat();
    let ip = match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets.as_slice()).ok()?)).to_canonical(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_both_tables_are_read() {
        let v4 = "   0: 0100007F:C822 0100007F:0C38 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 20 4 30 10 -1";
        let ends = ("127.0.0.1:51234".parse().unwrap(), "127.0.0.1:3128".parse().unwrap());
        assert_eq!(row(v4), Some((ends, 4711)));
        let v6 = v4.replace("0100007F", "0000000000000000FFFF00000100007F");
        assert_eq!(row(&v6), Some((ends, 4711)), "v4-mapped");
        assert_eq!(row("  sl  local_address"), None);
    }

    #[test]
    fn a_connection_of_ours_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        assert!(cpu_us(&ends).unwrap() > 0.0);
    }
}
