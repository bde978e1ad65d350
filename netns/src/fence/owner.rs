//! Whose the host fence is. It is one table, which a daemon makes entirely its own: two daemons that both fenced links would
//! take each other's out, so one holds a lock for as long as it has any.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};

use crate::Error;
use crate::namespace::own_id;
use crate::state::open_lock;

/// While it lives, nobody else owns the host fence of this network namespace. It dies with its process, the fence does not.
#[derive(Debug)]
pub struct HostFenceOwner {
    path: PathBuf,
    _lock: Flock<File>,
}

impl HostFenceOwner {
    /// Claims the host fence of the calling thread's network namespace; [`Error::HostFenceOwned`] if another has it.
    pub fn claim() -> Result<Self, Error> {
        let path = PathBuf::from(format!("/run/sluice.host_fence.{}", own_id()?.inode));
        loop {
            let lock = match Flock::lock(open_lock(&path)?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, nix::Error::EWOULDBLOCK)) => return Err(Error::HostFenceOwned(path)),
                Err((_, errno)) => return Err(Error::io("lock", path)(errno)),
            };
            let locked = lock.metadata().map_err(Error::io("stat", &path))?;
            // An earlier owner may have removed the file between opening and locking.
            if std::fs::metadata(&path).is_ok_and(|named| named.ino() == locked.ino()) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for HostFenceOwner {
    fn drop(&mut self) {
        // One that stays is locked anew by the next.
        let _ = std::fs::remove_file(&self.path);
    }
}
