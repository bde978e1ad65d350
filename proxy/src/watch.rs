//! From a refused packet to an event that names the process: the owner's side of the bypass core.
//!
//! The life of an attempt: the core hands over a parsed log line; its tag says which sandbox, and must carry that
//! sandbox' secret; the witness' note with the same source port says which process (decision 4), or else the kernel is
//! asked whose socket it is, which for UDP still exists; repetitions are folded; the hint says what to change.
//! Everything here runs on the bypass core's thread. A lookup that needs `/proc` runs elsewhere and comes back.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sluice_bypass::monitor::{Handle, Moment};
use sluice_bypass::{Attempt, Emission, Fold, Key, Loss, Proto, ProxyEnv, Sink, hint};
use sluice_seccomp::{Notes, Proto as NotedProto, Refused};

use crate::event::journal::Urgency;
use crate::event::{Action, Event, Kind, ProcessView, Reporter, Time, Via};
use crate::identity::{Need, Protocol, Query, Quick, Scanner, Source};
use crate::sandbox::Sandbox;

/// What the bypass core knows of one sandbox.
pub struct Watched {
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// The secret in its fence's log lines.
    pub token: u64,
    /// The notes of its witness, if it has one.
    pub notes: Option<Arc<Notes>>,
    /// Where its proxy listens, for hints.
    pub proxy_address: SocketAddr,
}

/// The owner of the bypass core's attempts.
pub struct Watch {
    reporter: Reporter,
    sandboxes: HashMap<Box<str>, Guarded>,
    /// Lines that bear a sandbox' name without its secret.
    impostors: metrics::Counter,
    lost: metrics::Counter,
    scanner: Arc<Scanner>,
    /// How to come back to this thread.
    home: Option<Handle<Self>>,
}

struct Guarded {
    watched: Watched,
    fold: Fold<Who>,
}

/// The process behind an attempt, as far as it is known. Equal when it is the same process.
#[derive(Clone)]
struct Who(Option<Arc<Known>>);

struct Known {
    pid: u32,
    start_time: u64,
    exe: String,
    comm: String,
    uid: u32,
    ancestors: Vec<String>,
    source: Source,
    trail: Option<String>,
}

impl PartialEq for Who {
    fn eq(&self, other: &Self) -> bool {
        let id = |who: &Self| who.0.as_ref().map(|known| (known.pid, known.start_time, known.exe.clone()));
        id(self) == id(other)
    }
}

impl Eq for Who {}

impl Hash for Who {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_ref().map(|known| (known.pid, known.start_time)).hash(state);
    }
}

/// What of an attempt is needed once its log line is gone.
#[derive(Clone, Copy)]
struct Facts {
    proto: Proto,
    src: IpAddr,
    dst: IpAddr,
    src_port: Option<u16>,
    dst_port: Option<u16>,
    uid: Option<u32>,
    logged_us: u64,
}

impl Watch {
    /// A watch that reports to `reporter`.
    pub fn new(reporter: Reporter, scanner: Arc<Scanner>) -> Self {
        Self {
            scanner,
            reporter,
            sandboxes: HashMap::new(),
            impostors: metrics::counter!("sluice_kmsg_forged_total"),
            lost: metrics::counter!("sluice_kmsg_lost_total"),
            home: None,
        }
    }

    /// Tells it how to come back to its thread.
    pub fn set_home(&mut self, home: Handle<Self>) {
        self.home = Some(home);
    }

    /// Watches a sandbox from now on. Before its workload starts.
    pub fn add(&mut self, watched: Watched) {
        self.sandboxes.insert(watched.sandbox.name().into(), Guarded { watched, fold: Fold::default() });
    }

    /// Reports what is held back for the sandbox and forgets it.
    pub fn remove(&mut self, name: &str) {
        if let Some(mut guarded) = self.sandboxes.remove(name) {
            let Guarded { watched, fold } = &mut guarded;
            fold.flush(|emission| tell(&self.reporter, watched, &emission, None));
        }
    }

    /// The same for all.
    pub fn remove_all(&mut self) {
        let names: Vec<Box<str>> = self.sandboxes.keys().cloned().collect();
        for name in names {
            self.remove(&name);
        }
    }

    /// Reports `facts` as the act of `who`, or counts them as a repetition.
    fn settle(&mut self, name: &str, facts: Facts, who: Who) {
        let Some(Guarded { watched, fold }) = self.sandboxes.get_mut(name) else { return };
        watched.sandbox.measures().bypass_reported(label(&who));
        let key = Key { process: who, dst: facts.dst, dst_port: facts.dst_port, proto: facts.proto };
        if let Some(emission) = fold.add(facts.logged_us, key, 1) {
            tell(&self.reporter, watched, &emission, Some(facts));
        }
    }

    /// Asks the kernel whose socket it is. TCP sockets are gone by now (docs/decisions/0004); UDP ones
    /// mostly are not.
    fn seek(&mut self, name: &str, facts: Facts) {
        let Some(Guarded { watched, .. }) = self.sandboxes.get(name) else { return };
        let query = match (facts.proto, facts.src_port, facts.dst_port, watched.sandbox.resolver()) {
            (Proto::Udp, Some(src_port), Some(dst_port), Some(resolver)) => Some((
                Query {
                    protocol: Protocol::Udp,
                    client: SocketAddr::new(facts.src, src_port),
                    proxy: SocketAddr::new(facts.dst, dst_port),
                    need: Need::Name,
                },
                Arc::clone(resolver),
            )),
            _ => None,
        };
        let Some((query, resolver)) = query else { return self.settle(name, facts, Who(None)) };
        match resolver.quick(&query) {
            Quick::Known(identity) => self.settle(name, facts, Who::found(&identity)),
            Quick::NeedsScan(ticket) => {
                let Some(home) = self.home.clone() else { return self.settle(name, facts, Who(None)) };
                let name = name.to_owned();
                self.scanner.submit(ticket, move |identity| {
                    let _ =
                        home.with(move |watch: &mut Self| watch.settle(&name, facts, Who::found(&identity)));
                });
            }
        }
    }
}

impl Sink for Watch {
    fn attempt(&mut self, attempt: &Attempt<'_>, when: Moment) {
        let Some(Guarded { watched, .. }) = self.sandboxes.get(attempt.tag.name) else { return };
        if watched.token != attempt.tag.token {
            self.impostors.increment(1);
            return;
        }
        let facts = Facts {
            proto: attempt.proto,
            src: attempt.src,
            dst: attempt.dst,
            src_port: attempt.src_port,
            dst_port: attempt.dst_port,
            uid: attempt.uid,
            logged_us: when.logged_us,
        };
        match noted(watched, &facts, when) {
            Some(who) => self.settle(attempt.tag.name, facts, who),
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
            "kernel log records were overwritten before they could be read"
        );
    }

    fn forged(&mut self) {
        self.impostors.increment(1);
    }

    fn idle(&mut self, now_us: u64) {
        for Guarded { watched, fold } in self.sandboxes.values_mut() {
            fold.expire(now_us, |emission| tell(&self.reporter, watched, &emission, None));
        }
    }
}

/// The process by the witness' note of the same connect.
fn noted(watched: &Watched, facts: &Facts, when: Moment) -> Option<Who> {
    let proto = match facts.proto {
        Proto::Tcp => NotedProto::Tcp,
        Proto::Udp => NotedProto::Udp,
        _ => return None,
    };
    let destination = SocketAddr::new(facts.dst, facts.dst_port?);
    let logged_ns = when.logged_us.saturating_mul(1000);
    let refused = Refused { proto, src_port: facts.src_port, dst: destination, logged_ns };
    let found = watched.notes.as_ref()?.join(&refused)?;
    let process = &found.note.process;
    Some(Who(Some(Arc::new(Known {
        pid: process.pid,
        start_time: process.start_time,
        exe: process.exe.to_string_lossy().into_owned(),
        comm: process.comm.to_string(),
        uid: process.uid,
        ancestors: process.ancestors.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
        source: Source::Witness,
        trail: None,
    }))))
}

impl Who {
    fn found(identity: &crate::identity::Identity) -> Self {
        Self(identity.process.as_ref().map(|process| {
            Arc::new(Known {
                pid: process.pid,
                start_time: process.start_time,
                exe: process.exe.to_string_lossy().into_owned(),
                comm: process.comm.clone(),
                uid: process.uid,
                ancestors: process.ancestors.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
                source: identity.source,
                trail: Some(identity.trail.to_string()),
            })
        }))
    }
}

fn label(who: &Who) -> &'static str {
    who.0.as_ref().map_or(Source::None.label(), |known| known.source.label())
}

/// One event. `facts` are those of the one attempt it tells; repetitions have only what they share.
fn tell(reporter: &Reporter, watched: &Watched, emission: &Emission<Who>, facts: Option<Facts>) {
    let tally = emission.tally();
    let last = wall(tally.last_us);
    let mut event = Event::at(Kind::BypassDetected, last);
    event.sandbox = Some(watched.sandbox.name());
    event.via = Some(Via::Direct);
    event.action = Some(Action::Rejected);
    event.count = Some(tally.count);
    // From one reading of the clocks: two may differ by a microsecond, and the first attempt come after the last.
    event.first = Some(last.earlier(tally.last_us.saturating_sub(tally.first_us)));
    event.last = Some(last);
    event.src_port = facts.and_then(|facts| facts.src_port);
    event.uid = facts.and_then(|facts| facts.uid);
    let (Emission::First(key, _) | Emission::Repeated(key, _)) = emission else {
        event.reason = Some("direct_various");
        event.detail = Some("more different attempts than are told apart");
        return reporter.report(&event, Urgency::Now);
    };
    let proto = key.proto.to_string();
    event.proto = Some(&proto);
    event.dst_ip = Some(key.dst);
    event.dst_port = key.dst_port;
    event.reason = Some(reason(key.proto, key.dst_port));
    event.identity = Some(label(&key.process));
    let known = key.process.0.as_deref();
    if let Some(known) = known {
        event.uid = event.uid.or(Some(known.uid));
        event.identity_trail = known.trail.as_deref();
        event.process = Some(ProcessView {
            pid: known.pid,
            exe: Some(&known.exe),
            sha256: None,
            comm: Some(&known.comm),
            ancestors: &known.ancestors,
        });
    }
    let advice = advice(watched, key, known);
    event.hint = Some(&advice);
    reporter.report(&event, Urgency::Now);
}

fn reason(proto: Proto, port: Option<u16>) -> &'static str {
    match (proto, port) {
        (Proto::Tcp | Proto::Udp, Some(53 | 853 | 5353)) => "direct_dns",
        (Proto::Tcp, _) => "direct_tcp",
        (Proto::Udp, _) => "direct_udp",
        (Proto::Icmp | Proto::Icmpv6, _) => "direct_icmp",
        _ => "direct_other",
    }
}

fn advice(watched: &Watched, key: &Key<Who>, known: Option<&Known>) -> String {
    let context = sluice_bypass::hint::Context {
        proto: key.proto,
        dst: key.dst,
        dst_port: key.dst_port,
        exe: known.map(|known| known.exe.as_str()),
        comm: known.map(|known| known.comm.as_str()),
        proxy: watched.proxy_address,
        proxy_env: if watched.notes.is_some() { ProxyEnv::Present } else { ProxyEnv::Unknown },
        icmp: None,
        args: &[],
        allowed_by_policy: None,
    };
    hint(&context).text
}

/// CLOCK_MONOTONIC in µs as wall-clock time.
fn wall(monotonic_us: u64) -> Time {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000);
    let ago = now.saturating_sub(i64::try_from(monotonic_us).unwrap_or(i64::MAX));
    Time::from_unix_micros(Time::now().unix_micros().saturating_sub(ago))
}
