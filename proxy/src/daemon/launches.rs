//! Workloads that `sluice sandbox exec` started: their launchers answer the witness, the daemon reads the notes.
//!
//! A launcher says which of its descriptors are the ring of notes and the bell that announces one; they are taken from
//! it, so nothing has to be passed over the socket, and a daemon that starts anew takes them again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tokio::io::unix::AsyncFd;

use super::{Daemon, Member, Refusal};
use crate::admin::wire::{Kind, Launched, LaunchedView};
use crate::event::Time;

/// Launchers of one sandbox at a time: each has a ring of some MiB.
const LAUNCHES_MAX: usize = 64;

/// The launches of one sandbox that live.
#[derive(Default)]
pub(super) struct Launches(Mutex<Vec<Launch>>);

struct Launch {
    id: u64,
    since: Time,
    told: Launched,
}

impl Launches {
    fn lock(&self) -> MutexGuard<'_, Vec<Launch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As they are shown.
    pub(super) fn views(&self) -> Vec<LaunchedView> {
        let view = |launch: &Launch| LaunchedView {
            pid: launch.told.pid,
            command: launch.told.command.clone(),
            since: super::view::text(launch.since),
            confinement: launch.told.confinement.clone(),
        };
        self.lock().iter().map(view).collect()
    }
}

/// A launch that is attended to. It ends with its launcher.
pub struct Attended {
    member: Arc<Member>,
    launcher: AsyncFd<OwnedFd>,
    bell: AsyncFd<OwnedFd>,
    ring: sluice_seccomp::RingId,
    id: u64,
}

impl Daemon {
    /// Takes over the notes of a launcher, which is the caller's process `pid`. To be called on the control plane's
    /// runtime.
    pub fn attend_launch(&self, name: &str, pid: Option<u32>, told: Launched) -> Result<Attended, Refusal> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let member = self.member(name)?;
        let (Kind::Made, Some(notes)) = (member.kind(), member.notes()) else {
            return Err(Refusal::Invalid(format!(
                "sandbox {name} is {}: its own runtime starts what runs in it",
                if member.kind() == Kind::Attached { "attached" } else { "external" }
            )));
        };
        let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| {
            Refusal::Invalid("the launcher is in another pid namespace than the daemon".to_owned())
        })?;
        let failed = |what: &'static str| {
            move |error: io::Error| {
                Refusal::Failed(format!("the launcher's {what} cannot be taken over: {error}"))
            }
        };
        let launcher =
            pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(io::Error::from).map_err(failed("process"))?;
        let take = |fd: i32| pidfd_getfd(&launcher, fd, PidfdGetfdFlags::empty()).map_err(io::Error::from);
        let memory = take(told.notes_fd).map_err(failed("notes"))?;
        let bell = take(told.bell_fd).map_err(failed("bell"))?;
        let launcher = on_runtime(launcher).map_err(failed("process"))?;
        let bell = on_runtime(bell).map_err(failed("bell"))?;
        let mut all = member.launches().lock();
        if all.len() >= LAUNCHES_MAX {
            return Err(Refusal::Unavailable(format!(
                "{LAUNCHES_MAX} commands run in sandbox {name} already, the most it may have at a time"
            )));
        }
        let ring = notes.attach(&memory).map_err(failed("notes"))?;
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        all.push(Launch { id, since: Time::now(), told });
        drop(all);
        Ok(Attended { member, launcher, bell, ring, id })
    }
}

/// Waits on the descriptor on this runtime from now on.
#[allow(deprecated)] // its successor is unsafe for descriptors that are not owned; this one is
fn on_runtime(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

impl Attended {
    /// Rings `alert` for each note that is announced, until the launcher is gone.
    pub async fn until_it_ends(self, alert: impl Fn()) {
        loop {
            tokio::select! {
                // A pidfd is readable when its process has ended.
                _ = self.launcher.readable() => return,
                ready = self.bell.readable() => {
                    let Ok(mut ready) = ready else { return };
                    let rung = ready.try_io(|bell| {
                        let mut count = [0; 8];
                        nix::unistd::read(bell, &mut count).map_err(|errno: Errno| io::Error::from(errno))
                    });
                    if let Ok(outcome) = rung {
                        if outcome.is_err() {
                            return;
                        }
                        alert();
                    }
                }
            }
        }
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.member.launches().lock().retain(|launch| launch.id != self.id);
        if let Some(notes) = self.member.notes() {
            notes.detach(self.ring);
        }
    }
}
