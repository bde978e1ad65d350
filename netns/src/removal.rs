//! Removing a sandbox: the same steps for an owner that is done and for a sweeper after one that died.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use crate::state::{Claim, Record, RecordedNamespace, StateDir, boot_id};
use crate::{Error, Kind, NamespaceId, enter, fence, namespace, processes};

/// Ends and removes the sandbox behind `claim`. Returns how many processes were killed.
///
/// On failure the claim is given up but its directory stays, so that the next sweep tries again.
pub(crate) fn tear_down(state: &StateDir, claim: Claim) -> Result<usize, Error> {
    let killed = match claim.read_record()? {
        Some(record) => leave_namespace(&claim, &record)?,
        // The owner died before it noted anything, hence before anything could run inside or be changed there.
        None => 0,
    };
    namespace::unpin(&claim.netns_path())?;
    state.lock()?.retire(claim)?;
    Ok(killed)
}

/// Removes a sandbox that could not be finished.
pub(crate) fn give_up(state: &StateDir, claim: Claim) {
    if let Err(error) = tear_down(state, claim) {
        tracing::error!(%error, "cannot remove a half-made sandbox; the next sweep tries again");
    }
}

fn leave_namespace(claim: &Claim, record: &Record) -> Result<usize, Error> {
    let Some(netns) = find_namespace(claim, record)? else { return Ok(0) };
    match record.kind {
        Kind::Made => processes::kill_all(claim.name(), NamespaceId::of_fd(netns.as_fd())?),
        Kind::Attached => {
            let (added, proxy) = (record.added, record.proxy_address.ip());
            enter::inside(netns.as_fd(), || {
                fence::remove_inner_from_own()?;
                added.remove(proxy)
            })??;
            Ok(0)
        }
    }
}

/// Whether `claim` is of an attached namespace in which processes still run. Removing its fence would set them
/// free, which only an owner may decide.
pub(crate) fn fences_living_processes(claim: &Claim) -> Result<bool, Error> {
    let Some(record) = claim.read_record()?.filter(|record| record.kind == Kind::Attached) else {
        return Ok(false);
    };
    let Some(netns) = find_namespace(claim, &record)? else { return Ok(false) };
    Ok(!processes::in_namespace(NamespaceId::of_fd(netns.as_fd())?)?.is_empty())
}

/// Whether no process is in the namespace of `claim`.
pub(crate) fn is_empty(claim: &Claim) -> Result<bool, Error> {
    let Some(record) = claim.read_record()? else { return Ok(true) };
    let Some(netns) = find_namespace(claim, &record)? else { return Ok(true) };
    Ok(processes::in_namespace(NamespaceId::of_fd(netns.as_fd())?)?.is_empty())
}

pub(crate) fn find_namespace(claim: &Claim, record: &Record) -> Result<Option<OwnedFd>, Error> {
    match namespace::open(&claim.netns_path())? {
        Some(pinned) => Ok(Some(pinned)),
        None => find_unpinned(record),
    }
}

/// The namespace of a record whose mount is gone (it was made in a mount namespace that has ended) but in which
/// processes still run. The inode finds candidates; only the cookie proves that it is the same namespace.
fn find_unpinned(record: &Record) -> Result<Option<OwnedFd>, Error> {
    let Some(RecordedNamespace { id, cookie }) = record.namespace else { return Ok(None) };
    if boot_id().map_err(Error::io("read", crate::state::BOOT_ID))? != record.boot {
        return Ok(None);
    }
    for pid in processes::in_namespace(id)? {
        let Ok(netns) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
        let same = NamespaceId::of_fd(netns.as_fd())? == id && namespace::cookie(netns.as_fd())? == cookie;
        return Ok(same.then(|| netns.into()));
    }
    Ok(None)
}
