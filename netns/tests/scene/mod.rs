//! What every test of this crate needs: a state directory of its own and the patience to wait for a condition.
//!
//! The tests make real namespaces, so they need root, and fail without it.
#![allow(dead_code)] // each test file uses its part

pub(crate) mod bare;
pub(crate) mod host;
pub(crate) mod kmsg;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sluice_netns::{Sandbox, Spec};

/// How long a condition may take on a busy machine before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// "At once": what a refusal may take. Measured: 0.01 to 0.3 ms.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);

/// A state directory that ends with the test.
pub(crate) struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a scratch directory") }
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn spec(&self, name: &str) -> Spec {
        let mut spec = Spec::new(name.parse().expect("a valid name"));
        self.dir.path().clone_into(&mut spec.state_dir);
        spec
    }

    pub(crate) fn sandbox(&self, name: &str) -> Sandbox {
        Sandbox::create(&self.spec(name)).expect("make a sandbox (needs root and nft)")
    }

    pub(crate) fn sandbox_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("sandboxes").join(name)
    }

    /// Mounts under this state directory.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let own = self.dir.path().to_str().expect("UTF-8");
        std::fs::read_to_string("/proc/self/mountinfo")
            .expect("read mountinfo")
            .lines()
            .filter(|line| line.contains(own))
            .map(str::to_owned)
            .collect()
    }

    /// Fails unless nothing but the lock file is left.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.mounts(), Vec::<String>::new());
        let left: Vec<_> = std::fs::read_dir(self.state_dir())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name())
            .filter(|name| name != "lock")
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// Waits until `condition` holds; fails with `what` if it does not within [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Runs `action` and says how long it took; fails if that was not at once.
pub(crate) fn at_once<T>(action: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = action();
    let took = begun.elapsed();
    assert!(took < AT_ONCE, "took {took:?}");
    result
}
