//! The two ends of the data path, scripted to the byte: a client and an origin on blocking sockets with a deadline, and
//! `sluice serve` between them.
//!
//! The life of a test: [`Proxy`] (`proxy.rs`) starts the daemon with an external sandbox for 127.0.0.1, or hands out the
//! one all tests of a file share; [`Proxy::connect`] is the client, a [`Peer`] (`peer.rs`); [`Origin`] (`origin.rs`)
//! listens where the client is sent and accepts one [`Peer`] per connection the proxy dials. A test then says what each
//! side sends and what each side must hear, in order, in one thread. `hello.rs` writes TLS ClientHellos, `inside.rs`
//! speaks TLS for either end, `two.rs` HTTP/2 in it, `file.rs` serves files to real clients and `tls.rs` does so over HTTPS.
//!
//! Nothing here knows how Sluice works inside: what is checked is bytes on sockets, events in the file, and the account
//! the kernel keeps of the process.

#![allow(dead_code, unused_imports)] // each test file uses its part
#![allow(clippy::unwrap_used)] // a test ends at the first surprise

pub(crate) mod file;
pub(crate) mod hello;
pub(crate) mod inside;
mod origin;
mod peer;
mod proxy;
pub(crate) mod tls;
pub(crate) mod two;

use std::time::Duration;

pub(crate) use origin::{Origin, Refusing};
pub(crate) use peer::{Head, Peer};
pub(crate) use proxy::{Proxy, Setup, policy_of};

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The answer most scripts give.
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The daemon's sockets to these peers have TCP keep-alive: a peer that vanished is noticed.
#[track_caller]
pub(crate) fn have_keep_alive(peers: [std::net::SocketAddr; 2]) {
    for peer in peers {
        let began = std::time::Instant::now();
        loop {
            let mut ss = std::process::Command::new("ss");
            let output =
                ss.args(["-tnoH", "dst", &peer.to_string()]).output().expect("ss (iproute2) is needed");
            let shown = String::from_utf8(output.stdout).unwrap();
            if shown.contains("timer:(keepalive,") {
                break;
            }
            // The proxy asks for it a moment later; while something is not yet acknowledged another timer is shown.
            assert!(began.elapsed() < DEADLINE, "{peer}: {shown}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// Octets with a pattern in which a lost, doubled or swapped stretch shows.
pub(crate) fn pattern(octets: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(octets + 8);
    while out.len() < octets {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(octets);
    out
}
