//! What is open under an earlier policy, judged again under the new one.
//!
//! Every connection keeps a [`Standing`]: what it does, where to, and under which version of its sandbox' policy that
//! was granted. When a policy has been swapped, [`Core::rejudge`] walks over the worker's connections in short slices
//! and asks the new policy the old question. What it still allows goes on and notices nothing. A tunnel that it denies
//! is ended at once; a request under way may finish within [`REQUEST_GRACE`], so that no answer is lost to a reload. An
//! idle connection holds nothing to judge: its next request is judged like any other.
//!
//! What is being set up meanwhile has nothing to judge yet: a CONNECT (`connect.rs`, `open`) and a request (`forward.rs`,
//! `try_request`) compare versions themselves before anything flows.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Core;
use super::watchdog::{Cause, Watch};
use super::who::Facts;
use crate::destination::Destination;
use crate::policy::{self, Ask, Asker, Policy, Protocol, Request, Sni};
use crate::sandbox::Sandbox;

/// How long the worker may be busy with re-decisions before its connections get their turn.
const SLICE: Duration = Duration::from_micros(250);
/// The turn they get: the shortest time the runtime's timer knows.
const TURN: Duration = Duration::from_millis(1);
/// How long a request that a new policy denies may go on.
pub(super) const REQUEST_GRACE: Duration = Duration::from_secs(5);

/// What one connection does, and what that was granted under.
#[derive(Default)]
pub(super) struct Standing(RefCell<State>);

#[derive(Default)]
struct State {
    doing: Doing,
    /// The policy's version that granted it.
    version: u64,
    destination: Option<Destination>,
    address: Option<SocketAddr>,
    asked: Asked,
    who: Option<Facts>,
    /// Tells one request of a connection from the next.
    serial: u64,
    /// Why the new policy ended it.
    verdict: Option<Box<str>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Doing {
    /// Nothing that was granted.
    #[default]
    Nothing,
    /// Raw bytes; whether the name in their TLS is held against the host.
    Tunnel { screened: bool },
    /// A tunnel whose requests are judged one by one.
    Inspected,
    /// A request; whether it is in an inspected tunnel.
    Request { inside: bool },
    /// Raw bytes after a request for another protocol.
    Switched,
}

/// The request under way, in memory that is used again.
#[derive(Default)]
struct Asked {
    octets: Vec<u8>,
    method_octets: usize,
    path_octets: usize,
    has_query: bool,
}

impl Asked {
    fn set(&mut self, request: &Request<'_>) {
        self.octets.clear();
        self.octets.extend_from_slice(request.method);
        self.octets.extend_from_slice(request.path);
        self.octets.extend_from_slice(request.query.unwrap_or_default());
        self.method_octets = request.method.len();
        self.path_octets = request.path.len();
        self.has_query = request.query.is_some();
    }

    fn request(&self) -> Request<'_> {
        let (method, rest) = self.octets.split_at_checked(self.method_octets).unwrap_or_default();
        let (path, query) = rest.split_at_checked(self.path_octets).unwrap_or_default();
        Request { method, path, query: self.has_query.then_some(query) }
    }
}

impl Standing {
    /// A raw tunnel begins.
    pub(super) fn tunnel(&self, version: u64, to: &Destination, address: SocketAddr, screened: bool) {
        self.0.borrow_mut().begin(Doing::Tunnel { screened }, version, to, address);
    }

    /// A tunnel begins whose requests are judged.
    pub(super) fn inspected(&self, version: u64, to: &Destination, address: SocketAddr) {
        self.0.borrow_mut().begin(Doing::Inspected, version, to, address);
    }

    /// A request is sent.
    pub(super) fn request(&self, version: u64, to: &Destination, address: SocketAddr, request: &Request<'_>) {
        let mut state = self.0.borrow_mut();
        let inside = matches!(state.doing, Doing::Inspected);
        state.begin(Doing::Request { inside }, version, to, address);
        state.asked.set(request);
    }

    /// The request got another protocol: raw bytes from here on.
    pub(super) fn switched(&self) {
        self.0.borrow_mut().doing = Doing::Switched;
    }

    /// The request has come to its end.
    pub(super) fn answered(&self) {
        let mut state = self.0.borrow_mut();
        state.doing = match state.doing {
            Doing::Request { inside: true } => Doing::Inspected,
            _ => Doing::Nothing,
        };
    }

    /// Who asks; known from the first question on.
    pub(super) fn set_who(&self, who: Facts) {
        self.0.borrow_mut().who = Some(who);
    }

    /// Why a new policy ended the connection, if one did.
    pub(super) fn verdict(&self) -> Option<String> {
        self.0.borrow().verdict.as_deref().map(Into::into)
    }

    /// Whether what is open was granted under this version.
    fn is_of(&self, version: u64) -> bool {
        let state = self.0.borrow();
        state.doing == Doing::Nothing || state.version == version
    }
}

impl State {
    fn begin(&mut self, doing: Doing, version: u64, to: &Destination, address: SocketAddr) {
        self.doing = doing;
        self.version = version;
        self.serial = self.serial.wrapping_add(1);
        self.address = Some(address);
        if self.destination.as_ref() != Some(to) {
            self.destination = Some(to.clone());
        }
    }
}

/// What became of a connection.
enum Verdict {
    /// It goes on.
    Stays,
    /// The new policy says no; in these words.
    Denied(String),
    /// Only after asking another thread about the program.
    AskFirst,
}

/// A request that may finish, and until then is not forgotten.
type Doomed = (Arc<Sandbox>, Weak<Watch>, u64);

impl Core {
    /// Judges again what the connections of these sandboxes do, a slice at a time. Their policies have been swapped.
    pub(super) fn rejudge(self: &Rc<Self>, changed: &[Arc<Sandbox>]) {
        let entries = changed.iter().map(|sandbox| (Arc::as_ptr(sandbox).cast(), Arc::clone(sandbox)));
        self.changed.borrow_mut().extend(entries);
        if !self.rejudging.replace(true) {
            monoio::spawn(Rc::clone(self).rejudge_all());
        }
    }

    async fn rejudge_all(self: Rc<Self>) {
        loop {
            let changed = std::mem::take(&mut *self.changed.borrow_mut());
            if changed.is_empty() {
                return self.rejudging.set(false);
            }
            let stays = |sandbox: *const Sandbox, destination: &Destination, address: SocketAddr| {
                let changed = changed.get(&sandbox.cast());
                changed
                    .is_none_or(|sandbox| self.leads_somewhere(&sandbox.policy_now(), destination, address))
            };
            self.upstreams.retain(stays);
            self.dialled.retain(stays);
            self.tls_upstreams.retain(stays);
            let mut doomed = Vec::new();
            // From the end: the sweep closes gaps meanwhile, which moves entries to the front only.
            let mut at = usize::MAX;
            loop {
                let began = Instant::now();
                while began.elapsed() < SLICE {
                    let Some((index, watch)) = self.watchdog.before(at) else { break };
                    at = index;
                    if let Some(sandbox) = changed.get(&watch.owner()) {
                        doomed.extend(self.judge_again(sandbox, &watch));
                    }
                }
                self.measures.rejudge_slice.record(began.elapsed().as_secs_f64());
                if at == 0 || self.watchdog.before(at).is_none() {
                    break;
                }
                monoio::time::sleep(TURN).await;
            }
            if !doomed.is_empty() {
                monoio::spawn(Rc::clone(&self).end_doomed(doomed));
            }
        }
    }

    /// Whether anybody of the sandbox may still go where a kept connection leads. Who it is, is asked when it is used.
    fn leads_somewhere(&self, policy: &Policy, destination: &Destination, address: SocketAddr) -> bool {
        let guard = self.guard.load();
        let admits = |ip, reach| policy.leads_to(destination, ip, reach);
        guard.check(address.ip(), address.port(), admits).is_ok()
    }

    /// Judges one connection again. A request that is denied is handed back: it has some time left.
    fn judge_again(self: &Rc<Self>, sandbox: &Arc<Sandbox>, watch: &Rc<Watch>) -> Option<Doomed> {
        let version = sandbox.policy_version();
        if watch.standing.is_of(version) || watch.cause().is_some() {
            return None;
        }
        let verdict = self.verdict(&sandbox.policy_now(), &watch.standing);
        let mut state = watch.standing.0.borrow_mut();
        match (verdict, state.doing) {
            (Verdict::Stays, _) => state.version = version,
            (Verdict::AskFirst, _) => {
                let (core, sandbox, watch) = (Rc::clone(self), Arc::clone(sandbox), Rc::downgrade(watch));
                monoio::spawn(core.ask_first(sandbox, watch));
            }
            (Verdict::Denied(_), Doing::Request { .. }) => {
                return Some((Arc::clone(sandbox), Rc::downgrade(watch), state.serial));
            }
            (Verdict::Denied(why), _) => {
                state.verdict = Some(why.into());
                drop(state);
                watch.stop(Cause::PolicyChanged);
            }
        }
        None
    }

    /// What the new policy says to the old question, asked as it was.
    fn verdict(&self, policy: &Policy, standing: &Standing) -> Verdict {
        let state = standing.0.borrow();
        let (Some(destination), Some(address)) = (&state.destination, state.address) else {
            return Verdict::Stays;
        };
        let set = state.who.as_ref().and_then(|who| who.classify(policy));
        let asker = match (&set, &state.who) {
            (Some(set), _) => Asker::Known(set),
            (None, Some(who)) if who.is_ambiguous() => Asker::Ambiguous,
            (None, _) => Asker::Unknown,
        };
        let kind = match state.doing {
            Doing::Nothing => return Verdict::Stays,
            Doing::Tunnel { .. } | Doing::Inspected => policy::Kind::Connect,
            Doing::Request { .. } | Doing::Switched => policy::Kind::Request(state.asked.request()),
        };
        if state.who.as_ref().is_some_and(|who| who.lacks_proof(policy)) {
            return Verdict::AskFirst;
        }
        let permit = match self.decide(policy, &Ask { destination, asker, kind }) {
            Ok(permit) => permit,
            Err(_) if state.who.as_ref().is_some_and(|who| who.lacks_hash(policy)) => {
                return Verdict::AskFirst;
            }
            Err(deny) => return Verdict::Denied(deny.to_string()),
        };
        let checked =
            self.guard.load().check(address.ip(), address.port(), |ip, reach| permit.admits(ip, reach));
        if checked.is_err() {
            return Verdict::Denied(format!("{destination} was dialled at {address}, which is not allowed"));
        }
        match state.doing {
            Doing::Tunnel { .. } if permit.protocol() == Protocol::Http => {
                Verdict::Denied(format!("requests to {destination} are judged now"))
            }
            Doing::Tunnel { screened: false } if permit.sni() == Sni::Verify => {
                Verdict::Denied(format!("TLS to {destination} must name it now, and was not looked at"))
            }
            _ => Verdict::Stays,
        }
    }

    /// Finds out what the new policy wants to know of the program, and judges then.
    async fn ask_first(self: Rc<Self>, sandbox: Arc<Sandbox>, watch: Weak<Watch>) {
        let Some(who) = watch.upgrade().and_then(|watch| watch.standing.0.borrow().who.clone()) else {
            return;
        };
        let policy = sandbox.policy_now();
        let who = self.ask_again(&sandbox, &policy, who).await;
        // Held across a wait it would outlive the descriptors it names.
        let Some(watch) = watch.upgrade() else { return };
        watch.standing.set_who(who);
        if let Some(doomed) = self.judge_again(&sandbox, &watch) {
            drop(watch);
            self.end_doomed(vec![doomed]).await;
        }
    }

    /// Ends the requests that a new policy denies, when they have had their time; unless it has changed its mind.
    async fn end_doomed(self: Rc<Self>, doomed: Vec<Doomed>) {
        monoio::time::sleep(REQUEST_GRACE).await;
        let mut began = Instant::now();
        for (sandbox, watch, serial) in doomed {
            if began.elapsed() > SLICE {
                monoio::time::sleep(TURN).await;
                began = Instant::now();
            }
            let Some(watch) = watch.upgrade() else { continue };
            let same = {
                let state = watch.standing.0.borrow();
                state.serial == serial && matches!(state.doing, Doing::Request { .. } | Doing::Switched)
            };
            if !same || watch.cause().is_some() {
                continue;
            }
            if let Verdict::Denied(why) = self.verdict(&sandbox.policy_now(), &watch.standing) {
                watch.standing.0.borrow_mut().verdict = Some(why.into());
                watch.stop(Cause::PolicyChanged);
            }
        }
    }

    /// Whether a connection that is about to wait for its next request may do so under the policy in force; if not it is
    /// ended with the reason.
    pub(super) fn may_stay_open(self: &Rc<Self>, sandbox: &Arc<Sandbox>, watch: &Rc<Watch>) -> bool {
        let _ = self.judge_again(sandbox, watch);
        watch.cause() != Some(Cause::PolicyChanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_kept_as_it_was_asked() {
        let mut asked = Asked::default();
        for (path, query) in [("/a/b", Some("x=1")), ("/", None), ("/long/er/path", Some(""))] {
            let query = query.map(str::as_bytes);
            asked.set(&Request { method: b"POST", path: path.as_bytes(), query });
            let kept = asked.request();
            assert_eq!((kept.method, kept.path, kept.query), (&b"POST"[..], path.as_bytes(), query));
        }
    }

    #[test]
    fn a_request_inside_a_tunnel_leads_back_to_the_tunnel() {
        let standing = Standing::default();
        let to = Destination { host: crate::destination::Host::parse(b"a.example").unwrap(), port: 80 };
        let at = SocketAddr::from(([192, 0, 2, 1], 80));
        let request = Request { method: b"GET", path: b"/", query: None };
        assert!(standing.is_of(7), "nothing is open");
        standing.inspected(1, &to, at);
        standing.request(2, &to, at, &request);
        assert!(standing.is_of(2) && !standing.is_of(1));
        standing.answered();
        assert!(standing.0.borrow().doing == Doing::Inspected);
        standing.tunnel(3, &to, at, true);
        standing.answered();
        assert!(standing.is_of(0), "a tunnel that ended leaves nothing");
    }
}
