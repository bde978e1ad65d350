//! Namespaces that are not ours: stand-ins for containers, microVMs and their hosts.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use sluice_netns::inside;

use super::eventually;

/// A process in a namespace of its own that starts empty. Ends with the test, however that ends.
pub(crate) struct Bare(Child);

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bare {
    pub(crate) fn start() -> Self {
        let process = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("run unshare");
        let own = std::fs::read_link("/proc/self/ns/net").expect("own namespace");
        let path = format!("/proc/{}/ns/net", process.id());
        let bare = Self(process);
        eventually("unshare has run", || std::fs::read_link(&path).is_ok_and(|theirs| theirs != own));
        bare
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

pub(crate) fn netns_of(process: &Bare) -> OwnedFd {
    std::fs::File::open(format!("/proc/{}/ns/net", process.id())).expect("namespace").into()
}

pub(crate) fn within<T: Send>(process: &Bare, work: impl FnOnce() -> T + Send) -> T {
    inside(netns_of(process).as_fd(), work).expect("enter")
}

pub(crate) fn run(process: &Bare, command: &[&str]) -> String {
    let (program, arguments) = command.split_first().expect("a command");
    let output = within(process, || Command::new(program).args(arguments).output()).expect("run");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}
