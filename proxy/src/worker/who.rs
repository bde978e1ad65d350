//! Who is behind a connection: asked once per connection, in place when that takes microseconds, otherwise by waiting
//! for the scanner.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::session::Session;
use super::{Core, Message};
use crate::event::ProcessView;
use crate::identity::{Digest, Identity, Need, Process, Protocol, Query, Quick, Resolver};
use crate::policy::{Asker, BinaryFacts, BinarySet, Policy, Program};
use crate::sandbox::Sandbox;

/// What is known of a program, to be judged by whichever policy is in force.
#[derive(Clone)]
pub(super) struct Facts {
    identity: Arc<Identity>,
    /// What was asked to find out.
    query: Query,
    digest: Option<Digest>,
    /// The hash has been waited for, whatever came of it.
    hashed: bool,
}

/// Processes kept in words per worker.
const NAMED_MAX: usize = 32;

/// A caller as policy and events need it.
#[derive(Clone)]
pub(super) struct Caller {
    facts: Facts,
    named: Option<Rc<Named>>,
    set: Option<Rc<BinarySet>>,
    sha256: Option<String>,
}

/// A process in the words of events, and what it was classified as last: most connections come from the process that
/// made the one before.
struct Named {
    process: Arc<Process>,
    exe: String,
    ancestors: Vec<String>,
    set: RefCell<Option<(Option<Digest>, Rc<BinarySet>)>>,
}

/// The processes that connected last; the latest first.
#[derive(Default)]
pub(crate) struct Callers(RefCell<VecDeque<Rc<Named>>>);

impl Callers {
    fn named(&self, process: &Arc<Process>) -> Rc<Named> {
        let mut known = self.0.borrow_mut();
        let same = |named: &Rc<Named>| Arc::ptr_eq(&named.process, process);
        let named = match known.iter().position(same) {
            Some(0) => return Rc::clone(&known[0]),
            Some(at) => known.remove(at),
            None => None,
        };
        let named = named.unwrap_or_else(|| Rc::new(Named::new(process)));
        known.push_front(Rc::clone(&named));
        known.truncate(NAMED_MAX);
        named
    }
}

impl Named {
    fn new(process: &Arc<Process>) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Self {
            exe: text(&process.exe),
            ancestors: process.ancestors.iter().map(|path| text(path)).collect(),
            process: Arc::clone(process),
            set: RefCell::new(None),
        }
    }

    /// What the policy makes of it.
    fn classified(&self, policy: &Policy, digest: Option<Digest>) -> Option<Rc<BinarySet>> {
        let mut last = self.set.borrow_mut();
        if let Some((with, set)) = &*last
            && *with == digest
            && policy.understands(set)
        {
            return Some(Rc::clone(set));
        }
        let set = Rc::new(classify(policy, &self.process, digest.as_ref())?);
        *last = Some((digest, Rc::clone(&set)));
        Some(set)
    }
}

impl<C> Session<C> {
    /// Has this session's watch stand for its caller, who was found out by another session of the same connection.
    pub(super) fn stand_for_caller(&self) {
        if let Some(caller) = &self.caller {
            self.watch.standing.set_who(caller.facts.clone());
        }
    }

    /// Finds out who is asking, unless that is known well enough for the policy, or not wanted.
    pub(super) async fn identify(&mut self, policy: &Policy) {
        let need = need_of(policy);
        let known = self.caller.take().filter(|caller| caller.facts.query.need >= need);
        let mut news = known.is_none();
        let mut caller = if let Some(caller) = known {
            caller
        } else {
            let Some(resolver) = self.sandbox.resolver().cloned() else { return };
            let query = Query { protocol: Protocol::Tcp, client: self.peer, proxy: self.local, need };
            let Some(mut identity) = self.core.ask_who(&resolver, &query).await else { return };
            // Asked after the lookup: a connection that still stands has had these ends all the time. Of one that was
            // reset, another program may have taken them.
            if need == Need::Proof && !self.watch.client_is_connected() {
                identity = identity.doubted();
            }
            Caller::new(Facts { identity, query, digest: None, hashed: false }, &self.core.callers)
        };
        if self.core.hash(&mut caller.facts, self.sandbox.shared_name(), policy).await {
            caller.sha256 = caller.facts.digest.map(|digest| digest.to_string());
            // The set was made without it.
            caller.set = None;
            news = true;
        }
        if news {
            self.watch.standing.set_who(caller.facts.clone());
        }
        caller.classify(policy);
        self.caller = Some(caller);
    }
}

/// How much an identity has to stand up to.
fn need_of(policy: &Policy) -> Need {
    if policy.names_binaries() { Need::Proof } else { Need::Name }
}

impl Core {
    /// Has the program's image hashed: waiting for it where the policy pins a hash, else on the side, for events to come.
    /// Says whether there is a hash that was not there before.
    async fn hash(&self, facts: &mut Facts, sandbox: &Arc<str>, policy: &Policy) -> bool {
        let pinned = policy.pins_hashes();
        if facts.digest.is_some() || !(pinned || self.hash_always) {
            return false;
        }
        let Some(process) = facts.identity.proven().filter(|process| process.image.is_some()).cloned() else {
            return false;
        };
        facts.digest = self.images.known(&process);
        if facts.digest.is_none() && pinned {
            let (number, answer) = self.hashes.open();
            let sender = self.sender.clone();
            let done = move |digest: Result<Digest, _>| sender.send(Message::Hashed(number, digest.ok()));
            self.images.request(sandbox, &process, done);
            facts.digest = answer.await.ok().flatten();
            facts.hashed = true;
        } else if facts.digest.is_none() {
            self.images.request(sandbox, &process, |_| {});
        }
        facts.digest.is_some()
    }

    /// Finds out what an open connection's new policy wants to know beyond what the one before did.
    pub(super) async fn ask_again(&self, sandbox: &Sandbox, policy: &Policy, mut facts: Facts) -> Facts {
        let query = Query { need: need_of(policy), ..facts.query };
        if facts.lacks_proof(policy) {
            let identity = match sandbox.resolver() {
                Some(resolver) => self.ask_who(resolver, &query).await,
                None => None,
            };
            // Nobody answering is an answer: what was known is no proof.
            let identity = identity.unwrap_or_else(|| {
                Arc::new(Identity { ambiguous: true, ..Identity::clone(&facts.identity) })
            });
            facts = Facts { identity, query, digest: None, hashed: false };
        }
        self.hash(&mut facts, sandbox.shared_name(), policy).await;
        facts.hashed |= policy.pins_hashes();
        facts
    }
}

impl Facts {
    /// Whether the policy names programs, and this was asked for one that does not.
    pub(super) fn lacks_proof(&self, policy: &Policy) -> bool {
        self.query.need < need_of(policy)
    }

    /// Whether the policy pins hashes, and this program's has not been asked for.
    pub(super) fn lacks_hash(&self, policy: &Policy) -> bool {
        policy.pins_hashes() && self.digest.is_none() && !self.hashed && self.identity.proven().is_some()
    }

    /// Whether several programs may be asking.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.identity.ambiguous
    }

    /// What the policy makes of the program.
    pub(super) fn classify(&self, policy: &Policy) -> Option<BinarySet> {
        classify(policy, self.identity.proven()?, self.digest.as_ref())
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
    fn new(facts: Facts, callers: &Callers) -> Self {
        let named = facts.identity.process.as_ref().map(|process| callers.named(process));
        Self { named, set: None, sha256: None, facts }
    }

    /// Sees to it that the set fits the policy in force.
    fn classify(&mut self, policy: &Policy) {
        if self.set.as_ref().is_some_and(|set| policy.understands(set)) {
            return;
        }
        let proven = self.named.as_ref().filter(|_| !self.facts.identity.ambiguous);
        self.set = proven.and_then(|named| named.classified(policy, self.facts.digest));
    }

    /// As the policy asks.
    pub(super) fn asker(&self) -> Asker<'_> {
        match &self.set {
            Some(set) => Asker::Known(set),
            None if self.facts.identity.ambiguous => Asker::Ambiguous,
            None => Asker::Unknown,
        }
    }

    /// As events show it.
    pub(super) fn view(&self) -> Option<ProcessView<'_>> {
        let named = self.named.as_deref()?;
        let process = &named.process;
        Some(ProcessView {
            pid: process.pid,
            exe: Some(&named.exe),
            sha256: self.sha256.as_deref(),
            comm: Some(&process.comm),
            ancestors: &named.ancestors,
        })
    }

    /// The program's path.
    pub(super) fn exe(&self) -> Option<&str> {
        self.named.as_ref().map(|named| named.exe.as_str())
    }

    /// The user.
    pub(super) fn uid(&self) -> Option<u32> {
        self.facts.identity.process.as_ref().map(|process| process.uid).or(self.facts.identity.uid)
    }

    /// How it is known.
    pub(super) fn source(&self) -> &'static str {
        self.facts.identity.source.label()
    }

    /// What every source said.
    pub(super) fn trail(&self) -> String {
        self.facts.identity.trail.to_string()
    }
}

/// Ancestors are known by path alone: a pinned hash speaks for the program itself.
fn classify(policy: &Policy, process: &Process, digest: Option<&Digest>) -> Option<BinarySet> {
    let ancestors: Vec<_> =
        process.ancestors.iter().map(|path| Program { path: path.as_path(), sha256: None }).collect();
    let exe = Program { path: process.exe_for_policy()?, sha256: digest.map(|digest| &digest.0) };
    Some(policy.classify(&BinaryFacts { exe, ancestors: &ancestors }))
}
