//! From a refused packet to an event that names the process: the owner's side of the bypass core.
//!
//! The life of an attempt: the core hands over a parsed log line; its tag says which sandbox and which of its fences,
//! and must carry that fence's secret. The witness's note with the same source port says which process (decision 4), or
//! else the kernel is asked whose socket it is, which for UDP still exists, and failing that the processes of the
//! packet's user are named as candidates (`who.rs`). What has to be found out elsewhere is waited for, but not for long
//! (`pending.rs`). Repetitions are folded; `telling.rs` makes the event and asks for
//! a hint and for the policy's opinion. What was refused without a line, because the log has a limit or lost records,
//! the fence's counters tell (`account.rs`), and the notes that no line has claimed say whose it was (`guarded.rs`): the
//! events of a sandbox add up to its counters.
//!
//! Everything here runs on the bypass core's thread. What needs `/proc` runs elsewhere (`errands.rs`, the identity
//! scanner) and comes back.

mod account;
mod errands;
mod guarded;
mod pending;
mod telling;
mod who;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use sluice_bypass::monitor::{Handle, Moment, SourceId};
use sluice_bypass::{Attempt, Fence, Loss, Sink, nflog};
use sluice_netns::{CounterReader, HostCounterReader, LogInto};
use sluice_seccomp::{HowStarted, Notes, how_started};

use crate::address::Guard;
use crate::event::journal::Urgency;
use crate::event::{Event, Kind, Reporter};
use crate::identity::{Identity, Need, Protocol, Query, Quick, Scanner};
use crate::sandbox::Sandbox;
use errands::Errands;
use guarded::{Facts, Guarded, Waiting};
use who::Who;

/// How often at most all sandboxes are looked at, in µs: in a flood the core is idle after every few lines.
const ROUND_US: u64 = 10_000;

/// How often the host fence's counters are held against what was told, in µs.
const HOST_LOOK_US: u64 = 1_000_000;

/// The group of the fences' NFLOG messages; in a namespace of our own nobody else has one.
const NFLOG_GROUP: u16 = 3128;

/// Where the bypass core learns of what the fences refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BypassSource {
    /// The kernel log. Needs CAP_SYSLOG, and shows in dmesg.
    #[default]
    Kmsg,
    /// Netlink messages, from each sandbox to us alone.
    Nflog,
}

impl BypassSource {
    /// Where the fences' lines are to go.
    pub fn log_into(self) -> LogInto {
        match self {
            Self::Kmsg => LogInto::Kernel,
            Self::Nflog => LogInto::Group(NFLOG_GROUP),
        }
    }

    /// Opens what the lines of the fences in the calling thread's namespace are read from, if they are not all in one
    /// place.
    pub fn open_in_own(self) -> io::Result<Option<nflog::Socket>> {
        match self {
            Self::Kmsg => Ok(None),
            Self::Nflog => nflog::Socket::open(NFLOG_GROUP).map(Some),
        }
    }
}

/// What the bypass core knows of one sandbox.
pub struct Watched {
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// The secret in the log lines of the fence inside; `None` for a sandbox that has none.
    pub token: Option<u64>,
    /// The secret in the log lines of the fence on the host's side of its links, if it has any.
    pub host_token: Option<u64>,
    /// The notes of its witnesses, if it may have any.
    pub notes: Option<Arc<Notes>>,
    /// What the fence inside has counted.
    pub counters: Option<CounterReader>,
    /// Where its fence's messages are read, if they are not in the kernel log.
    pub nflog: Option<nflog::Socket>,
    /// Where its proxy listens, for hints, and to know which calls go there.
    pub proxy_address: SocketAddr,
}

/// The owner of the bypass core's attempts.
pub struct Watch {
    reporter: Reporter,
    guard: Arc<ArcSwap<Guard>>,
    sandboxes: HashMap<Box<str>, Guarded>,
    /// Lines that bear a sandbox' name without its secret.
    impostors: metrics::Counter,
    lost: metrics::Counter,
    scanner: Arc<Scanner>,
    /// Lists the processes of sandboxes.
    errands: Errands,
    /// Reads how processes were started.
    readings: Errands,
    /// Readings that have not come back, and since when none has.
    reads_under_way: usize,
    reading_since_us: Option<u64>,
    /// What the host's fence has counted, once there is one.
    host_counters: Option<HostCounterReader>,
    next_round_us: u64,
    next_host_look_us: u64,
    /// How to come back to this thread.
    home: Option<Handle<Self>>,
}

impl Watch {
    /// A watch that reports to `reporter`.
    pub fn new(reporter: Reporter, scanner: Arc<Scanner>, guard: Arc<ArcSwap<Guard>>) -> io::Result<Self> {
        Ok(Self {
            reporter,
            guard,
            sandboxes: HashMap::new(),
            impostors: metrics::counter!("sluice_kmsg_forged_total"),
            lost: metrics::counter!("sluice_kmsg_lost_total"),
            scanner,
            errands: Errands::start()?,
            readings: Errands::start()?,
            reads_under_way: 0,
            reading_since_us: None,
            host_counters: None,
            next_round_us: 0,
            next_host_look_us: 0,
            home: None,
        })
    }

    /// Tells it how to come back to its thread.
    pub fn set_home(&mut self, home: Handle<Self>) {
        self.home = Some(home);
    }

    /// Watches a sandbox from now on. Before its workload starts.
    pub fn add(&mut self, mut watched: Watched) {
        let socket = watched.nflog.take().zip(self.home.as_ref());
        let source = socket.and_then(|(socket, home)| home.watch(socket).ok());
        if watched.host_token.is_some() && self.host_counters.is_none() {
            self.host_counters = HostCounterReader::open()
                .inspect_err(|error| tracing::error!(%error, "violations are told from log lines alone"))
                .ok();
        }
        let name: Box<str> = watched.sandbox.name().into();
        let has_link = watched.host_token.is_some();
        let mut guarded = Guarded::new(watched, source);
        // What was dropped before is not ours to tell.
        if let Some(counters) = self.host_counters.as_ref().filter(|_| has_link) {
            match counters.read() {
                Ok(dropped) => {
                    guarded.begin_host_account(dropped.get(&*name).map_or(0, |dropped| dropped.packets));
                }
                Err(error) => tracing::warn!(%error, "the host fence's counters cannot be read"),
            }
        }
        self.sandboxes.insert(name, guarded);
    }

    /// Reports what is held back for the sandbox and forgets it. Nothing may run in it any more, and the log must have
    /// been read to its end, for its account to be whole.
    pub fn remove(&mut self, name: &str) {
        if let Some(mut guarded) = self.sandboxes.remove(name) {
            // Twice: the first look says what was missing at the one before.
            (0..2).for_each(|_| guarded.look(&self.reporter, &self.guard));
            guarded.flush(&self.reporter, &self.guard);
            if let Some((source, home)) = guarded.source.zip(self.home.as_ref()) {
                let _ = home.unwatch(source);
            }
        }
    }

    /// The same for all.
    pub fn remove_all(&mut self) {
        let names: Vec<Box<str>> = self.sandboxes.keys().cloned().collect();
        for name in names {
            self.remove(&name);
        }
    }

    /// Asks the kernel whose socket it is, and if it knows none, which processes it may have been.
    fn seek(&mut self, name: &str, facts: Facts) {
        let Some(guarded) = self.sandboxes.get_mut(name) else { return };
        let Some(resolver) = guarded.watched.sandbox.resolver().map(Arc::clone) else {
            return guarded.settle(&self.reporter, &self.guard, facts, Who::Nobody);
        };
        let protocol = match facts.proto {
            sluice_bypass::Proto::Tcp => Some(Protocol::Tcp),
            sluice_bypass::Proto::Udp => Some(Protocol::Udp),
            _ => None,
        };
        let (Some(protocol), Some(src_port), Some(dst_port)) = (protocol, facts.src_port, facts.dst_port)
        else {
            return self.name_candidates(name, facts);
        };
        let query = Query {
            protocol,
            client: SocketAddr::new(facts.src, src_port),
            proxy: SocketAddr::new(facts.dst, dst_port),
            need: Need::Name,
        };
        match resolver.quick(&query) {
            Quick::Known(identity) => self.found(name, facts, &identity),
            // The tables are made of the sockets that the kernel was just asked about.
            Quick::NeedsScan(ticket) if !ticket.knows_socket() => self.name_candidates(name, facts),
            Quick::NeedsScan(ticket) => {
                let Some(home) = self.home.clone() else { return self.name_candidates(name, facts) };
                let held = guarded.hold(&self.reporter, &self.guard, facts, Who::Nobody);
                let Some(number) = held else { return };
                let name = name.to_owned();
                self.scanner.submit(ticket, move |identity| {
                    let _ = home.with(move |watch: &mut Self| {
                        if let Some((facts, _)) = watch.held(&name, number) {
                            watch.found(&name, facts, &identity);
                        }
                    });
                });
            }
        }
    }

    /// The attempt held under `number`, unless it was told meanwhile.
    fn held(&mut self, name: &str, number: u64) -> Option<(Facts, Who)> {
        self.sandboxes.get_mut(name)?.held(number)
    }

    /// Has it read how the process was started, if one was found. What a process is started with lies in its own memory,
    /// and who reads there waits for as long as the process likes: that is for a thread on which nothing else depends.
    fn found(&mut self, name: &str, facts: Facts, identity: &Identity) {
        let (Some(process), Some(who)) = (&identity.process, Who::found(identity)) else {
            return self.name_candidates(name, facts);
        };
        let Some(home) = self.home.clone().filter(|_| !self.reading_is_late()) else {
            return self.settle(name, facts, who);
        };
        let Some(guarded) = self.sandboxes.get_mut(name) else { return };
        let Some(number) = guarded.hold(&self.reporter, &self.guard, facts, who) else { return };
        let (sandbox, pid) = (name.to_owned(), process.pid);
        let run = self.readings.run(move || {
            let how = how_started(pid);
            let _ = home.with(move |watch: &mut Self| watch.has_read(&sandbox, number, how));
        });
        if run {
            self.reads_under_way += 1;
            self.reading_since_us.get_or_insert_with(guarded::now_us);
        } else if let Some((facts, who)) = self.held(name, number) {
            self.settle(name, facts, who);
        }
    }

    /// Whether the thread that reads of processes has not come back for long: what is found is told without.
    fn reading_is_late(&self) -> bool {
        self.reading_since_us
            .is_some_and(|since| guarded::now_us().saturating_sub(since) >= pending::PATIENCE_US)
    }

    fn has_read(&mut self, name: &str, number: u64, how: HowStarted) {
        self.reads_under_way = self.reads_under_way.saturating_sub(1);
        self.reading_since_us = (self.reads_under_way > 0).then(guarded::now_us);
        if let Some((facts, who)) = self.held(name, number) {
            self.settle(name, facts, who.started(how));
        }
    }

    fn settle(&mut self, name: &str, facts: Facts, who: Who) {
        if let Some(guarded) = self.sandboxes.get_mut(name) {
            guarded.settle(&self.reporter, &self.guard, facts, who);
        }
    }

    /// Names the processes of the packet's user that are in the sandbox. One listing serves all attempts that wait.
    fn name_candidates(&mut self, name: &str, facts: Facts) {
        let Some(guarded) = self.sandboxes.get_mut(name) else { return };
        // Without a uid no process of the sandbox sent it.
        let (Some(uid), Some(resolver), Some(home)) =
            (facts.uid, guarded.watched.sandbox.resolver().cloned(), self.home.clone())
        else {
            return guarded.settle(&self.reporter, &self.guard, facts, Who::Nobody);
        };
        match guarded.wait_for(uid, facts) {
            Waiting::First => {}
            Waiting::Too => return,
            Waiting::TooMany => return guarded.settle(&self.reporter, &self.guard, facts, Who::Nobody),
        }
        let sandbox = name.to_owned();
        let run = self.errands.run(move || {
            let who = Who::one_of(&resolver.processes_of(uid, who::CANDIDATES_MAX));
            let _ = home.with(move |watch: &mut Self| watch.settle_waiting(&sandbox, uid, &who));
        });
        if !run {
            self.settle_waiting(name, uid, &Who::Nobody);
        }
    }

    fn settle_waiting(&mut self, name: &str, uid: u32, who: &Who) {
        let Some(guarded) = self.sandboxes.get_mut(name) else { return };
        for facts in guarded.waiting(uid) {
            guarded.settle(&self.reporter, &self.guard, facts, who.clone());
        }
    }

    /// Holds the host fence's counters against the violations that were told.
    fn look_at_host(&mut self, now_us: u64) {
        let Some(counters) = &self.host_counters else { return };
        match counters.read() {
            Ok(dropped) => {
                for (name, guarded) in &mut self.sandboxes {
                    if let Some(dropped) = dropped.get(&**name) {
                        guarded.look_at_host(dropped.packets, now_us);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the host fence's counters cannot be read"),
        }
    }
}

impl Sink for Watch {
    fn attempt(&mut self, attempt: &Attempt<'_>, when: Moment) {
        let Some(guarded) = self.sandboxes.get_mut(attempt.tag.name) else { return };
        let token = match attempt.tag.fence {
            Fence::Inner => guarded.watched.token,
            Fence::Host => guarded.watched.host_token,
        };
        if token != Some(attempt.tag.token) {
            self.impostors.increment(1);
            return;
        }
        let facts = Facts::of(attempt, when);
        if attempt.tag.fence == Fence::Host {
            return guarded.violation(&self.reporter, &facts, attempt.in_interface);
        }
        guarded.line(facts.proto);
        match guarded.noted(&facts) {
            Some(who) => guarded.settle(&self.reporter, &self.guard, facts, who),
            None => self.seek(attempt.tag.name, facts),
        }
    }

    fn lost(&mut self, loss: Loss) {
        self.lost.increment(loss.records);
        let mut event = Event::now(Kind::MonitorLost);
        event.count = Some(loss.records);
        event.reason = Some("kmsg_overrun");
        self.reporter.report(&event, Urgency::Now);
        tracing::warn!(
            records = loss.records,
            "log records were overwritten before they could be read; the counters still have what they told"
        );
        self.next_round_us = 0;
        self.next_host_look_us = 0;
        self.sandboxes.values_mut().for_each(Guarded::look_soon);
    }

    fn forged(&mut self) {
        self.impostors.increment(1);
    }

    fn source_failed(&mut self, _source: SourceId, error: &io::Error) {
        tracing::error!(%error, "an NFLOG socket cannot be read; its sandbox's attempts are refused and counted, not named");
    }

    fn idle(&mut self, now_us: u64) {
        if now_us < self.next_round_us {
            return;
        }
        self.next_round_us = now_us + ROUND_US;
        if now_us >= self.next_host_look_us {
            self.next_host_look_us = now_us + HOST_LOOK_US;
            self.look_at_host(now_us);
        }
        for guarded in self.sandboxes.values_mut() {
            guarded.round(&self.reporter, &self.guard, now_us);
        }
    }
}
