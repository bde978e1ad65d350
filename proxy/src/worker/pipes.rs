//! A bounded pool of pipes for splicing (decision 2).
//!
//! A pipe that still holds bytes never returns to the pool: the next tunnel would send another's data.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// Octets one pipe holds. 256 KiB is where splice stops getting cheaper (docs/decisions/0002).
pub(crate) const PIPE_OCTETS: usize = 256 << 10;

/// Both ends of an empty pipe, or of one in use.
pub(crate) struct Pipe {
    /// Where splice takes from.
    pub(crate) read: OwnedFd,
    /// Where splice puts to.
    pub(crate) write: OwnedFd,
    place: Place,
}

/// One of the pipes that may be in use at a time; given up when dropped.
struct Place(Rc<Pool>);

struct Pool {
    idle: RefCell<Vec<(OwnedFd, OwnedFd)>>,
    in_use: Cell<usize>,
    most: usize,
    gauge: metrics::Gauge,
}

/// The pipes of one worker.
#[derive(Clone)]
pub(crate) struct Pipes(Rc<Pool>);

impl Pipes {
    /// A pool that never has more than `most` pipes; each is two descriptors and, when full, [`PIPE_OCTETS`] of kernel
    /// memory.
    pub(crate) fn new(most: usize) -> Self {
        Self(Rc::new(Pool {
            idle: RefCell::default(),
            in_use: Cell::new(0),
            most,
            gauge: metrics::gauge!("sluice_pipes_in_use"),
        }))
    }

    /// An empty pipe, or `None` when all are in use or the kernel has none to give: copy instead.
    pub(crate) fn take(&self) -> Option<Pipe> {
        let pool = &self.0;
        if pool.in_use.get() >= pool.most {
            return None;
        }
        let idle = pool.idle.borrow_mut().pop();
        let (read, write) = match idle {
            Some(ends) => ends,
            None => open()?,
        };
        pool.in_use.set(pool.in_use.get() + 1);
        pool.gauge.increment(1.0);
        Some(Pipe { read, write, place: Place(Rc::clone(pool)) })
    }
}

fn open() -> Option<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
    // Refused beyond fs.pipe-user-pages-soft without CAP_SYS_RESOURCE: a smaller pipe works, only slower.
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_OCTETS as i32));
    Some((read, write))
}

impl Pipe {
    /// Gives an empty pipe back. Dropping one instead closes it, whatever it holds.
    pub(crate) fn put_back(self) {
        let Self { read, write, place } = self;
        place.0.idle.borrow_mut().push((read, write));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_use.set(self.0.in_use.get().saturating_sub(1));
        self.0.gauge.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_is_dropped_makes_room_for_another() {
        let pipes = Pipes::new(1);
        for _ in 0..3 {
            let pipe = pipes.take().unwrap();
            assert!(pipes.take().is_none(), "one is in use");
            drop(pipe);
        }
        pipes.take().unwrap().put_back();
        assert!(pipes.take().is_some());
    }
}
