//! Taking an existing namespace (a container's, a pod's) into custody: pin it, fence it, add what it lacks.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::fence::{CounterSocket, InnerFence, LogPrefix};
use crate::links::Lacking;
use crate::nf_log::{self, LoggingOn};
use crate::sandbox::{self, Fenced, Spec};
use crate::state::{Claim, Guard, Record, RecordedNamespace, StateDir};
use crate::{Error, Kind, LogToken, NamespaceId, SandboxName, enter, namespace, removal};

/// An existing network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// That of a process, in the host's pids.
    Pid(u32),
    /// That a path leads to: `/run/netns/NAME`, `/proc/<pid>/ns/net`, a container runtime's file.
    Path(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(out, "the network of process {pid}"),
            Self::Path(path) => write!(out, "{}", path.display()),
        }
    }
}

impl Target {
    /// Opens the namespace, which is neither the host's nor something else than a network namespace.
    fn open(&self) -> Result<(OwnedFd, RecordedNamespace), Error> {
        let path = match self {
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
            Self::Path(path) => path.clone(),
        };
        let netns = namespace::open(&path)?.ok_or_else(|| Error::NotANamespace(self.to_string()))?;
        let id = NamespaceId::of_fd(netns.as_fd())?;
        // Init's cannot be looked at where even root may not trace it; then it is not ours to enter either.
        if ["/proc/self/ns/net", "/proc/1/ns/net"]
            .map(|hosts| NamespaceId::of_path(hosts).ok())
            .contains(&Some(id))
        {
            return Err(Error::HostNamespace(self.to_string()));
        }
        let cookie = namespace::cookie(netns.as_fd())?;
        Ok((netns, RecordedNamespace { id, cookie }))
    }
}

/// Fences `target` as sandbox `spec.name`.
///
/// If a dead owner had attached the same namespace under the same name, its fence is taken over and replaced in one
/// transaction, so that what runs inside is never without.
pub(crate) fn attach(state: &StateDir, spec: &Spec, target: &Target) -> Result<(Claim, Fenced), Error> {
    let (netns, namespace) = target.open()?;
    let (claim, inherited) = claim(state, &spec.name, namespace)?;
    match fence(spec, &claim, &netns, namespace, inherited) {
        Ok((token, counting, logging)) => {
            Ok((claim, Fenced { token, counting, netns, id: namespace.id, logging }))
        }
        Err(error) => {
            // What was fenced before stays fenced: giving up the claim leaves it to the next attempt.
            if inherited.is_none() {
                removal::give_up(state, claim);
            }
            Err(error)
        }
    }
}

/// Claims the name, with what a dead owner of the same namespace had added to it.
fn claim(
    state: &StateDir,
    name: &SandboxName,
    namespace: RecordedNamespace,
) -> Result<(Claim, Option<Lacking>), Error> {
    let guard = state.lock()?;
    refuse_if_taken(&guard, name, namespace)?;
    if let Some(claim) = guard.claim(name)? {
        return Ok((claim, None));
    }
    let same = |record: &Record| record.kind == Kind::Attached && record.namespace == Some(namespace);
    if let Some(remains) = guard.take_if_ownerless(name)? {
        if let Some(record) = remains.read_record()?.filter(same) {
            return Ok((remains, Some(record.added)));
        }
        drop(guard);
        sandbox::refuse_if_kept(&remains)?;
        removal::tear_down(state, remains)?;
        if let Some(claim) = state.lock()?.claim(name)? {
            return Ok((claim, None));
        }
        return Err(state.lock()?.exists(name)?);
    }
    Err(guard.exists(name)?)
}

/// Two sandboxes in one namespace would replace each other's fence.
fn refuse_if_taken(guard: &Guard<'_>, name: &SandboxName, namespace: RecordedNamespace) -> Result<(), Error> {
    for other in guard.names()?.into_iter().filter(|other| other != name) {
        if guard.read_record(&other)?.is_some_and(|record| record.namespace == Some(namespace)) {
            return Err(Error::AttachedAlready(other));
        }
    }
    Ok(())
}

fn fence(
    spec: &Spec,
    claim: &Claim,
    netns: &OwnedFd,
    namespace: RecordedNamespace,
    inherited: Option<Lacking>,
) -> Result<(LogToken, CounterSocket, Option<LoggingOn>), Error> {
    let token = LogToken::random()?;
    let logging = nf_log::HOST.ensure_for(spec.log_limit.into)?;
    let proxy = spec.proxy_address.ip();
    let prefix = LogPrefix::inner(&spec.name, token);
    let fence = InnerFence { proxy, prefix, limit: spec.log_limit, has_links: true };
    let path = claim.netns_path();
    let mut record = Record::new(Kind::Attached, token, spec.proxy_address)?;
    record.kept = spec.kept;
    record.namespace = Some(namespace);
    let counting = enter::inside(netns.as_fd(), || {
        let lacking = Lacking::in_own_namespace(proxy)?;
        // Noted before anything is changed, so that a successor knows what is ours.
        record.added = lacking.with(inherited.unwrap_or_default());
        claim.write_record(&record)?;
        if inherited.is_none() {
            namespace::pin_own(&path)?;
        }
        // First the fence: a route added before it would be a way out for a moment.
        fence.replace_in_own()?;
        lacking.add(proxy)?;
        sandbox::open_counting()
    })??;
    Ok((token, counting, logging))
}
