//! A host of the test's own, as far as files go.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::Exec;

/// An address of a documentation network: nobody is there, and nothing tries.
pub(crate) const PUBLIC_ADDRESS: &str = "192.0.2.1";

/// Names every scene knows.
const HOSTS: &str = "127.0.0.1 localhost\n127.0.0.1 origin.test\n127.0.0.1 other.test\n";
/// No server: names are in the hosts file or fail at once.
const RESOLV_CONF: &str = "nameserver 127.0.0.9\noptions timeout:1 attempts:1\n";
/// Where owners note their sandboxes.
pub(crate) const STATE_DIR: &str = "/run/sluice";

/// A mount namespace with its own `/etc/hosts`, `/etc/resolv.conf` and `/run/sluice`, and a scratch directory.
pub(crate) struct Scene {
    dir: tempfile::TempDir,
    mounts: OwnedFd,
    name: String,
}

impl Scene {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("sluice-e2e-").tempdir().expect("a scratch directory");
        // Workloads that are not root start here.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open the directory");
        fs::write(dir.path().join("hosts"), HOSTS).expect("write hosts");
        fs::write(dir.path().join("resolv.conf"), RESOLV_CONF).expect("write resolv.conf");
        fs::create_dir_all(STATE_DIR).expect("make the state directory (needs root)");
        let mounts = on_own_thread(|| make_mounts(dir.path()));
        let name = format!("e2e-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { dir, mounts, name }
    }

    /// A name for a sandbox that no other test uses.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a line to `/etc/hosts`.
    pub(crate) fn host(&self, address: &str, name: &str) {
        let path = self.dir().join("hosts");
        let text = fs::read_to_string(&path).expect("read hosts");
        fs::write(path, format!("{text}{address} {name}\n")).expect("write hosts");
    }

    /// Makes `address` the name server.
    pub(crate) fn name_server(&self, address: &str) {
        let text = format!("nameserver {address}\noptions timeout:1 attempts:1\n");
        fs::write(self.dir().join("resolv.conf"), text).expect("write resolv.conf");
    }

    /// Writes a file into the scratch directory.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir().join(name);
        fs::write(&path, text).expect("write a file");
        path
    }

    /// A `sluice exec` in this scene.
    pub(crate) fn exec(&self) -> Exec<'_> {
        Exec::new(self)
    }

    /// Runs `work` with this scene's mounts.
    pub(crate) fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        on_own_thread(|| {
            // A thread that shares its root directory with others cannot change its mounts.
            unshare(CloneFlags::CLONE_FS).expect("unshare");
            setns(self.mounts.as_fd(), CloneFlags::CLONE_NEWNS).expect("enter the scene's mounts");
            work()
        })
    }

    /// What sandboxes have left behind: their directories, and their mounts.
    pub(crate) fn remains(&self) -> Vec<String> {
        self.inside(|| {
            let below = format!("{STATE_DIR}/sandboxes/");
            let directories = fs::read_dir(&below).into_iter().flatten();
            let directories = directories.map(|entry| entry.expect("entry").path().display().to_string());
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("read mountinfo");
            let mounts = mounts.lines().filter(|line| line.contains(&below)).map(str::to_owned);
            directories.chain(mounts).collect()
        })
    }
}

/// Takes the sandboxes of the host, where there are some, out of this mount namespace: they are no remains of a test.
fn leave_the_hosts_sandboxes() {
    let below = format!("{STATE_DIR}/sandboxes/");
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("read mountinfo");
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    for target in targets.filter(|target| target.starts_with(&below)) {
        // One that has just ended has gone by itself.
        umount2(target, MntFlags::MNT_DETACH).ok();
    }
}

fn make_mounts(dir: &Path) -> OwnedFd {
    let bind = |from: &str, to: &str| {
        let change = mount(Some(&dir.join(from)), to, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        change.unwrap_or_else(|errno| panic!("cannot put a file over {to}: {errno}"));
    };
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace (needs root)");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).expect("slave");
    leave_the_hosts_sandboxes();
    mount(Some("tmpfs"), STATE_DIR, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("tmpfs");
    bind("hosts", "/etc/hosts");
    bind("resolv.conf", "/etc/resolv.conf");
    File::open("/proc/thread-self/ns/mnt").expect("open the namespace").into()
}

fn on_own_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
