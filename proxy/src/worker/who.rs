//! Who is behind a connection: asked once per connection, in place when that takes microseconds, otherwise by waiting
//! for the scanner.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::session::Session;
use super::{Core, Message};
use crate::event::ProcessView;
use crate::identity::{Digest, Identity, Need, Process, Protocol, Query, Quick, Resolver, Source};
use crate::policy::{Asker, BinaryFacts, BinarySet, Policy, Program};

/// A caller as policy and events need it.
pub(super) struct Caller {
    identity: Arc<Identity>,
    set: Option<BinarySet>,
    exe: Option<String>,
    ancestors: Vec<String>,
    trail: String,
    digest: Option<Digest>,
    sha256: Option<String>,
}

impl<C> Session<C> {
    /// Finds out who is asking, unless that is known or not wanted.
    pub(super) async fn identify(&mut self, policy: &Policy) {
        if let Some(mut caller) = self.caller.take() {
            self.hash(&mut caller, policy).await;
            caller.classify(policy);
            self.caller = Some(caller);
            return;
        }
        let Some(resolver) = self.sandbox.resolver().cloned() else { return };
        let need = if policy.names_binaries() { Need::Proof } else { Need::Name };
        let query = Query { protocol: Protocol::Tcp, client: self.peer, proxy: self.local, need };
        if let Some(identity) = self.core.ask_who(&resolver, &query).await {
            let mut caller = Caller::new(identity);
            self.hash(&mut caller, policy).await;
            caller.classify(policy);
            self.caller = Some(caller);
        }
    }
}

impl<C> Session<C> {
    /// Has the program's image hashed: waiting for it where the policy pins a hash, else on the side, for events to come.
    async fn hash(&self, caller: &mut Caller, policy: &Policy) {
        let pinned = policy.pins_hashes();
        if caller.digest.is_some() || !(pinned || self.core.hash_always) {
            return;
        }
        let Some(process) = caller.identity.proven().filter(|process| process.image.is_some()).cloned()
        else {
            return;
        };
        caller.set_digest(self.core.images.known(&process));
        if caller.digest.is_some() {
            return;
        }
        let name = self.sandbox.shared_name();
        if !pinned {
            return self.core.images.request(name, &process, |_| {});
        }
        let (number, answer) = self.core.hashes.open();
        let sender = self.core.sender.clone();
        self.core
            .images
            .request(name, &process, move |digest| sender.send(Message::Hashed(number, digest.ok())));
        caller.set_digest(answer.await.ok().flatten());
    }
}

impl Core {
    async fn ask_who(&self, resolver: &Resolver, query: &Query) -> Option<Arc<Identity>> {
        let began = Instant::now();
        let identity = match resolver.quick(query) {
            Quick::Known(identity) => {
                self.measures.identity_hits.increment(1);
                identity
            }
            Quick::NeedsScan(ticket) => {
                self.measures.identity_scans.increment(1);
                let (number, answer) = self.scans.open();
                let sender = self.sender.clone();
                self.scanner
                    .submit(ticket, move |identity| sender.send(Message::Identified(number, identity)));
                answer.await.ok()?
            }
        };
        self.measures.identified(identity.source.label(), began.elapsed().as_secs_f64());
        Some(identity)
    }
}

impl Caller {
    fn new(identity: Arc<Identity>) -> Self {
        let process = identity.process.as_deref();
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Self {
            exe: process.map(|process| text(&process.exe)),
            ancestors: process
                .map(|process| process.ancestors.iter().map(|path| text(path)).collect())
                .unwrap_or_default(),
            trail: identity.trail.to_string(),
            set: None,
            digest: None,
            sha256: None,
            identity,
        }
    }

    fn set_digest(&mut self, digest: Option<Digest>) {
        self.sha256 = digest.map(|digest| digest.to_string());
        self.digest = digest;
        // The set was made without it.
        self.set = None;
    }

    /// Sees to it that the set fits the policy in force.
    fn classify(&mut self, policy: &Policy) {
        if self.set.as_ref().is_some_and(|set| policy.understands(set)) {
            return;
        }
        self.set = self.identity.proven().and_then(|process| classify(policy, process, self.digest.as_ref()));
    }

    /// As the policy asks.
    pub(super) fn asker(&self) -> Asker<'_> {
        match &self.set {
            Some(set) => Asker::Known(set),
            None if self.identity.ambiguous => Asker::Ambiguous,
            None => Asker::Unknown,
        }
    }

    /// As events show it.
    pub(super) fn view(&self) -> Option<ProcessView<'_>> {
        let process = self.identity.process.as_deref()?;
        Some(ProcessView {
            pid: process.pid,
            exe: self.exe.as_deref(),
            sha256: self.sha256.as_deref(),
            comm: Some(&process.comm),
            ancestors: &self.ancestors,
        })
    }

    /// The program's path.
    pub(super) fn exe(&self) -> Option<&str> {
        self.exe.as_deref()
    }

    /// The user.
    pub(super) fn uid(&self) -> Option<u32> {
        self.identity.process.as_ref().map(|process| process.uid).or(self.identity.uid)
    }

    /// How it is known.
    pub(super) fn source(&self) -> &'static str {
        self.identity.source.label()
    }

    /// What every source said, where the first one did not know.
    pub(super) fn trail(&self) -> Option<&str> {
        (self.identity.source != Source::Witness).then_some(&self.trail)
    }
}

/// Ancestors are known by path alone: a pinned hash speaks for the program itself.
fn classify(policy: &Policy, process: &Process, digest: Option<&Digest>) -> Option<BinarySet> {
    let ancestors: Vec<_> =
        process.ancestors.iter().map(|path| Program { path: path.as_path(), sha256: None }).collect();
    let exe = Program { path: process.exe_for_policy()?, sha256: digest.map(|digest| &digest.0) };
    Some(policy.classify(&BinaryFacts { exe, ancestors: &ancestors }))
}
