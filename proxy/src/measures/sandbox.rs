//! The figures of one sandbox, and all sandboxes' in Prometheus' text format.
//!
//! They are not in the process-wide recorder, which forgets nothing: what is rendered are the sandboxes that live.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter, Gauge};

/// Refusals of clients that belong to no sandbox.
static UNKNOWN_SOURCE: AtomicU64 = AtomicU64::new(0);

/// Counts a client whose source address belongs to no sandbox.
pub fn unknown_source() {
    UNKNOWN_SOURCE.fetch_add(1, Ordering::Relaxed);
}

/// The figures of one sandbox that are touched per connection or request.
pub struct SandboxMeasures {
    /// Connections open now.
    pub connections_active: Gauge,
    /// CONNECTs that were allowed.
    pub connects_allowed: Counter,
    /// Requests that were allowed.
    pub requests_allowed: Counter,
    /// Octets to the destination, copied.
    pub up_copied: Counter,
    /// Octets to the destination, spliced.
    pub up_spliced: Counter,
    /// Octets to the client, copied.
    pub down_copied: Counter,
    /// Octets to the client, spliced.
    pub down_spliced: Counter,
    cells: Cells,
    refusals: Mutex<BTreeMap<(Counted, &'static str), u64>>,
    bypasses: Mutex<BTreeMap<&'static str, u64>>,
}

/// What is behind the handles.
#[derive(Default)]
struct Cells {
    active: Arc<AtomicU64>,
    connects: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    /// By direction and way, as in [`BYTES`].
    bytes: [Arc<AtomicU64>; 4],
}

/// Direction and way of the octets relayed.
const BYTES: [(&str, &str); 4] = [("up", "copy"), ("up", "splice"), ("down", "copy"), ("down", "splice")];

/// Whether a connection or request is counted as a CONNECT or as a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    /// `sluice_connections_total`.
    Connection,
    /// `sluice_requests_total`.
    Request,
}

impl Default for SandboxMeasures {
    fn default() -> Self {
        let cells = Cells::default();
        let counter = |cell: &Arc<AtomicU64>| Counter::from_arc(Arc::clone(cell));
        let [up_copied, up_spliced, down_copied, down_spliced] = cells.bytes.each_ref().map(counter);
        Self {
            connections_active: Gauge::from_arc(Arc::clone(&cells.active)),
            connects_allowed: counter(&cells.connects),
            requests_allowed: counter(&cells.requests),
            up_copied,
            up_spliced,
            down_copied,
            down_spliced,
            cells,
            refusals: Mutex::default(),
            bypasses: Mutex::default(),
        }
    }
}

impl SandboxMeasures {
    /// Counts a refusal; `reason` is of a closed set.
    pub fn denied(&self, what: Counted, reason: &'static str) {
        *lock(&self.refusals).entry((what, reason)).or_default() += 1;
    }

    /// Counts direct attempts that were reported; `identity` is how their process is known.
    pub fn bypass_reported(&self, identity: &'static str, count: u64) {
        *lock(&self.bypasses).entry(identity).or_default() += count;
    }

    /// CONNECTs and requests that were allowed, and those that were not.
    pub fn totals(&self) -> (u64, u64) {
        let allowed = load(&self.cells.connects) + load(&self.cells.requests);
        (allowed, lock(&self.refusals).values().sum())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

/// What the fences of a sandbox counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fenced {
    /// Refused by the fence inside, by protocol; none if it cannot be read or there is none.
    pub refused: Option<[(&'static str, u64); 4]>,
    /// Packets dropped on the host's side of its link, if that is fenced.
    pub dropped: Option<u64>,
    /// Notes of its witnesses that nobody has read, by why; none where there are no witnesses.
    pub notes_lost: Option<[(&'static str, u64); 2]>,
}

/// The figures of these sandboxes as Prometheus reads them.
pub fn render(sandboxes: &[(Arc<str>, &SandboxMeasures, Fenced)]) -> String {
    let mut out = String::new();
    let all = || sandboxes.iter().map(|(name, measures, fenced)| (&**name, *measures, fenced));

    head(&mut out, "connections_active", "gauge", "Client connections open now");
    for (name, measures, _) in all() {
        let active = f64::from_bits(load(&measures.cells.active));
        line(&mut out, "connections_active", &[("sandbox", name)], active);
    }
    head(&mut out, "connections_total", "counter", "CONNECTs by outcome");
    for (name, measures, _) in all() {
        outcomes(&mut out, "connections_total", name, &[("kind", "connect")], measures, Counted::Connection);
    }
    let unknown = UNKNOWN_SOURCE.load(Ordering::Relaxed);
    let labels = [("sandbox", ""), ("kind", "connect"), ("action", "denied"), ("reason", "unknown_source")];
    line(&mut out, "connections_total", &labels, unknown);
    head(&mut out, "requests_total", "counter", "Requests by outcome");
    for (name, measures, _) in all() {
        outcomes(&mut out, "requests_total", name, &[], measures, Counted::Request);
    }
    head(&mut out, "relay_bytes_total", "counter", "Octets relayed, by direction and way");
    for (name, measures, _) in all() {
        for ((direction, path), cell) in BYTES.iter().zip(&measures.cells.bytes) {
            let labels = [("sandbox", name), ("direction", direction), ("path", path)];
            line(&mut out, "relay_bytes_total", &labels, load(cell));
        }
    }
    head(
        &mut out,
        "bypass_attempts_total",
        "counter",
        "Direct attempts refused by the fence, from its own counters",
    );
    for (name, _, fenced) in all() {
        for (proto, count) in fenced.refused.iter().flatten() {
            line(&mut out, "bypass_attempts_total", &[("sandbox", name), ("proto", proto)], count);
        }
    }
    head(&mut out, "bypass_events_total", "counter", "Direct attempts reported, by how the process is known");
    for (name, measures, _) in all() {
        for (identity, count) in lock(&measures.bypasses).iter() {
            line(&mut out, "bypass_events_total", &[("sandbox", name), ("identity", identity)], count);
        }
    }
    head(
        &mut out,
        "fence_violations_total",
        "counter",
        "Packets dropped by the fence on the host's side of a link",
    );
    for (name, _, fenced) in all() {
        if let Some(dropped) = fenced.dropped {
            line(&mut out, "fence_violations_total", &[("sandbox", name)], dropped);
        }
    }
    head(&mut out, "witness_notes_lost_total", "counter", "Notes of a witness that were not read, by why");
    for (name, _, fenced) in all() {
        for (why, count) in fenced.notes_lost.iter().flatten() {
            line(&mut out, "witness_notes_lost_total", &[("sandbox", name), ("why", why)], count);
        }
    }
    out
}

fn outcomes(
    out: &mut String,
    family: &str,
    sandbox: &str,
    also: &[(&str, &str)],
    measures: &SandboxMeasures,
    what: Counted,
) {
    let allowed = match what {
        Counted::Connection => &measures.cells.connects,
        Counted::Request => &measures.cells.requests,
    };
    let refusals = lock(&measures.refusals);
    let refused = refusals.iter().filter(|((of, _), _)| *of == what);
    let refused = refused.map(|((_, reason), count)| ("denied", *reason, *count));
    for (action, reason, count) in std::iter::once(("allowed", "policy", load(allowed))).chain(refused) {
        let mut labels = vec![("sandbox", sandbox)];
        labels.extend_from_slice(also);
        labels.extend([("action", action), ("reason", reason)]);
        line(out, family, &labels, count);
    }
}

fn head(out: &mut String, family: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP sluice_{family} {help}\n# TYPE sluice_{family} {kind}");
}

/// Names of sandboxes and words of closed sets need no escaping.
fn line(out: &mut String, family: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
    let _ = write!(out, "sluice_{family}{{");
    for (number, (name, text)) in labels.iter().enumerate() {
        let comma = if number == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"{text}\"");
    }
    let _ = writeln!(out, "}} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_of_a_sandbox_is_rendered_under_one_head_a_family() {
        let (a, b) = (SandboxMeasures::default(), SandboxMeasures::default());
        a.connections_active.increment(2.0);
        a.connects_allowed.increment(7);
        a.down_spliced.increment(4096);
        b.denied(Counted::Request, "method_not_allowed");
        b.denied(Counted::Request, "method_not_allowed");
        b.bypass_reported("witness", 2);
        let fenced = Fenced {
            refused: Some([("tcp", 3), ("udp", 0), ("icmp", 0), ("other", 0)]),
            dropped: Some(9),
            notes_lost: Some([("overwritten", 4), ("garbled", 0)]),
        };
        let text = render(&[("a".into(), &a, Fenced::default()), ("b".into(), &b, fenced)]);
        for expected in [
            "sluice_connections_active{sandbox=\"a\"} 2\n",
            "sluice_connections_total{sandbox=\"a\",kind=\"connect\",action=\"allowed\",reason=\"policy\"} 7\n",
            "sluice_requests_total{sandbox=\"b\",action=\"denied\",reason=\"method_not_allowed\"} 2\n",
            "sluice_relay_bytes_total{sandbox=\"a\",direction=\"down\",path=\"splice\"} 4096\n",
            "sluice_bypass_attempts_total{sandbox=\"b\",proto=\"tcp\"} 3\n",
            "sluice_bypass_events_total{sandbox=\"b\",identity=\"witness\"} 2\n",
            "sluice_fence_violations_total{sandbox=\"b\"} 9\n",
            "sluice_witness_notes_lost_total{sandbox=\"b\",why=\"overwritten\"} 4\n",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!text.contains("bypass_attempts_total{sandbox=\"a\""), "{text}");
        let mut heads: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = heads.len();
        heads.dedup();
        assert_eq!(heads.len(), all, "a family is told twice");
        assert_eq!(a.totals(), (7, 0));
        assert_eq!(b.totals(), (0, 2));
    }
}
