//! What was seen, folded: the summary of `exec` and the answers of `denials`.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use comfy_table::{ContentArrangement, Table, presets};

use super::{Action, Event, Kind, Time};

/// Different lines kept for one command; what comes beyond is counted in one line. At some 300 octets each: 600 KiB.
const LINES_MAX: usize = 2_000;
/// Different lines kept of each sandbox of a daemon. A new one takes the place of the one not seen for longest, so that
/// one tenant's flood costs no other tenant a line: 40 MiB when a thousand sandboxes are refused everything.
const LINES_OF_ONE_MAX: usize = 128;
/// Different paths kept of one line of a daemon's sandbox, and of a command's: that one may be learned from.
const PATHS_MAX: usize = 16;
const PATHS_OF_COMMAND_MAX: usize = 256;

/// Clients of one kind that closed when they had seen our certificate, before it is said that they may pin one.
const LEFT_MIN: u64 = 3;

/// How far an attempt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Through the proxy and allowed.
    Allowed,
    /// Allowed although the policy would refuse it.
    Audited,
    /// Allowed, but the network, the origin or the proxy failed.
    Failed,
    /// Asked of the proxy and refused.
    Denied,
    /// Tried past the proxy and refused by the kernel.
    Bypassed,
}

/// What makes two attempts the same line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// How far it came.
    pub stage: Stage,
    /// Which sandbox.
    pub sandbox: Box<str>,
    /// `tcp`, `udp`, … or the method of a request.
    pub how: Box<str>,
    /// Host and port as asked for.
    pub destination: Box<str>,
    /// Path of the program, or empty.
    pub program: Box<str>,
    /// Reason of the refusal, or the rule that allowed it.
    pub why: Box<str>,
}

/// How often a [`Key`] was seen.
#[derive(Clone, Debug)]
pub struct Line {
    /// Attempts.
    pub count: u64,
    /// The first of them.
    pub first: Time,
    /// The last of them.
    pub last: Time,
    /// Process of the last one, 0 when unknown.
    pub pid: u32,
    /// What to do about it.
    pub hint: Option<Box<str>>,
    /// Paths of requests, the first `PATHS_MAX` of them (of a command, `PATHS_OF_COMMAND_MAX`); empty for everything
    /// else.
    pub paths: BTreeSet<Box<str>>,
    /// Of a direct attempt: whether the policy would have allowed it through the proxy, if that is known.
    pub allowed_via_proxy: Option<bool>,
    /// There were more.
    pub paths_beyond: bool,
}

/// Octets of all paths kept of one of a daemon's sandboxes (64 MiB for a thousand), and of a command.
const PATH_OCTETS_MAX: usize = 64 << 10;
const PATH_OCTETS_OF_COMMAND_MAX: usize = 8 << 20;

/// A bounded account of attempts.
#[derive(Default)]
pub struct Ledger {
    /// By sandbox.
    inner: Mutex<HashMap<Box<str>, Account>>,
    of_many: bool,
}

/// The attempts of one sandbox.
#[derive(Default)]
struct Account {
    lines: HashMap<Key, Line>,
    beyond: u64,
    path_octets: usize,
}

impl Account {
    /// Makes room for one more line, if it may: the first ones are kept for a command, the latest for a daemon.
    fn make_room(&mut self, of_many: bool) -> bool {
        let most = if of_many { LINES_OF_ONE_MAX } else { LINES_MAX };
        if self.lines.len() < most {
            return true;
        }
        let oldest = self.lines.iter().min_by_key(|(_, line)| line.last).map(|(key, _)| key.clone());
        let Some(line) = oldest.filter(|_| of_many).and_then(|key| self.lines.remove(&key)) else {
            return false;
        };
        self.beyond += line.count;
        self.path_octets -= line.paths.iter().map(|path| path.len()).sum::<usize>();
        true
    }
}

impl Ledger {
    /// Takes an event into account, if it is an attempt. True when it is the first of its kind.
    pub fn note(&self, event: &Event<'_>) -> bool {
        let Some(stage) = stage_of(event) else { return false };
        let key = key_of(stage, event);
        let count = event.count.unwrap_or(1);
        let mut inner = self.lock();
        let account = match inner.get_mut(&key.sandbox) {
            Some(account) => account,
            None => inner.entry(key.sandbox.clone()).or_default(),
        };
        if !account.lines.contains_key(&key) && !account.make_room(self.of_many) {
            account.beyond += count;
            return false;
        }
        let line = account.lines.entry(key).or_insert_with(|| Line {
            count: 0,
            first: event.first.unwrap_or(event.time),
            last: event.time,
            pid: 0,
            hint: None,
            paths: BTreeSet::new(),
            allowed_via_proxy: None,
            paths_beyond: false,
        });
        line.count += count;
        line.last = event.last.unwrap_or(event.time);
        line.pid = event.process.map_or(line.pid, |process| process.pid);
        // Who only left may have had other reasons; who leaves again and again has not.
        let in_doubt = event.reason == Some("client_left") && line.count < LEFT_MIN;
        if line.hint.is_none() && !in_doubt {
            line.hint = event.hint.map(Into::into);
        }
        line.allowed_via_proxy = event.allowed_via_proxy.or(line.allowed_via_proxy);
        if let Some(path) = event.path.filter(|path| !line.paths.contains(*path)) {
            let (most, octets_most) = if self.of_many {
                (PATHS_MAX, PATH_OCTETS_MAX)
            } else {
                (PATHS_OF_COMMAND_MAX, PATH_OCTETS_OF_COMMAND_MAX)
            };
            if line.paths.len() < most && account.path_octets + path.len() <= octets_most {
                account.path_octets += path.len();
                line.paths.insert(path.into());
            } else {
                line.paths_beyond = true;
            }
        }
        line.count == count
    }

    /// For a daemon: the latest lines of each sandbox, however many sandboxes there are.
    pub fn of_many() -> Self {
        Self { of_many: true, ..Self::default() }
    }

    /// Forgets a sandbox that is gone.
    pub fn forget(&self, sandbox: &str) {
        self.lock().remove(sandbox);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Account>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All lines, ordered by stage, then as they came.
    pub fn lines(&self) -> Vec<(Key, Line)> {
        self.sorted(|_| true)
    }

    /// The lines of one sandbox in the same order, and the attempts that have no line any more.
    pub fn lines_of(&self, sandbox: &str) -> (Vec<(Key, Line)>, u64) {
        let beyond = self.lock().get(sandbox).map_or(0, |account| account.beyond);
        (self.sorted(|name| name == sandbox), beyond)
    }

    fn sorted(&self, wanted: impl Fn(&str) -> bool) -> Vec<(Key, Line)> {
        let inner = self.lock();
        let accounts = inner.iter().filter(|(name, _)| wanted(name)).flat_map(|(_, account)| &account.lines);
        let mut lines: Vec<_> = accounts.map(|(key, line)| (key.clone(), line.clone())).collect();
        drop(inner);
        lines.sort_by(|a, b| (a.0.stage, a.1.first, &a.0).cmp(&(b.0.stage, b.1.first, &b.0)));
        lines
    }

    /// Attempts that found no line of their own.
    pub fn beyond(&self) -> u64 {
        self.lock().values().map(|account| account.beyond).sum()
    }
}

pub(super) fn stage_of(event: &Event<'_>) -> Option<Stage> {
    match (event.event, event.action) {
        (Kind::ConnectAllowed | Kind::RequestAllowed, Some(Action::Audited)) => Some(Stage::Audited),
        (Kind::ConnectAllowed | Kind::RequestAllowed, _) => Some(Stage::Allowed),
        (Kind::ConnectDenied | Kind::RequestDenied, _) => {
            Some(if event.status.is_some_and(|status| status >= 500) { Stage::Failed } else { Stage::Denied })
        }
        (Kind::TlsFailed, _) => Some(Stage::Denied),
        (Kind::BypassDetected | Kind::FenceViolation, _) => Some(Stage::Bypassed),
        _ => None,
    }
}

fn key_of(stage: Stage, event: &Event<'_>) -> Key {
    let why = if stage == Stage::Allowed { event.rule } else { event.reason.or(event.rule) };
    Key {
        stage,
        sandbox: event.sandbox.unwrap_or("").into(),
        how: how(event).into(),
        destination: destination(event).into(),
        program: event.process.and_then(|process| process.exe).unwrap_or("").into(),
        why: why.unwrap_or("").into(),
    }
}

/// `CONNECT`, the method of a request, or the protocol.
pub(super) fn how<'a>(event: &Event<'a>) -> &'a str {
    match event.event {
        Kind::ConnectAllowed | Kind::ConnectDenied => "CONNECT",
        Kind::TlsFailed => "TLS",
        _ => event.method.or(event.proto).unwrap_or(""),
    }
}

/// `host:port` as a person writes it: an IPv6 address in brackets.
pub(super) fn destination(event: &Event<'_>) -> String {
    let host = match (event.dst_host, event.dst_ip) {
        (Some(host), _) => host.to_owned(),
        (None, ip) => ip.map(|ip| ip.to_string()).unwrap_or_default(),
    };
    let mut text = if host.contains(':') { format!("[{host}]") } else { host };
    if let Some(port) = event.dst_port {
        let _ = write!(text, ":{port}");
    }
    text
}

/// The summary as a person reads it at the end of `exec`: totals, a table, and one hint a kind of refusal.
///
/// `width` is the terminal's width in columns, if there is one.
pub fn render(ledger: &Ledger, width: Option<u16>) -> String {
    let lines = ledger.lines();
    let total =
        |stage| lines.iter().filter(|(key, _)| key.stage == stage).map(|(_, line)| line.count).sum::<u64>();
    let bypassed = total(Stage::Bypassed);
    let mut text = format!(
        "sluice: {} allowed, {} denied, {bypassed} bypass attempt{} refused",
        total(Stage::Allowed) + total(Stage::Audited),
        total(Stage::Denied),
        if bypassed == 1 { "" } else { "s" }
    );
    if total(Stage::Failed) > 0 {
        let _ = write!(text, ", {} failed", total(Stage::Failed));
    }
    if total(Stage::Audited) > 0 {
        let _ = write!(text, " ({} of the allowed would be denied: audit)", total(Stage::Audited));
    }
    text.push('\n');
    if lines.is_empty() {
        return text;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width {
        table.set_width(width);
    }
    table.set_header(["", "how", "destination", "program", "why", "times"]);
    for (key, line) in &lines {
        table.add_row([
            match key.stage {
                Stage::Allowed => "allowed",
                Stage::Audited => "audited",
                Stage::Failed => "failed",
                Stage::Denied => "denied",
                Stage::Bypassed => "BYPASS",
            },
            &key.how,
            &printable(&key.destination),
            &program_cell(key, line),
            &key.why,
            &line.count.to_string(),
        ]);
    }
    let _ = writeln!(text, "{table}");
    let mut hints: Vec<&str> = Vec::new();
    for hint in lines.iter().filter_map(|(_, line)| line.hint.as_deref()) {
        if !hints.contains(&hint) {
            hints.push(hint);
        }
    }
    for hint in hints {
        let _ = writeln!(text, "hint: {}", printable(hint));
    }
    let beyond = ledger.beyond();
    if beyond > 0 {
        let _ = writeln!(text, "and {beyond} more attempts that differ from the {LINES_MAX} kinds shown");
    }
    text
}

fn program_cell(key: &Key, line: &Line) -> String {
    match (key.program.is_empty(), line.pid) {
        (true, 0) => "?".into(),
        (true, pid) => format!("pid {pid}"),
        (false, 0) => printable(&key.program),
        (false, pid) => format!("{} ({pid})", printable(&key.program)),
    }
}

/// Text without anything a terminal would act on.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ProcessView, Via};

    fn denied(port: u16) -> Event<'static> {
        let mut event = Event::at(Kind::ConnectDenied, Time::from_unix_micros(i64::from(port)));
        event.dst_host = Some("example.com");
        event.dst_port = Some(port);
        event.reason = Some("host_not_allowed");
        event.via = Some(Via::Proxy);
        event.process = Some(ProcessView { pid: 9, exe: Some("/usr/bin/curl"), ..ProcessView::default() });
        event.hint = Some("ask the operator");
        event
    }

    #[test]
    fn equal_attempts_fold_into_one_line() {
        let ledger = Ledger::default();
        for _ in 0..3 {
            ledger.note(&denied(443));
        }
        ledger.note(&denied(80));
        let lines = ledger.lines();
        assert_eq!(lines.iter().map(|(_, line)| line.count).collect::<Vec<_>>(), [1, 3]);
        let text = render(&ledger, Some(120));
        assert!(text.starts_with("sluice: 0 allowed, 4 denied, 0 bypass attempts refused\n"), "{text}");
        assert_eq!(text.matches("hint: ask the operator").count(), 1, "{text}");
        assert!(text.contains("/usr/bin/curl (9)"), "{text}");
    }

    #[test]
    fn paths_are_kept_up_to_a_number_of_octets_and_what_is_beyond_is_told() {
        let ledger = Ledger::of_many();
        let long = |letter: char| letter.to_string().repeat(PATH_OCTETS_MAX / 2);
        for letter in ['a', 'b', 'c'] {
            let path = long(letter);
            let mut event = denied(80);
            event.path = Some(&path);
            ledger.note(&event);
        }
        let (_, line) = ledger.lines().remove(0);
        assert_eq!((line.paths.len(), line.paths_beyond), (2, true));
        for port in 1_000..1_000 + LINES_OF_ONE_MAX as u16 {
            ledger.note(&denied(port));
        }
        assert_eq!(ledger.lock()[""].path_octets, 0, "room is given back with the line");
    }

    #[test]
    fn clients_that_leave_at_our_certificate_are_hinted_from_the_third_on() {
        let ledger = Ledger::default();
        let mut event = denied(443);
        event.event = Kind::TlsFailed;
        event.reason = Some("client_left");
        let hint = || ledger.lines()[0].1.hint.is_some();
        ledger.note(&event);
        ledger.note(&event);
        assert!(!hint());
        ledger.note(&event);
        assert!(hint());
    }

    #[test]
    fn an_ipv6_destination_is_in_brackets_however_it_is_known() {
        let mut event = denied(443);
        event.dst_host = Some("::1");
        assert_eq!(destination(&event), "[::1]:443");
        event.dst_host = None;
        event.dst_ip = Some("2001:db8::1".parse().unwrap());
        assert_eq!(destination(&event), "[2001:db8::1]:443");
    }

    #[test]
    fn what_is_beyond_the_bound_is_counted() {
        let ledger = Ledger::default();
        for port in 0..=(LINES_MAX as u16) {
            ledger.note(&denied(port));
        }
        assert_eq!(ledger.lines().len(), LINES_MAX);
        assert_eq!(ledger.beyond(), 1);
    }

    #[test]
    fn one_sandbox_of_many_costs_no_other_a_line() {
        let ledger = Ledger::of_many();
        let mut of_other = denied(7);
        of_other.sandbox = Some("quiet");
        ledger.note(&of_other);
        let mut event = denied(0);
        event.sandbox = Some("loud");
        for port in 0..1000 {
            event.dst_port = Some(port);
            event.time = Time::from_unix_micros(i64::from(port));
            ledger.note(&event);
        }
        assert_eq!(ledger.lines_of("quiet").0.len(), 1);
        let (lines, beyond) = ledger.lines_of("loud");
        assert_eq!((lines.len(), beyond), (LINES_OF_ONE_MAX, 1000 - LINES_OF_ONE_MAX as u64));
        assert_eq!(&*lines.last().unwrap().0.destination, "example.com:999", "the latest are kept");
        ledger.forget("loud");
        assert_eq!(ledger.lines().len(), 1);
    }

    #[test]
    fn a_terminal_never_sees_control_characters_of_a_peer() {
        let ledger = Ledger::default();
        let mut event = denied(1);
        event.process = Some(ProcessView { pid: 1, exe: Some("/tmp/\u{1b}[2J"), ..ProcessView::default() });
        ledger.note(&event);
        assert!(!render(&ledger, None).contains('\u{1b}'));
    }
}
