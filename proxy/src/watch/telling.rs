//! The event of an attempt or of a violation, and what is advised.

use std::net::IpAddr;

use arc_swap::ArcSwap;
use sluice_bypass::{Emission, Icmp, Interface, Key, Proto, ProxyEnv, hint};

use super::Watched;
use super::who::{Known, Who};
use crate::address::Guard;
use crate::destination::{Destination, Host};
use crate::event::journal::Urgency;
use crate::event::{Action, CandidateView, Event, Kind, ProcessView, Reporter, Time, Via};
use crate::policy::{self, Ask, Asker, BinaryFacts, Program, decide};

/// What only one attempt has, not its repetitions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Single {
    pub(super) src_port: Option<u16>,
    pub(super) uid: Option<u32>,
    pub(super) icmp: Option<Icmp>,
}

/// Tells what the fence inside refused. `single` is given with the one attempt it tells.
pub(super) fn tell(
    reporter: &Reporter,
    guard: &ArcSwap<Guard>,
    watched: &Watched,
    emission: &Emission<Who>,
    single: Single,
) {
    let mut event = begin(Kind::BypassDetected, Action::Rejected, watched, emission);
    event.src_port = single.src_port;
    event.uid = single.uid;
    let (who, proto) = match emission {
        Emission::First(key, _) | Emission::Repeated(key, _) => (Some(&key.process), key.proto),
        Emission::Other(who, proto, _) => (who.as_ref(), *proto),
    };
    let who = who.unwrap_or(&Who::Nobody);
    let name = proto.to_string();
    event.proto = Some(&name);
    event.identity = Some(who.label());
    let shown = Shown::of(who);
    if let Who::Process(known) = who {
        event.uid = event.uid.or(Some(known.uid));
        event.identity_trail = known.trail.as_deref();
    }
    event.process = shown.process();
    let candidates = shown.candidates();
    event.candidates = &candidates;
    let advice;
    if let Emission::First(key, _) | Emission::Repeated(key, _) = emission {
        event.dst_ip = Some(key.dst);
        event.dst_port = key.dst_port;
        event.reason = Some(reason(key.proto, key.dst_port));
        event.allowed_via_proxy = allowed_via_proxy(watched, guard, key);
        advice = advise(watched, key, single.icmp, event.allowed_via_proxy);
        event.hint = Some(&advice);
    } else {
        event.reason = Some("direct_various");
        event.detail = Some("more attempts than are told apart, or whose log lines are missing");
    }
    reporter.report(&event, Urgency::Now);
}

/// Tells what the fence on the host's side of the sandbox's link dropped. `from` is the source of the one packet it
/// tells, and the link it came in by.
pub(super) fn tell_violation(
    reporter: &Reporter,
    watched: &Watched,
    emission: &Emission<()>,
    from: Option<(IpAddr, Option<u16>, Interface<'_>)>,
) {
    let mut event = begin(Kind::FenceViolation, Action::Dropped, watched, emission);
    event.reason = Some("host_fence");
    event.src_port = from.and_then(|(_, port, _)| port);
    let detail;
    let proto;
    match emission {
        Emission::First(key, _) | Emission::Repeated(key, _) => {
            proto = key.proto.to_string();
            event.proto = Some(&proto);
            event.dst_ip = Some(key.dst);
            event.dst_port = key.dst_port;
            detail = from.map(|(source, _, link)| match link {
                Interface::Name(link) => format!("from {source} by link {link}"),
                Interface::Index(link) => format!("from {source} by link number {link}"),
                Interface::None => format!("from {source}"),
            });
            event.detail = detail.as_deref();
        }
        Emission::Other(..) => {
            event.detail = Some("more packets than are told apart, or whose log lines are missing");
        }
    }
    event.hint = Some(
        "something in the sandbox got past the fence inside it: a process with CAP_NET_ADMIN there, or a virtual machine's \
         kernel; nothing left the host; run the workload without that capability",
    );
    reporter.report(&event, Urgency::Now);
}

fn begin<'a, P>(kind: Kind, action: Action, watched: &'a Watched, emission: &Emission<P>) -> Event<'a> {
    let tally = emission.tally();
    let last = wall(tally.last_us);
    let mut event = Event::at(kind, last);
    event.sandbox = Some(watched.sandbox.name());
    event.via = Some(Via::Direct);
    event.action = Some(action);
    event.count = Some(tally.count);
    // From one reading of the clocks: two may differ by a microsecond, and the first attempt come after the last.
    event.first = Some(last.earlier(tally.last_us.saturating_sub(tally.first_us)));
    event.last = Some(last);
    event
}

/// Text that the views of an event borrow.
struct Shown<'a> {
    who: &'a Who,
    exe: String,
    ancestors: Vec<String>,
}

impl<'a> Shown<'a> {
    fn of(who: &'a Who) -> Self {
        let known = who.known();
        let text = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
        Self {
            who,
            exe: known.map(|known| text(&known.exe)).unwrap_or_default(),
            ancestors: known.map(|known| known.ancestors.iter().map(text).collect()).unwrap_or_default(),
        }
    }

    fn process(&self) -> Option<ProcessView<'_>> {
        self.who.known().map(|known| ProcessView {
            pid: known.pid,
            exe: Some(&self.exe),
            sha256: None,
            comm: Some(&known.comm),
            ancestors: &self.ancestors,
        })
    }

    fn candidates(&self) -> Vec<CandidateView<'_>> {
        let Who::Candidates(candidates) = self.who else { return Vec::new() };
        let view = |candidate: &'a super::who::Candidate| CandidateView {
            pid: candidate.pid,
            exe: &candidate.exe,
            comm: &candidate.comm,
        };
        candidates.iter().map(view).collect()
    }
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

/// Whether the program would reach this address and port through the proxy; `None` where no proxy could help. Policies
/// mostly name hosts, and the attempt has only an address: a no is about the address.
fn allowed_via_proxy(watched: &Watched, guard: &ArcSwap<Guard>, key: &Key<Who>) -> Option<bool> {
    let port = key.dst_port.filter(|port| *port != 0 && key.proto == Proto::Tcp)?;
    let policy = watched.sandbox.policy_now();
    let ancestors: Vec<_> = key.process.known().map_or_else(Vec::new, |known| {
        known.ancestors.iter().map(|path| Program { path, sha256: None }).collect()
    });
    let set = key.process.known().map(|known| {
        let exe = Program { path: &known.exe, sha256: None };
        policy.classify(&BinaryFacts { exe, ancestors: &ancestors })
    });
    let destination = Destination { host: Host::Ip(key.dst), port };
    let asker = match (&set, &key.process) {
        (Some(set), _) => Asker::Known(set),
        (None, Who::Candidates(_)) => Asker::Ambiguous,
        (None, _) => Asker::Unknown,
    };
    let ask = Ask { destination: &destination, asker, kind: policy::Kind::Connect };
    let Ok(permit) = decide(&policy, &ask) else { return Some(false) };
    Some(guard.load().check(key.dst, port, |ip, reach| permit.admits(ip, reach)).is_ok())
}

fn advise(watched: &Watched, key: &Key<Who>, icmp: Option<Icmp>, allowed: Option<bool>) -> String {
    let known = key.process.known();
    let exe = known.map(|known: &Known| known.exe.to_string_lossy());
    let args: Vec<&str> =
        known.map(|known| known.args.iter().map(|arg| &**arg).collect()).unwrap_or_default();
    let context = sluice_bypass::hint::Context {
        proto: key.proto,
        dst: key.dst,
        dst_port: key.dst_port,
        exe: exe.as_deref(),
        comm: known.map(|known| known.comm.as_str()),
        proxy: watched.proxy_address,
        proxy_env: known.map_or(ProxyEnv::Unknown, |known| known.proxy_env),
        icmp,
        args: &args,
        allowed_by_policy: allowed,
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

/// Which kind of the fence's counters a protocol belongs to.
pub(super) fn kind_of(proto: Proto) -> usize {
    match proto {
        Proto::Tcp => 0,
        Proto::Udp => 1,
        Proto::Icmp | Proto::Icmpv6 => 2,
        Proto::Other(_) | Proto::Unknown => 3,
    }
}
