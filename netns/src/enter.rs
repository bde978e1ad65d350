//! Entering a namespace without moving the caller.
//!
//! A thread's namespace is a property of the thread. Moving one of the caller's threads, even for a moment, would
//! let whatever runs on it next (a timer, a pool's job) act inside a sandbox. So work inside happens on a thread
//! that is made for it and ends with it.

use std::os::fd::BorrowedFd;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::Error;

/// Runs `work` on a fresh thread that has entered the network namespace `netns`, and returns what it returns.
///
/// The caller's threads never move. Sockets made by `work` belong to the namespace for ever; processes spawned by
/// it start inside. A panic of `work` comes back as [`Error::Thread`].
pub fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_own_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(Error::io("enter the namespace", "given by fd"))?;
        Ok(work())
    })
}

/// Runs `work` on a thread that ends with it, and which `work` may therefore move into any namespace.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("sluice-enter".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|error| Error::Thread(format!("could not be started: {error}")))?
            .join()
            .map_err(|_| Error::Thread("panicked".to_owned()))?
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::namespace::NamespaceId;

    fn current() -> NamespaceId {
        NamespaceId::of_path("/proc/thread-self/ns/net").expect("own namespace")
    }

    #[test]
    fn the_caller_stays_where_it_is() {
        let before = current();
        let netns =
            on_own_thread(|| Ok(crate::namespace::make().expect("make a namespace"))).expect("thread");
        let seen = inside(netns.as_fd(), current).expect("enter");
        assert_eq!(seen, NamespaceId::of_fd(netns.as_fd()).expect("stat"));
        assert_ne!(seen, before);
        assert_eq!(current(), before);
    }

    #[test]
    fn a_panic_inside_is_an_error_outside() {
        let here = File::open("/proc/thread-self/ns/net").expect("own namespace");
        let result = inside(here.as_fd(), || panic!("on purpose"));
        assert!(matches!(result, Err(Error::Thread(_))), "{result:?}");
    }
}
