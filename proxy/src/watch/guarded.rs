//! One sandbox as the bypass core sees it: what was told of it, what is held back, and what is still to be found out.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use sluice_bypass::monitor::{Moment, SourceId};
use sluice_bypass::{Attempt, Emission, Fold, Icmp, Interface, Key, Proto};
use sluice_netns::Counters;
use sluice_seccomp::{Note, Process, Proto as NotedProto, Refused, Untold};

use super::Watched;
use super::account::{Account, Missing};
use super::pending::Pending;
use super::telling::{Single, kind_of, tell, tell_violation};
use super::who::Who;
use crate::address::Guard;
use crate::event::Reporter;

/// How often the counters of a sandbox in which something happens are held against what was told, in µs. Notes of calls
/// without a line must be asked for before others take their place: half a second in the worst flood.
const LOOK_ACTIVE_US: u64 = 50_000;

/// How often those of the others are.
const LOOK_QUIET_US: u64 = 2_000_000;

/// How long a caller on a busy machine may take from its note to its packet, in ns.
const STALLED_NS_MAX: u64 = 1_000_000_000;

/// Attempts of one sandbox that wait for the list of its processes; what comes beyond is told without candidates.
const WAITING_MAX: usize = 4_096;

/// Processes whose facts are kept in the form of events.
const KNOWN_MAX: usize = 256;

/// The kinds of the fence's counters, in the order of [`kind_of`], and a protocol of each.
const KINDS: [Proto; 4] = [Proto::Tcp, Proto::Udp, Proto::Icmp, Proto::Unknown];

pub(super) struct Guarded {
    pub(super) watched: Watched,
    /// What its fence's messages are read from, if it has a source of its own.
    pub(super) source: Option<SourceId>,
    fold: Fold<Who>,
    violations: Fold<()>,
    account: Option<Account<4>>,
    host_account: Option<Account<1>>,
    next_look_us: u64,
    /// Something happened since the last look.
    active: bool,
    /// Attempts whose process is looked for elsewhere.
    pending: Pending,
    /// Attempts that wait for the processes of a user to be listed.
    waiting: HashMap<u32, Vec<Facts>>,
    /// Processes of notes, by the address of the note's own, which is held.
    known: HashMap<usize, (Arc<Process>, Who)>,
}

/// How an attempt waits for a list of processes.
pub(super) enum Waiting {
    /// As the first: the list is to be made.
    First,
    /// As another one: the list is being made.
    Too,
    /// Not at all.
    TooMany,
}

/// What of an attempt is needed once its log line is gone.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    pub(super) proto: Proto,
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) src_port: Option<u16>,
    pub(super) dst_port: Option<u16>,
    pub(super) uid: Option<u32>,
    icmp: Option<Icmp>,
    logged_us: u64,
}

impl Facts {
    pub(super) fn of(attempt: &Attempt<'_>, when: Moment) -> Self {
        Self {
            proto: attempt.proto,
            src: attempt.src,
            dst: attempt.dst,
            src_port: attempt.src_port,
            dst_port: attempt.dst_port,
            uid: attempt.uid,
            icmp: attempt.icmp,
            logged_us: when.logged_us,
        }
    }
}

#[cfg(test)]
impl Facts {
    /// For tests to which it does not matter.
    pub(super) fn of_nothing() -> Self {
        let nowhere = IpAddr::from([0; 4]);
        Self {
            proto: Proto::Tcp,
            src: nowhere,
            dst: nowhere,
            src_port: None,
            dst_port: None,
            uid: None,
            icmp: None,
            logged_us: 0,
        }
    }
}

impl Guarded {
    pub(super) fn new(watched: Watched, source: Option<SourceId>) -> Self {
        let mut guarded = Self {
            watched,
            source,
            fold: Fold::default(),
            violations: Fold::default(),
            account: None,
            host_account: None,
            next_look_us: 0,
            active: true,
            pending: Pending::default(),
            waiting: HashMap::new(),
            known: HashMap::new(),
        };
        // What was counted before, under an earlier owner, is not ours to tell.
        guarded.account = guarded.counts().map(|counts| Account::new(counts, now_us() * 1_000));
        guarded
    }

    /// A line of the fence inside has come.
    pub(super) fn line(&mut self, proto: Proto) {
        self.active = true;
        if let Some(account) = &mut self.account {
            account.tell(kind_of(proto), 1);
        }
    }

    /// The process by the witness's note of the same call.
    pub(super) fn noted(&mut self, facts: &Facts) -> Option<Who> {
        let proto = noted_proto(facts.proto)?;
        let src_port = match proto {
            NotedProto::Icmp => facts.icmp.and_then(|icmp| icmp.id),
            _ => facts.src_port,
        };
        let refused = Refused {
            proto,
            src_port,
            dst: SocketAddr::new(facts.dst, facts.dst_port.unwrap_or(0)),
            logged_ns: facts.logged_us.saturating_mul(1_000),
        };
        let found = self.watched.notes.as_ref()?.join(&refused)?;
        Some(self.who(&found.note))
    }

    fn who(&mut self, note: &Note) -> Who {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        let process = &note.process;
        let entry = self.known.entry(Arc::as_ptr(process).addr());
        entry.or_insert_with(|| (Arc::clone(process), Who::noted(process))).1.clone()
    }

    /// Reports `facts` as the act of `who`, or counts them as a repetition.
    pub(super) fn settle(&mut self, reporter: &Reporter, guard: &ArcSwap<Guard>, facts: Facts, who: Who) {
        self.count_told(&who, 1);
        let key = Key { process: who, dst: facts.dst, dst_port: facts.dst_port, proto: facts.proto };
        if let Some(emission) = self.fold.add(facts.logged_us, key, 1) {
            let single = Single { src_port: facts.src_port, uid: facts.uid, icmp: facts.icmp };
            tell(reporter, guard, &self.watched, &emission, single);
        }
    }

    fn count_told(&self, who: &Who, count: u64) {
        self.watched.sandbox.measures().bypass_reported(who.label(), count);
    }

    /// Holds an attempt until its process is found out, under the number that is given: it is told as the act of
    /// `otherwise` if that takes too long. `None`, and told at once, when too many wait.
    pub(super) fn hold(
        &mut self,
        reporter: &Reporter,
        guard: &ArcSwap<Guard>,
        facts: Facts,
        otherwise: Who,
    ) -> Option<u64> {
        let number = self.pending.hold(facts, otherwise.clone(), now_us());
        if number.is_none() {
            self.settle(reporter, guard, facts, otherwise);
        }
        number
    }

    /// The attempt held under `number`, and whose act it is otherwise; `None` when it was told meanwhile.
    pub(super) fn held(&mut self, number: u64) -> Option<(Facts, Who)> {
        self.pending.take(number)
    }

    /// Lets an attempt wait for the processes of `uid` to be listed.
    pub(super) fn wait_for(&mut self, uid: u32, facts: Facts) -> Waiting {
        let waiting = self.waiting.entry(uid).or_default();
        if waiting.len() >= WAITING_MAX {
            return Waiting::TooMany;
        }
        waiting.push(facts);
        if waiting.len() == 1 { Waiting::First } else { Waiting::Too }
    }

    /// The attempts that waited for the processes of `uid`.
    pub(super) fn waiting(&mut self, uid: u32) -> Vec<Facts> {
        self.waiting.remove(&uid).unwrap_or_default()
    }

    /// A line of the fence on the host's side has come.
    pub(super) fn violation(&mut self, reporter: &Reporter, facts: &Facts, link: Interface<'_>) {
        if let Some(account) = &mut self.host_account {
            account.tell(0, 1);
        }
        let key = Key { process: (), dst: facts.dst, dst_port: facts.dst_port, proto: facts.proto };
        if let Some(emission) = self.violations.add(facts.logged_us, key, 1) {
            tell_violation(reporter, &self.watched, &emission, Some((facts.src, facts.src_port, link)));
        }
    }

    /// What the host's fence has dropped of the sandbox until now is nobody's business any more.
    pub(super) fn begin_host_account(&mut self, dropped: u64) {
        self.host_account = Some(Account::new([dropped], now_us() * 1_000));
    }

    /// Holds what the host's fence dropped against what was told of it.
    pub(super) fn look_at_host(&mut self, dropped: u64, now_us: u64) {
        let at_ns = now_us.saturating_mul(1_000);
        let account = self.host_account.get_or_insert_with(|| Account::new([dropped], at_ns));
        let [count] = account.look([dropped], at_ns).counts;
        account.tell(0, count);
        self.violations.add_other(now_us, None, Proto::Unknown, count);
    }

    pub(super) fn look_soon(&mut self) {
        self.active = true;
        self.next_look_us = 0;
    }

    /// What is to be done for the sandbox from time to time.
    pub(super) fn round(&mut self, reporter: &Reporter, guard: &ArcSwap<Guard>, now_us: u64) {
        if now_us >= self.next_look_us {
            self.active |= self.watched.notes.as_ref().is_some_and(|notes| notes.refresh());
            self.look(reporter, guard);
            let pause = if std::mem::take(&mut self.active) { LOOK_ACTIVE_US } else { LOOK_QUIET_US };
            self.next_look_us = now_us + pause;
        }
        while let Some((facts, otherwise)) = self.pending.take_overdue(now_us) {
            self.settle(reporter, guard, facts, otherwise);
        }
        self.fold.expire(now_us, |emission| {
            tell(reporter, guard, &self.watched, &emission, Single::default());
        });
        self.violations.expire(now_us, |emission| tell_violation(reporter, &self.watched, &emission, None));
    }

    /// Holds the fence's counters against what was told, and tells what is missing.
    pub(super) fn look(&mut self, reporter: &Reporter, guard: &ArcSwap<Guard>) {
        let (Some(counts), Some(account)) = (self.counts(), &mut self.account) else { return };
        let missing = account.look(counts, now_us() * 1_000);
        for (kind, proto) in KINDS.into_iter().enumerate() {
            let count = missing.counts.get(kind).copied().unwrap_or_default();
            if count > 0 {
                self.active = true;
                self.tell_missing(reporter, guard, proto, count, &missing);
                if let Some(account) = &mut self.account {
                    account.tell(kind, count);
                }
            }
        }
    }

    /// Tells `count` packets that left no line: those that a note speaks for, and the rest as nobody's.
    fn tell_missing(
        &mut self,
        reporter: &Reporter,
        guard: &ArcSwap<Guard>,
        proto: Proto,
        count: u64,
        missing: &Missing<4>,
    ) {
        let mut notes = Vec::new();
        if let (Some(own), Some(noted)) = (&self.watched.notes, noted_proto(proto)) {
            let untold = Untold {
                proto: noted,
                count,
                after_ns: missing.after_ns.saturating_sub(STALLED_NS_MAX),
                before_ns: missing.before_ns,
                proxy: self.watched.proxy_address.ip(),
            };
            own.settle(&untold, |note| notes.push(Arc::clone(note)));
        }
        let left = count.saturating_sub(notes.len() as u64);
        for note in notes {
            let who = self.who(&note);
            let uid = Some(note.process.uid);
            let icmp = (proto == Proto::Icmp).then_some(Icmp {
                kind: Icmp::ECHO_REQUEST,
                code: 0,
                id: note.src_port,
            });
            let proto = match (proto, note.dst.is_ipv6()) {
                (Proto::Icmp, true) => Proto::Icmpv6,
                (proto, _) => proto,
            };
            let dst_port = (note.proto != NotedProto::Icmp).then_some(note.dst.port());
            let (src_port, logged_us) = (note.src_port, note.time_ns / 1_000);
            // Where from is not known, nor needed.
            let (src, dst) = (note.dst.ip(), note.dst.ip());
            let facts = Facts { proto, src, dst, src_port, dst_port, uid, icmp, logged_us };
            self.settle(reporter, guard, facts, who);
        }
        if left > 0 {
            let who = self.only_sender(proto);
            self.count_told(who.as_ref().unwrap_or(&Who::Nobody), left);
            self.fold.add_other(now_us(), who, proto, left);
        }
    }

    /// The process whose attempts of this protocol are the only ones of late: packets of its connected sockets are not
    /// noted one by one. Attempts that may have been its own do not speak against it.
    fn only_sender(&self, proto: Proto) -> Option<Who> {
        let senders =
            || self.fold.keys().filter(|key| kind_of(key.proto) == kind_of(proto)).map(|key| &key.process);
        let sender = senders().find(|who| who.known().is_some())?;
        senders().all(|who| who.may_be(sender)).then(|| sender.clone())
    }

    /// Reports what is held back.
    pub(super) fn flush(&mut self, reporter: &Reporter, guard: &ArcSwap<Guard>) {
        let waiting: Vec<Facts> = self.waiting.drain().flat_map(|(_, waiting)| waiting).collect();
        for facts in waiting {
            self.settle(reporter, guard, facts, Who::Nobody);
        }
        for (facts, otherwise) in self.pending.drain() {
            self.settle(reporter, guard, facts, otherwise);
        }
        self.fold.flush(|emission: Emission<Who>| {
            tell(reporter, guard, &self.watched, &emission, Single::default());
        });
        self.violations.flush(|emission| tell_violation(reporter, &self.watched, &emission, None));
    }

    fn counts(&self) -> Option<[u64; 4]> {
        match self.watched.counters.as_ref()?.read() {
            Ok(Some(Counters { tcp, udp, icmp, other, .. })) => {
                Some([tcp, udp, icmp, other].map(|traffic| traffic.packets))
            }
            // Somebody with power over the namespace took the fence away; whoever watches over that says so.
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, sandbox = self.watched.sandbox.name(), "the fence's counters cannot be read");
                None
            }
        }
    }
}

fn noted_proto(proto: Proto) -> Option<NotedProto> {
    match proto {
        Proto::Tcp => Some(NotedProto::Tcp),
        // UDP-Lite is told under its own name and noted as UDP.
        Proto::Udp | Proto::Other(136) => Some(NotedProto::Udp),
        Proto::Icmp | Proto::Icmpv6 => Some(NotedProto::Icmp),
        Proto::Other(_) | Proto::Unknown => None,
    }
}

/// CLOCK_MONOTONIC in µs.
pub(super) fn now_us() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1_000)
}
