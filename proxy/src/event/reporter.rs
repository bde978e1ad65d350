//! One call for whoever has something to report: the event line, the folded account, and words for people.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::feed::Feed;
use super::journal::{Journal, Urgency};
use super::ledger::{Ledger, Stage, destination, how, printable, stage_of};
use super::{Event, Via};

/// Refusals said in words per second on average, and at once after silence. Events and counters know no limit.
const WORDS_PER_S: f64 = 20.0;
const WORDS_BURST: f64 = 100.0;

/// Which refusals are said in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// The first of each kind: for a person who watches one command.
    FirstOfEachKind,
    /// All, up to a rate: for a log that is kept.
    UpToARate,
}

/// Where reports go; clones report to the same places.
#[derive(Clone)]
pub struct Reporter {
    journal: Journal,
    ledger: Arc<Ledger>,
    feed: Option<Arc<Feed>>,
    words: Words,
    budget: Arc<Mutex<Budget>>,
}

struct Budget {
    left: f64,
    at: Instant,
    suppressed: u64,
}

impl Reporter {
    /// Reports to `journal`, folds into `ledger`, and says `words`.
    pub fn new(journal: Journal, ledger: Arc<Ledger>, words: Words) -> Self {
        let budget = Budget { left: WORDS_BURST, at: Instant::now(), suppressed: 0 };
        Self { journal, ledger, feed: None, words, budget: Arc::new(Mutex::new(budget)) }
    }

    /// The same, knowing where those who look on get what it reports.
    #[must_use]
    pub fn with_feed(mut self, feed: Option<Arc<Feed>>) -> Self {
        self.feed = feed;
        self
    }

    /// Where those who look on get what is reported, if anybody may.
    pub fn feed(&self) -> Option<&Arc<Feed>> {
        self.feed.as_ref()
    }

    /// Reports one event.
    pub fn report(&self, event: &Event<'_>, urgency: Urgency) {
        self.journal.record(event, urgency);
        let stage = stage_of(event);
        // A daemon that allows a million requests an hour keeps no account of them; a person's command does.
        if self.words == Words::UpToARate && matches!(stage, Some(Stage::Allowed) | None) {
            return;
        }
        let first = self.ledger.note(event);
        let refused = matches!(stage, Some(Stage::Denied | Stage::Failed | Stage::Bypassed | Stage::Audited));
        if refused && (self.words == Words::UpToARate || first) && self.may_speak() {
            speak(event, stage == Some(Stage::Bypassed));
        }
    }

    /// Reports that did not reach their file.
    pub fn dropped(&self) -> u64 {
        self.journal.dropped()
    }

    /// Opens the events file anew, after log rotation.
    pub fn reopen(&self) {
        self.journal.reopen();
    }

    /// What was seen so far.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn may_speak(&self) -> bool {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let refill = now.duration_since(budget.at).as_secs_f64() * WORDS_PER_S;
        budget.left = (budget.left + refill).min(WORDS_BURST);
        budget.at = now;
        if budget.left < 1.0 {
            budget.suppressed += 1;
            return false;
        }
        budget.left -= 1.0;
        let suppressed = std::mem::take(&mut budget.suppressed);
        drop(budget);
        if suppressed > 0 {
            tracing::warn!(suppressed, "more refusals than are said in words; the events have them all");
        }
        true
    }
}

/// One refusal as a line of the log. A bypass begins with the word operators search for.
fn speak(event: &Event<'_>, bypass: bool) {
    let line = words(event);
    if bypass {
        tracing::warn!("BYPASS_DETECT {line}");
    } else {
        tracing::warn!("{line}");
    }
}

fn words(event: &Event<'_>) -> String {
    let mut line = String::new();
    // The events call every refusal denied; in words, a network that failed is not a policy that said no.
    let failed = event.status.is_some_and(|status| status >= 500);
    let action = event.action.map_or("", |action| match action {
        super::Action::Denied if failed => "failed",
        super::Action::Allowed => "allowed",
        super::Action::Denied => "denied",
        super::Action::Audited => "audited",
        super::Action::Rejected => "rejected",
        super::Action::Dropped => "dropped",
    });
    let way = match event.via {
        Some(Via::Proxy) => "via proxy",
        Some(Via::Direct) => "direct",
        None => "",
    };
    let _ = write!(line, "{action} {way} {} {}", how(event), printable(&destination(event)));
    for (name, value) in [
        ("sandbox", event.sandbox),
        ("reason", event.reason),
        ("rule", event.rule),
        ("identity", event.identity),
    ] {
        if let Some(value) = value {
            let _ = write!(line, " {name}={}", printable(value));
        }
    }
    if let Some(process) = event.process {
        let exe = process.exe.or(process.comm).unwrap_or("?");
        let _ = write!(line, " process={} pid={}", printable(exe), process.pid);
    }
    if let Some(count) = event.count.filter(|count| *count > 1) {
        let _ = write!(line, " count={count}");
    }
    for (name, value) in
        [("identity_trail", event.identity_trail), ("detail", event.detail), ("hint", event.hint)]
    {
        if let Some(value) = value {
            let _ = write!(line, " {name}=\"{}\"", printable(value));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Action, Kind, ProcessView, Time};

    #[test]
    fn the_words_of_a_bypass_name_the_way_the_destination_and_the_process() {
        let mut event = Event::at(Kind::BypassDetected, Time::from_unix_micros(0));
        event.action = Some(Action::Rejected);
        event.via = Some(Via::Direct);
        event.proto = Some("udp");
        event.dst_ip = Some("2001:db8::1".parse().unwrap());
        event.dst_port = Some(53);
        event.sandbox = Some("a");
        event.process = Some(ProcessView { pid: 3, exe: Some("/x\ny"), ..ProcessView::default() });
        assert_eq!(words(&event), "rejected direct udp [2001:db8::1]:53 sandbox=a process=/x\u{fffd}y pid=3");
    }

    #[test]
    fn a_flood_of_refusals_does_not_flood_the_log() {
        let reporter = Reporter::new(Journal::none(), Arc::default(), Words::UpToARate);
        let spoken = (0..10_000).filter(|_| reporter.may_speak()).count();
        assert!((100..200).contains(&spoken), "{spoken}");
    }
}
