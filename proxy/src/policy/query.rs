//! Query parameters, as rules see them.
//!
//! `a=1&b=2` is split at `&`, each part at its first `=`, `+` is a space and escapes are undone. The query is sent as
//! it came; a query with a broken escape is refused where a rule looks at queries.

use smallvec::SmallVec;

use super::glob::Glob;
use super::path::unescape;

/// `query: {name: glob}` or `{name: {any: [globs]}}`: all of its parameters must be satisfied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryRule {
    /// Parameter name and the globs of which one must match.
    pub parameters: Vec<(Box<str>, Vec<Glob>)>,
}

/// Octets of a name or value that are decoded without allocation.
type Decoded = SmallVec<[u8; 128]>;

impl QueryRule {
    /// Whether the rule says nothing.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// For an allow rule: every parameter is there, and every one of its values matches.
    pub fn allows(&self, query: &[u8]) -> bool {
        self.parameters.iter().all(|(name, globs)| {
            let mut seen = false;
            let all = values(query, name).all(|value| {
                seen = true;
                globs.iter().any(|glob| glob.matches(&value))
            });
            seen && all
        })
    }

    /// For a deny rule: every parameter is there with a value that matches.
    pub fn denies(&self, query: &[u8]) -> bool {
        self.parameters.iter().all(|(name, globs)| {
            values(query, name).any(|value| globs.iter().any(|glob| glob.matches(&value)))
        })
    }
}

/// Whether every `%` in a query begins an escape.
pub fn is_well_formed(query: &[u8]) -> bool {
    query.split(|&octet| octet == b'%').skip(1).all(|after| match after {
        [high, low, ..] => unescape(*high, *low).is_some(),
        _ => false,
    })
}

fn values<'q>(query: &'q [u8], name: &'q str) -> impl Iterator<Item = Decoded> + 'q {
    query.split(|&octet| octet == b'&').filter_map(move |part| {
        let (key, value) = match part.iter().position(|&octet| octet == b'=') {
            Some(at) => (part.get(..at)?, part.get(at + 1..)?),
            None => (part, &b""[..]),
        };
        (*decode(key) == *name.as_bytes()).then(|| decode(value))
    })
}

fn decode(text: &[u8]) -> Decoded {
    let mut decoded = Decoded::new();
    let mut left = text;
    while let Some((&octet, after)) = left.split_first() {
        left = after;
        match (octet, after) {
            (b'+', _) => decoded.push(b' '),
            (b'%', [high, low, after @ ..]) => match unescape(*high, *low) {
                Some(octet) => {
                    decoded.push(octet);
                    left = after;
                }
                None => decoded.push(b'%'),
            },
            _ => decoded.push(octet),
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::super::glob::Separator;
    use super::*;

    fn rule(parameters: &[(&str, &[&str])]) -> QueryRule {
        let glob = |text: &&str| Glob::new(text, Separator::None).unwrap();
        let parameters = parameters
            .iter()
            .map(|(name, globs)| ((*name).into(), globs.iter().map(glob).collect()))
            .collect();
        QueryRule { parameters }
    }

    #[test]
    fn allow_needs_every_value_and_deny_needs_one() {
        let rule = rule(&[("platform", &["linux-*", "darwin-*"])]);
        for (query, allows, denies) in [
            ("platform=linux-x64", true, true),
            ("platform=darwin-arm&x=1", true, true),
            ("platform=windows", false, false),
            ("platform=linux-x64&platform=windows", false, true),
            ("", false, false),
            ("x=platform", false, false),
            ("pl%61tform=linux%2Dx", true, true),
            ("Platform=linux-x", false, false),
        ] {
            assert_eq!(rule.allows(query.as_bytes()), allows, "allows {query}");
            assert_eq!(rule.denies(query.as_bytes()), denies, "denies {query}");
        }
    }

    #[test]
    fn every_parameter_of_a_rule_counts() {
        let rule = rule(&[("a", &["1"]), ("b", &["*"])]);
        assert!(rule.allows(b"a=1&b"));
        assert!(!rule.allows(b"a=1"));
        assert!(!rule.denies(b"a=1"));
    }

    #[test]
    fn escapes() {
        assert_eq!(*decode(b"a+b%20c%zz%"), *b"a b c%zz%");
        assert!(is_well_formed(b"a=%20&b=%C3%A9"));
        for bad in [&b"%"[..], b"%2", b"a=%zz", b"%%20", b"%2%30"] {
            assert!(!is_well_formed(bad), "{bad:?}");
        }
    }
}
