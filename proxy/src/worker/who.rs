//! Who is behind a connection: asked once per connection, in place when that takes microseconds, otherwise by waiting
//! for the scanner.

use std::path::Path;
use std::sync::Arc;

use super::session::Session;
use super::{Core, Message};
use crate::event::ProcessView;
use crate::identity::{Identity, Need, Process, Protocol, Query, Quick, Resolver, Source};
use crate::policy::{Asker, BinaryFacts, BinarySet, Policy, Program};

/// A caller as policy and events need it.
pub(super) struct Caller {
    identity: Arc<Identity>,
    set: Option<BinarySet>,
    exe: Option<String>,
    ancestors: Vec<String>,
    trail: String,
}

impl Session {
    /// Finds out who is asking, unless that is known or not wanted.
    pub(super) async fn identify(&mut self, policy: &Policy) {
        if let Some(caller) = &mut self.caller {
            return caller.classify(policy);
        }
        let Some(resolver) = self.sandbox.resolver().cloned() else { return };
        let need = if policy.names_binaries() { Need::Proof } else { Need::Name };
        let query = Query { protocol: Protocol::Tcp, client: self.peer, proxy: self.local, need };
        if let Some(identity) = self.core.ask_who(&resolver, &query).await {
            let mut caller = Caller::new(identity);
            caller.classify(policy);
            self.caller = Some(caller);
        }
    }
}

impl Core {
    async fn ask_who(&self, resolver: &Resolver, query: &Query) -> Option<Arc<Identity>> {
        let ticket = match resolver.quick(query) {
            Quick::Known(identity) => return Some(identity),
            Quick::NeedsScan(ticket) => ticket,
        };
        let (number, answer) = self.scans.open();
        let sender = self.sender.clone();
        self.scanner.submit(ticket, move |identity| sender.send(Message::Identified(number, identity)));
        answer.await.ok()
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
            identity,
        }
    }

    /// Sees to it that the set fits the policy in force.
    fn classify(&mut self, policy: &Policy) {
        if self.set.as_ref().is_some_and(|set| policy.understands(set)) {
            return;
        }
        self.set = self.identity.proven().and_then(|process| classify(policy, process));
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
            sha256: None,
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

fn classify(policy: &Policy, process: &Process) -> Option<BinarySet> {
    let program = |path| Program { path, sha256: None };
    let ancestors: Vec<_> = process.ancestors.iter().map(|path| program(path.as_path())).collect();
    Some(policy.classify(&BinaryFacts { exe: program(process.exe_for_policy()?), ancestors: &ancestors }))
}
