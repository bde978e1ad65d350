//! Typed readers: each records what is wrong with a node and returns `None`, so that the caller reads on.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::{Node, Value, shorten};
use crate::diagnostic::{Diagnostics, Place, did_you_mean, nearest};

/// Reads the nodes of one file.
pub struct Reader<'a> {
    /// The file's name in messages.
    pub file: Arc<str>,
    /// Where mistakes go.
    pub out: &'a mut Diagnostics,
}

/// The known entries of a mapping; unknown ones were errors already.
pub struct Fields<'n> {
    node: &'n Node,
    entries: Vec<(&'n Node, &'n Node)>,
    /// Known keys that an unknown one was taken for.
    misspelt: Vec<String>,
}

impl<'n> Fields<'n> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(k, _)| k.text() == Some(key)).map(|(_, value)| *value)
    }

    /// The value of a key, as `read` takes it.
    pub fn read<T>(&self, key: &str, read: impl FnOnce(&'n Node) -> Option<T>) -> Given<T> {
        match self.get(key).map(read) {
            None => Given::Absent,
            Some(None) => Given::Bad,
            Some(Some(value)) => Given::Good(value),
        }
    }

    /// Whether a key is neither there nor there with a slip, which is an error already.
    pub fn lacks(&self, key: &str) -> bool {
        self.get(key).is_none() && !self.misspelt.iter().any(|misspelt| misspelt == key)
    }

    /// The key's own node, for its place.
    pub fn key(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(k, _)| k.text() == Some(key)).map(|(k, _)| *k)
    }

    /// The mapping itself, for its place.
    pub fn node(&self) -> &'n Node {
        self.node
    }
}

/// What a key held. A bad value is not an absent one: its error is told, and no other should follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given<T> {
    /// The key is not there.
    Absent,
    /// It is, with a value whose error has been recorded.
    Bad,
    /// It is.
    Good(T),
}

impl<T> Given<T> {
    /// Whether the key is there.
    pub fn is_given(&self) -> bool {
        !matches!(self, Self::Absent)
    }

    /// The value, if there is a good one.
    pub fn good(self) -> Option<T> {
        match self {
            Self::Good(value) => Some(value),
            Self::Absent | Self::Bad => None,
        }
    }

    /// The value or, if the key is absent, the default; none if the value is bad.
    pub fn or(self, default: T) -> Option<T> {
        match self {
            Self::Absent => Some(default),
            Self::Bad => None,
            Self::Good(value) => Some(value),
        }
    }

    /// Changes a good value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Given<U> {
        match self {
            Self::Absent => Given::Absent,
            Self::Bad => Given::Bad,
            Self::Good(value) => Given::Good(change(value)),
        }
    }
}

impl<'a> Reader<'a> {
    /// A reader for one file's tree.
    pub fn new(file: &Arc<str>, out: &'a mut Diagnostics) -> Self {
        Self { file: Arc::clone(file), out }
    }

    /// Where a node is.
    pub fn place(&self, node: &Node) -> Place {
        Place { file: Arc::clone(&self.file), line: node.line, column: node.column }
    }

    /// Records an error at a node.
    pub fn error(&mut self, node: &Node, message: impl Into<String>) {
        let place = self.place(node);
        self.out.error(place, message);
    }

    /// Records an error at a node, with its remedy.
    pub fn error_with_help(&mut self, node: &Node, message: impl Into<String>, help: impl Into<String>) {
        let place = self.place(node);
        self.out.error_with_help(place, message, help);
    }

    /// Records a note at a node.
    pub fn note(&mut self, node: &Node, message: impl Into<String>) {
        let place = self.place(node);
        self.out.note(place, message);
    }

    fn expected<T>(&mut self, node: &Node, what: &str) -> Option<T> {
        self.error(node, format!("expected {what}, found {}", node.describe()));
        None
    }

    /// A mapping whose keys are all in `known`; the others are errors with a suggestion.
    pub fn mapping<'n>(&mut self, node: &'n Node, known: &[&str]) -> Option<Fields<'n>> {
        self.mapping_refusing(node, known, &[])
    }

    /// The same, with keys that are understood but not honoured, and why: they are errors, never silently ignored.
    pub fn mapping_refusing<'n>(
        &mut self,
        node: &'n Node,
        known: &[&str],
        refused: &[(&str, &str)],
    ) -> Option<Fields<'n>> {
        let Value::Mapping(entries) = &node.value else { return self.expected(node, "a mapping") };
        let mut fields = Fields { node, entries: Vec::with_capacity(entries.len()), misspelt: Vec::new() };
        for (key, value) in entries {
            let name = key.text().unwrap_or_default();
            if known.contains(&name) {
                fields.entries.push((key, value));
                continue;
            }
            if let Some((_, why)) = refused.iter().find(|(refused, _)| *refused == name) {
                self.error(key, format!("key \"{name}\" is not supported yet: {why}"));
                continue;
            }
            let message = format!("unknown key \"{}\"", shorten(name));
            let help = match nearest(name, known.iter().copied()) {
                Some(meant) => {
                    fields.misspelt.push(meant.to_owned());
                    format!("did you mean \"{meant}\"?")
                }
                None => format!("known here: {}", known.join(", ")),
            };
            self.error_with_help(key, message, help);
        }
        Some(fields)
    }

    /// The value of a key that must be there.
    pub fn required<'n>(&mut self, fields: &Fields<'n>, key: &str) -> Option<&'n Node> {
        if fields.lacks(key) {
            self.error(fields.node(), format!("the key \"{key}\" is missing"));
        }
        fields.get(key)
    }

    /// A mapping with free keys.
    pub fn entries<'n>(&mut self, node: &'n Node) -> Option<&'n [(Node, Node)]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            _ => self.expected(node, "a mapping"),
        }
    }

    /// A list, possibly empty.
    pub fn list<'n>(&mut self, node: &'n Node) -> Option<&'n [Node]> {
        match &node.value {
            Value::Sequence(items) => Some(items),
            _ => self.expected(node, "a list"),
        }
    }

    /// A list with at least one item; `[]` says nothing and is usually a mistake.
    pub fn list_not_empty<'n>(&mut self, node: &'n Node, help: &str) -> Option<&'n [Node]> {
        let items = self.list(node)?;
        if items.is_empty() {
            self.error_with_help(node, "the list is empty", help);
            return None;
        }
        Some(items)
    }

    /// Text, not empty. Plain numbers and booleans count as their text.
    pub fn string<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
        match node.text() {
            Some(text) if !node.is_null() && !text.is_empty() => Some(text),
            _ => self.expected(node, "text"),
        }
    }

    /// `true` or `false`, plain.
    pub fn bool(&mut self, node: &Node) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, plain: true } if &**text == "true" => Some(true),
            Value::Scalar { text, plain: true } if &**text == "false" => Some(false),
            _ => self.expected(node, "true or false"),
        }
    }

    /// A plain decimal number within bounds.
    pub fn number(&mut self, node: &Node, what: &str, min: u64, max: u64) -> Option<u64> {
        let number = match &node.value {
            Value::Scalar { text, plain: true } if text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse::<u64>().ok()
            }
            _ => None,
        };
        match number {
            Some(number) if (min..=max).contains(&number) => Some(number),
            _ => self.expected(node, &format!("{what} from {min} to {max}")),
        }
    }

    /// A port from 1 to 65535.
    pub fn port(&mut self, node: &Node) -> Option<u16> {
        self.number(node, "a port", 1, u64::from(u16::MAX)).map(|port| port as u16)
    }

    /// One of a closed set of words.
    pub fn choice<T: Copy>(&mut self, node: &Node, choices: &[(&str, T)]) -> Option<T> {
        let found = node.text().unwrap_or_default();
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == found) {
            return Some(*value);
        }
        let words = choices.iter().map(|(word, _)| *word);
        let message =
            format!("expected {}, found {}", words.clone().collect::<Vec<_>>().join(" or "), node.describe());
        match did_you_mean(found, words) {
            Some(help) => self.error_with_help(node, message, help),
            None => self.error(node, message),
        }
        None
    }

    /// A CIDR block or a single address. Bits beyond the prefix are an error: the author meant something else.
    pub fn cidr(&mut self, node: &Node) -> Option<IpNet> {
        let text = self.string(node)?;
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(ip.into());
        }
        let Ok(net) = text.parse::<IpNet>() else {
            return self.expected(node, "an address or a CIDR block such as 10.0.0.0/8");
        };
        if net.trunc() != net {
            let message = format!("{net} has bits beyond its prefix");
            self.error_with_help(node, message, format!("did you mean \"{}\"?", net.trunc()));
            return None;
        }
        Some(net)
    }

    /// An address with a port.
    pub fn socket_address(&mut self, node: &Node) -> Option<SocketAddr> {
        let text = self.string(node)?;
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(address),
            _ => self.expected(node, "an address and a port such as 127.0.0.1:3128"),
        }
    }

    /// A path of a file.
    pub fn path(&mut self, node: &Node) -> Option<PathBuf> {
        let text = self.string(node)?;
        if text.contains('\0') {
            return self.expected(node, "a path");
        }
        Some(PathBuf::from(text))
    }

    /// `500ms`, `30s`, `5m`, `2h`, `1d`, or a plain `0`.
    pub fn duration(&mut self, node: &Node) -> Option<Duration> {
        match duration(self.string(node)?) {
            Some(duration) => Some(duration),
            None => self.expected(node, "a duration such as 500ms, 30s, 5m, 2h or 1d"),
        }
    }
}

/// Longest duration: ten years. Sums of deadlines stay far from overflow.
const DURATION_MS_MAX: u64 = 10 * 365 * 86_400_000;

fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    (ms <= DURATION_MS_MAX).then_some(Duration::from_millis(ms))
}

#[cfg(test)]
#[allow(
    clippy::redundant_closure_for_method_calls,
    reason = "the methods are not general over the reader's lifetime"
)]
mod tests {
    use super::*;
    use crate::yaml::parse;

    /// Reads the scalar `text` with `read`; gives the value and the messages.
    fn read<T>(text: &str, read: impl FnOnce(&mut Reader<'_>, &Node) -> Option<T>) -> (Option<T>, String) {
        let mut out = Diagnostics::default();
        let file: Arc<str> = "t.yaml".into();
        let node = parse(text, &file, &mut out).unwrap();
        let value = read(&mut Reader::new(&file, &mut out), &node);
        (value, out.to_string())
    }

    #[test]
    fn unknown_keys_name_the_nearest_known_one() {
        let (fields, errors) = read("port: 1\nhots: x\nzzzzzz: 1\n", |r, n| {
            r.mapping(n, &["host", "port"]).map(|f| f.get("port").is_some())
        });
        assert_eq!(fields, Some(true));
        assert_eq!(
            errors,
            "t.yaml:2:1: error: unknown key \"hots\"; did you mean \"host\"?\n\
             t.yaml:3:1: error: unknown key \"zzzzzz\"; known here: host, port\n"
        );
    }

    #[test]
    fn ports() {
        assert_eq!(read("443", |r, n| r.port(n)).0, Some(443));
        for bad in ["0", "65536", "\"443\"", "+5", "0x1bb", "-1", "[1]", "4 43", "99999999999999999999"] {
            let (port, errors) = read(bad, |r, n| r.port(n));
            assert_eq!(port, None, "{bad}");
            assert!(
                errors.starts_with("t.yaml:1:1: error: expected a port from 1 to 65535, found "),
                "{errors}"
            );
        }
    }

    #[test]
    fn cidrs() {
        assert_eq!(read("10.0.0.0/8", |r, n| r.cidr(n)).0, "10.0.0.0/8".parse().ok());
        assert_eq!(read("10.1.2.3", |r, n| r.cidr(n)).0, "10.1.2.3/32".parse().ok());
        assert_eq!(read("\"fd00::1\"", |r, n| r.cidr(n)).0, "fd00::1/128".parse().ok());
        assert_eq!(
            read("10.1.0.0/8", |r, n| r.cidr(n)).1,
            "t.yaml:1:1: error: 10.1.0.0/8 has bits beyond its prefix; did you mean \"10.0.0.0/8\"?\n"
        );
        assert!(read("10.0.0.0/33", |r, n| r.cidr(n)).0.is_none());
        assert!(read("10.0.0/8", |r, n| r.cidr(n)).0.is_none());
    }

    #[test]
    fn durations() {
        for (text, ms) in [("0", 0), ("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1d", 86_400_000)] {
            assert_eq!(read(text, |r, n| r.duration(n)).0, Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["30", "s", "1.5s", "-1s", "99999d", "99999999999999999999s", "5 m"] {
            assert!(read(bad, |r, n| r.duration(n)).0.is_none(), "{bad}");
        }
    }

    #[test]
    fn choices_suggest() {
        let (_, errors) = read("enforc", |r, n| r.choice(n, &[("enforce", 1), ("audit", 2)]));
        assert_eq!(
            errors,
            "t.yaml:1:1: error: expected enforce or audit, found \"enforc\"; did you mean \"enforce\"?\n"
        );
    }

    #[test]
    fn booleans_and_text_are_not_guessed() {
        assert_eq!(read("true", |r, n| r.bool(n)).0, Some(true));
        for bad in ["yes", "\"true\"", "1", "TRUE"] {
            assert!(read(bad, |r, n| r.bool(n)).0.is_none(), "{bad}");
        }
        assert!(read("~", |r, n| r.string(n).map(drop)).0.is_none());
        assert!(read("''", |r, n| r.string(n).map(drop)).0.is_none());
    }
}
