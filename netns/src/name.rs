//! The name of a sandbox: one path component, one log prefix, one metric label.

use std::fmt;
use std::str::FromStr;

use crate::{Error, limits};

/// A sandbox's name: `[A-Za-z0-9][A-Za-z0-9._-]{0,39}`.
///
/// It becomes a directory, part of a kernel log prefix and a metric label, so nothing that could leave a
/// directory (`/`, `..`), end a prefix (`:`, `]`, space) or confuse a reader of logs can be in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxName(String);

impl SandboxName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let well_formed = text.len() <= limits::NAME_BYTES_MAX
            && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && text.bytes().all(allowed);
        if well_formed { Ok(Self(text.to_owned())) } else { Err(Error::Name(text.to_owned())) }
    }
}

impl fmt::Display for SandboxName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::SandboxName;

    #[test]
    fn names_that_are_safe_everywhere_are_taken() {
        for good in ["a", "7", "agent-7", "ci.job_12", &"x".repeat(40)] {
            assert_eq!(good.parse::<SandboxName>().expect(good).as_str(), good);
        }
    }

    #[test]
    fn names_that_could_escape_a_path_a_prefix_or_a_label_are_refused() {
        let long = "x".repeat(41);
        for bad in ["", ".", "..", "-a", "_a", ".a", "a/b", "a b", "a:b", "a]b", "a\n", "ä", "a\0", &long] {
            assert!(bad.parse::<SandboxName>().is_err(), "{bad:?} was taken");
        }
    }
}
