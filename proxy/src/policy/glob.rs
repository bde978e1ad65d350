//! Globs over octets, matched in linear time whatever the pattern.
//!
//! | in a pattern | stands for |
//! |---|---|
//! | `*` | any run of octets, also none, that holds no separator |
//! | `**` | any run of octets, also none, separators included |
//! | `?` | one octet that is no separator |
//! | `[a-z_]`, `[!0-9]` | one octet of the set, or not of it; never a separator |
//! | `\*` | the octet itself |
//! | anything else | itself; case counts |
//!
//! So `/repos/**` matches `/repos/` and `/repos/a/b` but not `/repos`, and `/repos/*/issues` matches
//! `/repos/a/issues` but neither `/repos/a/b/issues` nor `/repos/issues`. Braces are refused: other tools read them
//! in different ways. The separator is `/` for paths and programs, and none for query values and labels, where `*`
//! and `**` mean the same.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{BitAnd, BitOr, Shl};

use thiserror::Error;

/// Most elements (octets and wildcards) between a pattern's first and last wildcard, these included: one bit each, and
/// one for the end, in a word.
pub const GLOB_ELEMENTS_MAX: usize = 127;

/// What must not be crossed by `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Separator {
    /// URI paths, program paths.
    Slash,
    /// Query values, host labels.
    None,
}

/// Why a pattern cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GlobError {
    /// Longer than [`GLOB_ELEMENTS_MAX`].
    #[error("the pattern has more than {GLOB_ELEMENTS_MAX} characters between its first and last wildcard")]
    TooLong,
    /// `{a,b}`.
    #[error("braces are not supported in patterns; write one entry for each alternative")]
    Braces,
    /// `[abc` without `]`, or `[]`, or `[z-a]`.
    #[error("the character class is not closed, empty or out of order")]
    BadClass,
    /// A backslash at the end.
    #[error("the pattern ends in a backslash")]
    LoneBackslash,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Element {
    Octet(u8),
    /// `?` or a class: one octet of the set. The separator is never in it.
    OneOf(Box<[u64; 4]>),
    /// `*`.
    Run,
    /// `**`.
    DeepRun,
}

/// A compiled pattern. Equal when written equally.
#[derive(Clone)]
pub struct Glob {
    text: Box<str>,
    separator: Option<u8>,
    /// The octets before the first wildcard; all of them if there is none.
    prefix: Box<[u8]>,
    /// What is between; none for a plain text.
    middle: Option<Middle>,
    /// Octets outside of wildcards.
    literal_octets: u16,
}

#[derive(Clone, Debug)]
enum Middle {
    /// A single `*`.
    Run,
    /// A single `**`.
    DeepRun,
    /// Anything else.
    Automaton(Box<Automaton>),
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.separator == other.separator
    }
}

impl Eq for Glob {}

impl Hash for Glob {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Glob({:?})", self.text)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Glob {
    /// Compiles a pattern.
    pub fn new(pattern: &str, separator: Separator) -> Result<Self, GlobError> {
        let separator = match separator {
            Separator::Slash => Some(b'/'),
            Separator::None => None,
        };
        let text = pattern.into();
        if !pattern.contains(['*', '?', '[', '{', '}', '\\']) {
            let literal_octets = pattern.len() as u16;
            return Ok(Self {
                text,
                separator,
                prefix: pattern.as_bytes().into(),
                middle: None,
                literal_octets,
            });
        }
        let elements = elements(pattern.as_bytes(), separator)?;
        let literal = |element: &Element| match element {
            Element::Octet(octet) => Some(*octet),
            _ => None,
        };
        let literal_octets = elements.iter().filter_map(literal).count() as u16;
        let prefix: Box<[u8]> = elements.iter().map_while(literal).collect();
        let rest = elements.get(prefix.len()..).unwrap_or_default();
        let middle = match rest {
            [] => None,
            [Element::Run] => Some(Middle::Run),
            [Element::DeepRun] => Some(Middle::DeepRun),
            _ => Some(Middle::Automaton(Box::new(Automaton::new(rest)?))),
        };
        Ok(Self { text, separator, prefix, middle, literal_octets })
    }

    /// The pattern as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text that a pattern without wildcards stands for.
    pub fn literal(&self) -> Option<&[u8]> {
        self.middle.is_none().then_some(&*self.prefix)
    }

    /// How much a pattern pins down: its octets outside wildcards.
    pub fn specificity(&self) -> usize {
        usize::from(self.literal_octets)
    }

    /// Whether all of `input` matches.
    pub fn matches(&self, input: &[u8]) -> bool {
        let Some(tail) = input.strip_prefix(&*self.prefix) else { return false };
        match &self.middle {
            None => tail.is_empty(),
            Some(Middle::DeepRun) => true,
            Some(Middle::Run) => self.separator.is_none_or(|separator| !tail.contains(&separator)),
            Some(Middle::Automaton(automaton)) => automaton.matches(tail, self.separator),
        }
    }
}

/// The elements from the first wildcard on, as a machine that looks at each octet once: bit `i` of its state means
/// that the first `i` elements are used up.
#[derive(Clone, Debug)]
struct Automaton {
    /// The octets behind the last wildcard; they are not elements.
    suffix: Box<[u8]>,
    /// For each octet, its row in `takes`. Octets that no element names share a row.
    row: Box<[u8; 256]>,
    states: States,
    /// Whether the last element is `**`, so that the rest of the input does not matter.
    ends_deep: bool,
}

/// In words as narrow as the elements allow: one step is twice as quick in a word of the machine's own.
#[derive(Clone, Debug)]
enum States {
    Narrow(Steps<u64>),
    Wide(Steps<u128>),
}

/// What makes one state of the next, in words of type `W`.
#[derive(Clone, Debug)]
struct Steps<W> {
    /// For each row, the elements that take one such octet and are then used up.
    takes: Box<[W]>,
    /// The elements that are `*`.
    runs: W,
    /// The elements that are `**`.
    deep_runs: W,
    /// All elements are used up.
    end: W,
}

impl Steps<u128> {
    /// The same in narrow words, if they are wide enough.
    fn narrowed(&self) -> Option<Steps<u64>> {
        let narrow = |word: u128| u64::try_from(word).ok();
        Some(Steps {
            takes: self.takes.iter().map(|&word| narrow(word)).collect::<Option<_>>()?,
            runs: narrow(self.runs)?,
            deep_runs: narrow(self.deep_runs)?,
            end: narrow(self.end)?,
        })
    }
}

impl<W> Steps<W>
where
    W: Copy + PartialEq + From<bool> + BitAnd<Output = W> + BitOr<Output = W> + Shl<u8, Output = W>,
{
    fn matches(&self, input: &[u8], row: &[u8; 256], separator: Option<u8>, ends_deep: bool) -> bool {
        let none = W::from(false);
        let empty_runs = self.runs | self.deep_runs;
        // Two runs never stand side by side, so one step over an empty one is enough.
        let skip = |live: W| live | (live & empty_runs) << 1;
        let mut live = skip(W::from(true));
        for &octet in input {
            if ends_deep && live & self.end != none {
                return true;
            }
            let row = row.get(usize::from(octet)).copied().unwrap_or_default();
            let takes = self.takes.get(usize::from(row)).copied().unwrap_or(none);
            let runs = if Some(octet) == separator { self.deep_runs } else { empty_runs };
            live = skip((live & takes) << 1 | live & runs);
            if live == none {
                return false;
            }
        }
        live & self.end != none
    }
}

impl Automaton {
    fn new(rest: &[Element]) -> Result<Self, GlobError> {
        let suffix: Vec<u8> = rest
            .iter()
            .rev()
            .map_while(|element| match element {
                Element::Octet(octet) => Some(*octet),
                _ => None,
            })
            .collect();
        let elements = rest.get(..rest.len() - suffix.len()).unwrap_or_default();
        if elements.len() > GLOB_ELEMENTS_MAX {
            return Err(GlobError::TooLong);
        }
        let bits = |wanted: &dyn Fn(&Element) -> bool| {
            elements.iter().enumerate().filter(|(_, e)| wanted(e)).fold(0, |bits, (i, _)| bits | 1_u128 << i)
        };
        let mut row = Box::new([0; 256]);
        let mut takes: Vec<u128> = Vec::new();
        for octet in 0..=u8::MAX {
            let using = bits(&|element| match element {
                Element::Octet(wanted) => *wanted == octet,
                Element::OneOf(set) => in_set(set, octet),
                Element::Run | Element::DeepRun => false,
            });
            let known = takes.iter().position(|takes| *takes == using);
            row[usize::from(octet)] = known.unwrap_or(takes.len()) as u8;
            if known.is_none() {
                takes.push(using);
            }
        }
        let wide = Steps {
            takes: takes.into(),
            runs: bits(&|element| *element == Element::Run),
            deep_runs: bits(&|element| *element == Element::DeepRun),
            end: 1 << elements.len(),
        };
        Ok(Self {
            suffix: suffix.into_iter().rev().collect(),
            row,
            states: wide.narrowed().map_or(States::Wide(wide), States::Narrow),
            ends_deep: elements.last() == Some(&Element::DeepRun),
        })
    }

    fn matches(&self, tail: &[u8], separator: Option<u8>) -> bool {
        let Some(input) = tail.strip_suffix(&*self.suffix) else { return false };
        match &self.states {
            States::Narrow(steps) => steps.matches(input, &self.row, separator, self.ends_deep),
            States::Wide(steps) => steps.matches(input, &self.row, separator, self.ends_deep),
        }
    }
}

fn in_set(set: &[u64; 4], octet: u8) -> bool {
    set.get(usize::from(octet / 64)).is_some_and(|word| word & (1 << (octet % 64)) != 0)
}

fn elements(pattern: &[u8], separator: Option<u8>) -> Result<Vec<Element>, GlobError> {
    let mut elements = Vec::with_capacity(pattern.len());
    let mut left = pattern;
    while let Some((&octet, after)) = left.split_first() {
        left = after;
        match octet {
            b'*' => {
                let stars = left.iter().take_while(|&&b| b == b'*').count();
                left = left.get(stars..).unwrap_or_default();
                elements.push(if stars > 0 { Element::DeepRun } else { Element::Run });
            }
            b'?' => elements.push(Element::OneOf(Box::new(set(&[], true, separator)))),
            b'[' => {
                let (class, after) = class(left, separator)?;
                elements.push(Element::OneOf(Box::new(class)));
                left = after;
            }
            b'{' | b'}' => return Err(GlobError::Braces),
            b'\\' => {
                let (&literal, after) = left.split_first().ok_or(GlobError::LoneBackslash)?;
                elements.push(Element::Octet(literal));
                left = after;
            }
            octet => elements.push(Element::Octet(octet)),
        }
    }
    Ok(elements)
}

/// Reads a class behind its `[`: the set, and what follows the `]`.
fn class(left: &[u8], separator: Option<u8>) -> Result<([u64; 4], &[u8]), GlobError> {
    let (negated, left) = match left.split_first() {
        Some((b'!' | b'^', after)) => (true, after),
        _ => (false, left),
    };
    let end = left.iter().position(|&b| b == b']').ok_or(GlobError::BadClass)?;
    let (mut body, after) = left.split_at(end);
    let mut ranges = Vec::new();
    while let Some((&low, more)) = body.split_first() {
        let (high, more) = match more {
            [b'-', high, more @ ..] => (*high, more),
            _ => (low, more),
        };
        if high < low {
            return Err(GlobError::BadClass);
        }
        ranges.push((low, high));
        body = more;
    }
    if ranges.is_empty() {
        return Err(GlobError::BadClass);
    }
    Ok((set(&ranges, negated, separator), after.get(1..).unwrap_or_default()))
}

fn set(ranges: &[(u8, u8)], negated: bool, separator: Option<u8>) -> [u64; 4] {
    let member = |octet: u8| {
        let listed = ranges.iter().any(|&(low, high)| (low..=high).contains(&octet));
        listed != negated && Some(octet) != separator
    };
    let word =
        |index: u8| (0..64).filter(|bit| member(index * 64 + bit)).fold(0, |word, bit| word | 1 << bit);
    [word(0), word(1), word(2), word(3)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, input: &str) -> bool {
        Glob::new(pattern, Separator::Slash).unwrap().matches(input.as_bytes())
    }

    #[test]
    fn the_table_of_the_module_holds() {
        for (pattern, yes, no) in [
            (
                "/repos/**",
                &["/repos/", "/repos/a", "/repos/a/b"][..],
                &["/repos", "/repo/a", "/x/repos/a"][..],
            ),
            (
                "/repos/*/issues",
                &["/repos/a/issues", "/repos//issues"],
                &["/repos/a/b/issues", "/repos/issues"],
            ),
            ("**", &["", "/", "/a/b"], &[]),
            ("*", &["", "a"], &["/", "a/b"]),
            ("/a?c", &["/abc"], &["/ac", "/a/c", "/abbc"]),
            ("/v[0-9]/x", &["/v1/x"], &["/va/x", "/v12/x", "/v/x"]),
            ("/v[!0-9]", &["/va"], &["/v1", "/v/"]),
            ("/[a-]", &["/a", "/-"], &["/b"]),
            ("/a\\*b", &["/a*b"], &["/axb", "/a\\*b"]),
            ("/**/z", &["/a/z", "/a/b/z", "//z"], &["/z", "/a/zz"]),
            ("/a*b*c", &["/abc", "/aXbXbc"], &["/ab/c", "/abcd"]),
            ("/**x*/y", &["/1/2x3/y", "/x/y"], &["/1/2/y", "/x/1/y"]),
            ("/usr/lib/python3*/**", &["/usr/lib/python3.11/bin/x"], &["/usr/lib/python2/x"]),
            ("/a*z", &["/az", "/abz"], &["/a", "/z", "/ab/z"]),
            ("/ab*ba", &["/abba", "/abxba"], &["/aba", "/abb"]),
            ("/a/**/", &["/a//", "/a/b/"], &["/a/", "/a/b"]),
            ("/**/?", &["//a", "/b/c"], &["/a", "/b/"]),
            ("/é", &["/é"], &["/e"]),
            ("/A", &["/A"], &["/a"]),
        ] {
            for input in yes {
                assert!(matches(pattern, input), "{pattern} should match {input}");
            }
            for input in no {
                assert!(!matches(pattern, input), "{pattern} should not match {input}");
            }
        }
    }

    #[test]
    fn without_a_separator_a_star_crosses_everything() {
        let glob = Glob::new("linux-*", Separator::None).unwrap();
        assert!(glob.matches(b"linux-a/b.c"));
        assert!(!glob.matches(b"darwin-a"));
    }

    #[test]
    fn bad_patterns_are_refused() {
        for (pattern, error) in [
            ("/{a,b}", GlobError::Braces),
            ("/[ab", GlobError::BadClass),
            ("/[]", GlobError::BadClass),
            ("/[z-a]", GlobError::BadClass),
            ("/a\\", GlobError::LoneBackslash),
        ] {
            assert_eq!(Glob::new(pattern, Separator::Slash), Err(error), "{pattern}");
        }
        let between = |count| format!("{0}*{1}?{0}", "x".repeat(500), "a".repeat(count));
        assert_eq!(Glob::new(&between(126), Separator::Slash), Err(GlobError::TooLong));
        assert!(Glob::new(&between(125), Separator::Slash).is_ok());
    }

    #[test]
    fn the_longest_pattern_reaches_its_last_state() {
        let pattern = format!("*{}?z", "a".repeat(125));
        let glob = Glob::new(&pattern, Separator::Slash).unwrap();
        assert!(glob.matches(format!("{}bz", "a".repeat(300)).as_bytes()));
        assert!(!glob.matches(format!("{}bz", "a".repeat(124)).as_bytes()));
    }

    #[test]
    fn many_stars_take_linear_time() {
        let glob = Glob::new(&"*a".repeat(63), Separator::Slash).unwrap();
        assert!(!glob.matches(&vec![b'b'; 100_000]));
        let mut input = vec![b'a'; 20_000];
        input.push(b'b');
        assert!(!glob.matches(&input));
    }
}
