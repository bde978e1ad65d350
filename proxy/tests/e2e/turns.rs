//! What the whole host has one of: tests that need it to themselves take turns, also with other runs.

use std::fs::{File, OpenOptions};

use nix::fcntl::{Flock, FlockArg};

/// The host fence is one table.
pub(crate) fn alone_with_the_host_fence() -> Flock<File> {
    alone_with("host-fence")
}

/// Who fills the kernel's log takes other readers' records away.
pub(crate) fn alone_with_the_kernel_log() -> Flock<File> {
    alone_with("kernel-log")
}

fn alone_with(what: &str) -> Flock<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = options.open(std::env::temp_dir().join(format!("sluice-e2e-{what}.lock"))).expect("a lock");
    Flock::lock(file, FlockArg::LockExclusive).expect("lock")
}
