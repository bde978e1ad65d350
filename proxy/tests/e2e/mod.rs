//! What every end-to-end test needs: the real binary, real programs, and a world they cannot get out of.
//!
//! A test starts with a [`Scene`] (`scene.rs`): a mount namespace in which `/etc/hosts`, `/etc/resolv.conf` and
//! `/run/sluice` are the test's own, so that tests run side by side. It puts origins on loopback addresses
//! (`origin.rs`; `secure.rs` with `certificates.rs` for TLS), runs `sluice exec` (`exec.rs`) with programs found on this machine (`programs.rs`) or in octets (`talk.rs`), and looks at what
//! came out: exit code, output, and events, each held against the contract (`events.rs`).
//!
//! The tests make namespaces, so they need root, and fail without it.

#![allow(dead_code)] // each test file uses its part

mod certificates;
mod container;
mod daemon;
mod events;
mod exec;
mod origin;
mod programs;
mod scene;
mod secure;
mod talk;
mod turns;

use std::path::Path;
use std::time::{Duration, Instant};

#[allow(unused_imports)] // each test file uses its part
pub(crate) use {
    certificates::make_certificates,
    container::Container,
    daemon::{Daemon, Said},
    events::{Happening, assert_contract, assert_rfc_3339_micros},
    exec::{Exec, Outcome, Running},
    origin::{BODY, Dns, HttpOrigin, Service},
    programs::{node, program, python, run},
    scene::{PUBLIC_ADDRESS, STATE_DIR, Scene},
    secure::Secure,
    talk::{Step, send, talk, until},
    turns::{alone_with_the_host_fence, alone_with_the_kernel_log},
};

/// How long anything may take on a busy machine before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that cannot be waited for.
const PAUSE: Duration = Duration::from_millis(5);

/// The binary under test.
pub(crate) fn sluice() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sluice"))
}

/// Looks until `condition` holds; fails with `what` when it does not within [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(PAUSE);
    }
}

/// The processes of this host that run with `SLUICE_SANDBOX=name`: everything a sandbox of that name has started.
pub(crate) fn processes_of(name: &str) -> Vec<u32> {
    let mark = format!("SLUICE_SANDBOX={name}");
    let own = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let entries = std::fs::read_dir("/proc").expect("list /proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(own).collect()
}
