//! The connect witness: who tried to reach what, noted before it happens.
//!
//! After an immediate reject a socket is gone from every table before user space can look, so the
//! launched workload carries a second filter (`program.rs`) that hands its connects to the launcher.
//! For each one (`listener.rs` receives it):
//! 1. the destination is read from the caller's memory (`attempt.rs`); other families, local
//!    destinations and the sandbox's own addresses go on at once;
//! 2. the socket is duplicated and, if it has no port yet, bound to port 0 as the kernel would a
//!    moment later (`naming.rs`), so that the note carries the source port that the fence's log line
//!    and the proxy's accepted connection will show;
//! 3. the process is named (`who.rs`): exe, start time, ancestors, cached per process;
//! 4. if the caller still waits, so that all that was read was its own, the [`Note`] is written into a ring
//!    (`ring.rs`, over `memory.rs`; processes by `record.rs`) and the call continues, unchanged.
//!
//! Whoever asks, in this process or in another, has the ring's memory and reads it into [`Notes`] (`notes.rs`,
//! `index.rs`). The launcher so serves a workload without the daemon, and the daemon learns what it saw.
//!
//! It is a witness and never the enforcer: another thread can change the address after it was read.
//! The fence enforces. When the launcher dies the kernel answers ENOSYS and nothing hangs.

mod attempt;
mod index;
mod listener;
mod memory;
mod naming;
mod notes;
mod program;
mod record;
mod ring;
mod who;

pub use notes::{Call, Found, Join, Note, Notes, Process, Proto, ProxyVariable, Refused, RingId, Untold};
pub(crate) use program::assemble as program;
pub use ring::{NoteWriter, note_ring};
pub use who::{HowStarted, how_started};

use attempt::Attempt;
use listener::{Event, Listener, Notification};
use naming::{Naming, Sockets};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use who::{Processes, Want};

/// The witness cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the connect witness failed at {what}: {reason}; the workload's connects now fail with ENOSYS")]
pub struct WitnessError {
    what: &'static str,
    reason: io::Error,
}

/// What a witness has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Calls answered.
    pub calls: u64,
    /// Notes made.
    pub notes: u64,
    /// Notes among them without a source port.
    pub unnamed: u64,
}

/// Serves the listener of one workload.
pub struct Witness {
    listener: Listener,
    sockets: Sockets,
    processes: Processes,
    notes: NoteWriter,
    local: Vec<IpAddr>,
    proxy: Option<SocketAddr>,
    on_attempt: Option<Box<dyn Fn() + Send>>,
    served: Served,
}

impl Witness {
    /// `listener` is [`crate::Child::take_witness`]'s, `workload` its pid. Attempts towards loopback
    /// addresses and towards `local` are not noted: servers of the sandbox itself. The proxy's address
    /// must not be among them.
    pub fn new(listener: OwnedFd, workload: u32, notes: NoteWriter, local: Vec<IpAddr>) -> Self {
        Self {
            listener: Listener::new(listener),
            sockets: Sockets::default(),
            processes: Processes::new(workload),
            notes,
            local,
            proxy: None,
            on_attempt: None,
            served: Served::default(),
        }
    }

    /// Says where the proxy is: what is noted towards it is no attempt to go around it.
    pub fn set_proxy(&mut self, proxy: SocketAddr) {
        self.proxy = Some(proxy);
    }

    /// Has `alert` called for each note of an attempt to go around the proxy, once it can be found and before the call
    /// goes on. Every noted call waits for it.
    pub fn on_attempt(&mut self, alert: impl Fn() + Send + 'static) {
        self.on_attempt = Some(Box::new(alert));
    }

    /// Answers until every process of the workload has ended, or `stop` (an eventfd or a pipe's read
    /// end) becomes readable. To be run on a thread of its own. Returning closes the listener: connects
    /// of a workload that still runs then fail with ENOSYS.
    pub fn run(mut self, stop: Option<&OwnedFd>) -> Result<Served, WitnessError> {
        let failed = |what| move |reason| WitnessError { what, reason };
        while self.listener.wait(stop.map(AsFd::as_fd)).map_err(failed("poll"))? == Event::Call {
            let Some(call) = self.listener.receive().map_err(failed("SECCOMP_IOCTL_NOTIF_RECV"))? else {
                continue;
            };
            self.served.calls += 1;
            if let Some(note) = self.observe(&call) {
                self.served.notes += 1;
                self.served.unnamed += u64::from(note.src_port.is_none());
                self.notes.push(&note);
                if let Some(alert) = self.on_attempt.as_ref().filter(|_| Some(note.dst) != self.proxy) {
                    alert();
                }
            }
            self.listener.resume(call.id).map_err(failed("SECCOMP_IOCTL_NOTIF_SEND"))?;
        }
        Ok(self.served)
    }

    /// The note for a call, or `None` when there is nothing to note.
    fn observe(&mut self, call: &Notification) -> Option<Note> {
        let attempt = Attempt::read(call)?;
        let ip = attempt.dst.ip();
        if ip.is_loopback() || ip.is_unspecified() || self.local.contains(&ip) {
            return None;
        }
        // What is read of the caller below is its own only if it still waits afterwards.
        let (proto, src_port) = match self.sockets.name(&attempt) {
            Naming::Named(proto, port) => (proto, Some(port)),
            Naming::Unnamed(proto) => (proto, None),
            Naming::NoAttempt => return None,
        };
        let dst = match proto {
            // Whatever the caller put there: a packet has none.
            Proto::Icmp => SocketAddr::new(ip, 0),
            Proto::Tcp | Proto::Udp => attempt.dst,
        };
        let want = if Some(dst) == self.proxy { Want::Process } else { Want::HowStarted };
        let pid = self.sockets.pid_of(attempt.tid)?;
        let process = self.processes.of_thread(attempt.tid, pid, want)?;
        self.listener.still_waits(call.id).then_some(Note {
            time_ns: who::monotonic_ns(),
            tid: attempt.tid,
            process,
            proto,
            src_port,
            dst,
            call: attempt.call,
        })
    }
}
