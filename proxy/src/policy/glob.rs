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

use thiserror::Error;

/// Most elements (octets and wildcards) of one pattern; the set of live states then fits four words.
pub const GLOB_ELEMENTS_MAX: usize = 255;

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
    #[error("the pattern is longer than {GLOB_ELEMENTS_MAX} characters")]
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

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Element {
    Octet(u8),
    /// `?` or a class: one octet of the set. The separator is never in it.
    OneOf(Box<[u64; 4]>),
    /// `*`.
    Run,
    /// `**`.
    DeepRun,
}

/// A compiled pattern.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Glob {
    text: Box<str>,
    separator: Option<u8>,
    /// The octets before the first wildcard.
    prefix: Box<[u8]>,
    /// From the first wildcard on; empty for a pattern without any.
    rest: Box<[Element]>,
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
        let elements = elements(pattern.as_bytes(), separator)?;
        if elements.len() > GLOB_ELEMENTS_MAX {
            return Err(GlobError::TooLong);
        }
        let octet = |element: &Element| match element {
            Element::Octet(octet) => Some(*octet),
            _ => None,
        };
        let prefix: Box<[u8]> = elements.iter().map_while(octet).collect();
        let rest = elements.get(prefix.len()..).unwrap_or_default().into();
        Ok(Self { text: pattern.into(), separator, prefix, rest })
    }

    /// The pattern as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the pattern is a plain text.
    pub fn literal(&self) -> Option<&[u8]> {
        self.rest.is_empty().then_some(&*self.prefix)
    }

    /// How much a pattern pins down: its octets outside wildcards.
    pub fn specificity(&self) -> usize {
        self.prefix.len() + self.rest.iter().filter(|e| matches!(e, Element::Octet(_))).count()
    }

    /// Whether all of `input` matches.
    pub fn matches(&self, input: &[u8]) -> bool {
        let Some(tail) = input.strip_prefix(&*self.prefix) else { return false };
        match &*self.rest {
            [] => tail.is_empty(),
            [Element::DeepRun] => true,
            [Element::Run] => self.separator.is_none_or(|separator| !tail.contains(&separator)),
            rest => run(rest, self.separator, tail),
        }
    }
}

/// Runs the pattern as an automaton: state `i` means that the first `i` elements are used up.
fn run(rest: &[Element], separator: Option<u8>, input: &[u8]) -> bool {
    let mut live = States::default();
    live.enter(0, rest);
    for &octet in input {
        let mut next = States::default();
        for state in live.iter() {
            match rest.get(state) {
                Some(Element::Octet(wanted)) if *wanted == octet => next.enter(state + 1, rest),
                Some(Element::OneOf(set)) if in_set(set, octet) => next.enter(state + 1, rest),
                Some(Element::Run) if Some(octet) != separator => next.enter(state, rest),
                Some(Element::DeepRun) => next.enter(state, rest),
                _ => {}
            }
        }
        if next.is_empty() {
            return false;
        }
        live = next;
    }
    live.holds(rest.len())
}

/// A set of states from 0 to 255.
#[derive(Default)]
struct States([u64; 4]);

impl States {
    /// Adds a state and those reached from it by runs of no octets.
    fn enter(&mut self, state: usize, rest: &[Element]) {
        for state in state..=rest.len() {
            if let Some(word) = self.0.get_mut(state / 64) {
                *word |= 1 << (state % 64);
            }
            if !matches!(rest.get(state), Some(Element::Run | Element::DeepRun)) {
                return;
            }
        }
    }

    fn holds(&self, state: usize) -> bool {
        self.0.get(state / 64).is_some_and(|word| word & (1 << (state % 64)) != 0)
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(index, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.checked_sub(1)?;
                Some(index * 64 + bit)
            })
        })
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
        assert_eq!(Glob::new(&"a".repeat(256), Separator::Slash), Err(GlobError::TooLong));
        assert!(Glob::new(&"a".repeat(255), Separator::Slash).is_ok());
    }

    #[test]
    fn the_longest_pattern_reaches_its_last_state() {
        let pattern = format!("*{}", "a".repeat(254));
        let glob = Glob::new(&pattern, Separator::Slash).unwrap();
        assert!(glob.matches("a".repeat(300).as_bytes()));
        assert!(!glob.matches("a".repeat(253).as_bytes()));
    }

    #[test]
    fn many_stars_take_linear_time() {
        let glob = Glob::new(&"*a".repeat(100), Separator::Slash).unwrap();
        assert!(!glob.matches(&vec![b'b'; 100_000]));
        let mut input = vec![b'a'; 20_000];
        input.push(b'b');
        assert!(!glob.matches(&input));
    }
}
