//! Taking over a sandbox that was kept: its owner is gone, its namespace, its fence and what runs behind it are not.

use std::os::fd::{AsFd, OwnedFd};

use crate::fence::{InnerFence, LogPrefix};
use crate::links::Lacking;
use crate::namespace;
use crate::nf_log;
use crate::sandbox::{self, Fenced, Spec};
use crate::state::{Claim, Record, RecordedNamespace, StateDir};
use crate::{Error, Kind, NamespaceId, enter, removal};

/// A sandbox in new hands.
pub(crate) struct Adopted {
    pub(crate) kind: Kind,
    pub(crate) claim: Claim,
    pub(crate) fenced: Fenced,
    /// In what its fence was not as it should be, before it was replaced.
    pub(crate) difference: Option<String>,
}

/// Takes over what was kept under `spec.name`; `None` if nothing was.
pub(crate) fn adopt(state: &StateDir, spec: &Spec) -> Result<Option<Adopted>, Error> {
    if !state.exists() {
        return Ok(None);
    }
    let claim = {
        let guard = state.lock()?;
        if !guard.names()?.contains(&spec.name) {
            return Ok(None);
        }
        match guard.take_if_ownerless(&spec.name)? {
            Some(claim) => claim,
            None => return Err(guard.exists(&spec.name)?),
        }
    };
    // Dropping the claim gives it back untouched.
    let Some(record) = claim.read_record()? else { return Ok(None) };
    if !record.is_kept()? {
        return Ok(None);
    }
    let Some((netns, namespace)) = find(&claim, &record)? else { return Ok(None) };
    take_over(spec, claim, &record, netns, namespace).map(Some)
}

/// The very namespace of the record.
fn find(claim: &Claim, record: &Record) -> Result<Option<(OwnedFd, RecordedNamespace)>, Error> {
    let Some(netns) = removal::find_namespace(claim, record)? else { return Ok(None) };
    let id = NamespaceId::of_fd(netns.as_fd())?;
    let cookie = namespace::cookie(netns.as_fd())?;
    let same = record.namespace.is_some_and(|recorded| recorded.cookie == cookie);
    Ok(same.then_some((netns, RecordedNamespace { id, cookie })))
}

fn take_over(
    spec: &Spec,
    claim: Claim,
    old: &Record,
    netns: OwnedFd,
    namespace: RecordedNamespace,
) -> Result<Adopted, Error> {
    let proxy = spec.proxy_address.ip();
    let fence = InnerFence {
        proxy,
        prefix: LogPrefix::inner(&spec.name, old.token),
        limit: spec.log_limit,
        has_links: old.kind == Kind::Attached,
    };
    let logging = nf_log::HOST.ensure_for(spec.log_limit.into)?;
    let mut record = Record::new(old.kind, old.token, spec.proxy_address)?;
    record.created = old.created;
    record.kept = spec.kept;
    record.namespace = Some(namespace);
    let path = claim.netns_path();
    let pinned = namespace::open(&path)?.is_some();
    let (difference, counting) = enter::inside(netns.as_fd(), || {
        let lacking = Lacking::in_own_namespace(proxy)?;
        record.added = lacking.with(old.added);
        claim.write_record(&record)?;
        if !pinned {
            namespace::pin_own(&path)?;
        }
        // First the fence: a route added before it would be a way out for a moment.
        let difference = fence.check_own().err().map(|error| error.to_string());
        if difference.is_some() {
            fence.replace_in_own()?;
        }
        lacking.add(proxy)?;
        Ok::<_, Error>((difference, sandbox::open_counting()?))
    })??;
    let fenced = Fenced { token: old.token, counting, netns, id: namespace.id, logging };
    Ok(Adopted { kind: old.kind, claim, fenced, difference })
}
