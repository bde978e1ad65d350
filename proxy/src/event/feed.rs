//! Events for those who ask the daemon: the latest ones, and those that come.
//!
//! The journal's writer thread hands over what it writes; whoever reports pays nothing for it. What a follower does not
//! take in time is dropped for it, counted, and said.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use serde::Deserialize;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{Event, Kind};

/// Octets of the latest lines that are kept: some 8,000 events.
const RECENT_OCTETS_MAX: usize = 4 << 20;
/// Lines that may wait for one follower.
const WAITING_MAX: usize = 4096;
/// Followers at a time.
pub const FOLLOWERS_MAX: usize = 64;

/// Which events somebody wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this sandbox only.
    pub sandbox: Option<String>,
    /// Of this kind only.
    pub kind: Option<Kind>,
}

/// The latest events, and those who follow.
#[derive(Default)]
pub struct Feed {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    recent: VecDeque<Arc<str>>,
    octets: usize,
    followers: Vec<Follower>,
}

struct Follower {
    filter: Filter,
    to: Sender<Arc<str>>,
    dropped: Arc<AtomicU64>,
}

/// Events as they come. Dropped, nothing follows any more.
pub struct Following {
    lines: Receiver<Arc<str>>,
    dropped: Arc<AtomicU64>,
}

/// What of a line decides who wants it.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    sandbox: Option<Cow<'a, str>>,
}

impl Filter {
    fn wants(&self, line: &str) -> bool {
        if self.sandbox.is_none() && self.kind.is_none() {
            return true;
        }
        let Ok(head) = serde_json::from_str::<Head<'_>>(line) else { return false };
        self.kind.is_none_or(|kind| kind.name() == head.event)
            && self.sandbox.as_deref().is_none_or(|name| head.sandbox.as_deref() == Some(name))
    }
}

impl Feed {
    /// Takes lines that were written.
    pub(super) fn push(&self, lines: &[u8]) {
        let mut inner = self.lock();
        for line in lines.split_inclusive(|octet| *octet == b'\n') {
            // Rendered by us: always UTF-8.
            let Ok(line) = std::str::from_utf8(line) else { continue };
            inner.take(line.into());
        }
    }

    /// The latest lines that pass `filter`, oldest first.
    pub fn recent(&self, filter: &Filter) -> Vec<Arc<str>> {
        let recent: Vec<Arc<str>> = self.lock().recent.iter().cloned().collect();
        recent.into_iter().filter(|line| filter.wants(line)).collect()
    }

    /// The latest lines that pass `filter`, and then those that come, none twice and none left out. `None` when there
    /// are [`FOLLOWERS_MAX`] already.
    pub fn follow(&self, filter: &Filter) -> Option<(Vec<Arc<str>>, Following)> {
        let (to, lines) = channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut inner = self.lock();
        inner.followers.retain(|follower| !follower.to.is_closed());
        if inner.followers.len() >= FOLLOWERS_MAX {
            return None;
        }
        let recent: Vec<Arc<str>> = inner.recent.iter().cloned().collect();
        inner.followers.push(Follower { filter: filter.clone(), to, dropped: Arc::clone(&dropped) });
        drop(inner);
        let recent = recent.into_iter().filter(|line| filter.wants(line)).collect();
        Some((recent, Following { lines, dropped }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take(&mut self, line: Arc<str>) {
        self.followers.retain(|follower| {
            if !follower.filter.wants(&line) {
                return true;
            }
            match follower.to.try_send(Arc::clone(&line)) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    follower.dropped.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Err(TrySendError::Closed(_)) => false,
            }
        });
        self.octets += line.len();
        self.recent.push_back(line);
        while self.octets > RECENT_OCTETS_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.octets -= oldest.len();
        }
    }
}

impl Following {
    /// The next lines, all that are there; empty when the daemon ends. What was dropped since the last call is told by
    /// a line of its own, `monitor.lost` with the reason `slow_reader`.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Vec<Arc<str>>> {
        let mut lines = Vec::new();
        ready!(self.lines.poll_recv_many(context, &mut lines, WAITING_MAX));
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            lines.push(lost(dropped).into());
        }
        Poll::Ready(lines)
    }
}

fn lost(count: u64) -> String {
    let mut event = Event::now(Kind::MonitorLost);
    event.reason = Some("slow_reader");
    event.count = Some(count);
    event.detail = Some("this reader of events was slower than they came");
    serde_json::to_string(&event).map(|line| line + "\n").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn line(kind: &str, sandbox: &str, number: usize) -> String {
        format!("{{\"time\":\"x\",\"event\":\"{kind}\",\"sandbox\":\"{sandbox}\",\"count\":{number}}}\n")
    }

    fn next(following: &mut Following) -> Vec<Arc<str>> {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(poll_fn(|context| following.poll_next(context)))
    }

    #[test]
    fn a_follower_gets_what_it_asked_for_once_and_in_order() {
        let feed = Feed::default();
        let told = [("connect.denied", "a"), ("bypass.detected", "a"), ("bypass.detected", "b")];
        let lines: String =
            told.iter().enumerate().map(|(n, (kind, sandbox))| line(kind, sandbox, n)).collect();
        feed.push(lines.as_bytes());
        let filter = Filter { sandbox: Some("a".into()), kind: Some(Kind::BypassDetected) };
        let (recent, mut following) = feed.follow(&filter).unwrap();
        assert_eq!(recent.iter().map(|line| &**line).collect::<Vec<_>>(), [line("bypass.detected", "a", 1)]);
        feed.push(lines.as_bytes());
        assert_eq!(next(&mut following).len(), 1);
        assert_eq!(feed.recent(&Filter::default()).len(), 6);
    }

    #[test]
    fn what_a_slow_follower_misses_is_counted_and_said() {
        let feed = Feed::default();
        let (_, mut following) = feed.follow(&Filter::default()).unwrap();
        for number in 0..WAITING_MAX + 7 {
            feed.push(line("connect.allowed", "a", number).as_bytes());
        }
        let lines = next(&mut following);
        assert_eq!(lines.len(), WAITING_MAX + 1);
        let last: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        assert_eq!((&last["event"], &last["reason"]), (&"monitor.lost".into(), &"slow_reader".into()));
        assert_eq!(last["count"], 7);
    }

    #[test]
    fn only_the_latest_are_kept() {
        let feed = Feed::default();
        let long = "x".repeat(10_000);
        for number in 0..1000 {
            feed.push(line("connect.allowed", &long, number).as_bytes());
        }
        let kept: usize = feed.recent(&Filter::default()).iter().map(|line| line.len()).sum();
        assert!((RECENT_OCTETS_MAX - 20_000..=RECENT_OCTETS_MAX).contains(&kept), "{kept}");
    }

    #[test]
    fn there_are_only_so_many_followers_and_one_that_left_makes_room() {
        let feed = Feed::default();
        let mut all: Vec<_> = (0..FOLLOWERS_MAX).map(|_| feed.follow(&Filter::default()).unwrap()).collect();
        assert!(feed.follow(&Filter::default()).is_none());
        all.pop();
        assert!(feed.follow(&Filter::default()).is_some());
    }
}
