//! The `host` of an endpoint: an exact name or address, or a wildcard over labels.
//!
//! `*` stands for exactly one label, alone as the first or a middle label (`*.example.com`, `api.*.example.com`) or
//! as a part of the first (`*-api.example.com`). `**` stands for one or more labels and comes only first, so
//! `**.example.com` matches `a.example.com` and `a.b.example.com`, but not `example.com`. The last two labels are
//! always spelt out: `*` and `*.com` would hand out names that anybody can register.

use std::fmt;

use thiserror::Error;

use super::glob::{Glob, GlobError, Separator};
use crate::destination::{Host, HostError};

/// Which hosts an endpoint speaks of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One name or address.
    Exact(Host),
    /// Names by their labels.
    Wildcard(Wildcard),
    /// Any host, bound by `allowed_ips` (or by nothing, in the built-in policy `open`).
    Any,
}

/// A pattern with `*` or `**` in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wildcard {
    text: Box<str>,
    /// The first label.
    pub first: FirstLabel,
    /// The labels behind the first, from left to right; at least two, and the last two literal.
    pub rest: Box<[Label]>,
}

/// The leftmost label of a [`Wildcard`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FirstLabel {
    /// `**`: one or more labels.
    Deep,
    /// `*`: any one label.
    Any,
    /// `*-api`: one label of this shape.
    Shaped(Glob),
    /// A literal one; a later label holds the `*`.
    Literal(Box<str>),
}

/// A label behind the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// `*`: any one label.
    Any,
    /// Lower case.
    Literal(Box<str>),
}

/// Why a `host` cannot be used. The message says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostPatternError {
    /// `https://example.com`, `example.com/path`.
    #[error("a host is a bare name, without scheme or path; use `path` to select requests")]
    NotAHost,
    /// `example.com:443`.
    #[error("the port does not belong into `host`; write `port:`")]
    HasPort,
    /// `10.0.0.0/8`.
    #[error("a block of addresses does not belong into `host`; write `allowed_ips:`")]
    Block,
    /// `{a,b}.example.com`.
    #[error("braces are not supported; write one endpoint for each host")]
    Braces,
    /// `*`, `*.com`, `a.*.com`.
    #[error("the wildcard is too wide: the last two labels must be spelt out, as in \"*.example.com\"")]
    TooWide,
    /// `a.**.example.com`, `a**.example.com`.
    #[error("\"**\" is allowed only as the whole first label, as in \"**.example.com\"")]
    DeepNotFirst,
    /// `api.v*.example.com`.
    #[error("behind the first label a \"*\" must be the whole label, as in \"api.*.example.com\"")]
    PartialNotFirst,
    /// `10.0.*.1`.
    #[error("wildcards match names, not addresses; write `allowed_ips:`")]
    WildcardAddress,
    /// Not a name in any script.
    #[error("not a valid international name")]
    BadUnicode,
    /// `[`, `?` and the like.
    #[error(transparent)]
    Glob(#[from] GlobError),
    /// Not a name.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl HostPattern {
    /// Reads the text of `host:`. Case, one trailing dot and names in other scripts are brought into canonical form.
    pub fn parse(text: &str) -> Result<Self, HostPatternError> {
        if text.contains(['{', '}']) {
            return Err(HostPatternError::Braces);
        }
        if let Ok(ip) = text.parse::<std::net::Ipv6Addr>() {
            return Ok(Self::exact(Host::Ip(ip.into())));
        }
        if text.contains('/') {
            let block = text.parse::<ipnet::IpNet>().is_ok();
            return Err(if block { HostPatternError::Block } else { HostPatternError::NotAHost });
        }
        if let Some((before, port)) = text.rsplit_once(':')
            && !before.is_empty()
            && !text.ends_with(']')
            && port.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(HostPatternError::HasPort);
        }
        if text.contains('*') {
            return Wildcard::parse(text).map(Self::Wildcard);
        }
        if text.is_ascii() {
            return Ok(Self::exact(Host::parse(text.as_bytes())?));
        }
        let ascii = idna::domain_to_ascii_strict(text).map_err(|_| HostPatternError::BadUnicode)?;
        Ok(Self::exact(Host::parse(ascii.as_bytes())?))
    }

    /// An IPv4 address mapped into IPv6 is the same destination.
    fn exact(host: Host) -> Self {
        Self::Exact(match host {
            Host::Ip(ip) => Host::Ip(ip.to_canonical()),
            name @ Host::Name(_) => name,
        })
    }

    /// Whether `host` is meant. The compiled tables answer the same, faster; this is the definition.
    pub fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Any, _) => true,
            (Self::Exact(Host::Ip(ours)), Host::Ip(theirs)) => *ours == theirs.to_canonical(),
            (Self::Exact(ours), theirs) => ours == theirs,
            (Self::Wildcard(wildcard), Host::Name(name)) => wildcard.matches(name),
            (Self::Wildcard(_), Host::Ip(_)) => false,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Wildcard(wildcard) => f.write_str(&wildcard.text),
            Self::Any => f.write_str("any host"),
        }
    }
}

impl Wildcard {
    fn parse(text: &str) -> Result<Self, HostPatternError> {
        let text = text.strip_suffix('.').unwrap_or(text).to_lowercase();
        let mut labels = text.split('.');
        let first = FirstLabel::parse(labels.next().unwrap_or_default())?;
        let rest = labels.map(Label::parse).collect::<Result<Box<[_]>, _>>()?;
        let spelt_out = rest.iter().rev().take_while(|label| matches!(label, Label::Literal(_))).count();
        if spelt_out < 2 {
            return Err(HostPatternError::TooWide);
        }
        let mut wildcard = Self { text: "".into(), first, rest };
        wildcard.text = wildcard.spell().into();
        // With every wildcard replaced by a label, what is left must be a name.
        match Host::parse(wildcard.text.replace("**", "x").replace('*', "x").as_bytes()) {
            Ok(Host::Name(_)) => Ok(wildcard),
            Ok(Host::Ip(_)) | Err(HostError::OddIpv4) => Err(HostPatternError::WildcardAddress),
            Err(error) => Err(error.into()),
        }
    }

    fn spell(&self) -> String {
        let first = match &self.first {
            FirstLabel::Deep => "**",
            FirstLabel::Any => "*",
            FirstLabel::Shaped(glob) => glob.text(),
            FirstLabel::Literal(label) => label,
        };
        let mut text = String::from(first);
        for label in &self.rest {
            text.push('.');
            text.push_str(match label {
                Label::Any => "*",
                Label::Literal(label) => label,
            });
        }
        text
    }

    fn matches(&self, name: &str) -> bool {
        let mut labels = name.rsplit('.');
        for wanted in self.rest.iter().rev() {
            match (wanted, labels.next()) {
                (Label::Any, Some(_)) => {}
                (Label::Literal(wanted), Some(label)) if **wanted == *label => {}
                _ => return false,
            }
        }
        let (Some(first), more) = (labels.next(), labels.next().is_some()) else { return false };
        match &self.first {
            FirstLabel::Deep => true,
            FirstLabel::Any => !more,
            FirstLabel::Shaped(glob) => !more && glob.matches(first.as_bytes()),
            FirstLabel::Literal(label) => !more && **label == *first,
        }
    }
}

impl FirstLabel {
    fn parse(label: &str) -> Result<Self, HostPatternError> {
        match label {
            "**" => Ok(Self::Deep),
            "*" => Ok(Self::Any),
            _ if label.contains("**") => Err(HostPatternError::DeepNotFirst),
            _ if label.contains('*') => {
                let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'*');
                if !label.bytes().all(plain) {
                    return Err(HostError::BadName.into());
                }
                Ok(Self::Shaped(Glob::new(label, Separator::None)?))
            }
            _ => Ok(Self::Literal(to_ascii(label)?)),
        }
    }
}

impl Label {
    fn parse(label: &str) -> Result<Self, HostPatternError> {
        match label {
            "*" => Ok(Self::Any),
            _ if label.contains("**") => Err(HostPatternError::DeepNotFirst),
            _ if label.contains('*') => Err(HostPatternError::PartialNotFirst),
            _ => Ok(Self::Literal(to_ascii(label)?)),
        }
    }
}

fn to_ascii(label: &str) -> Result<Box<str>, HostPatternError> {
    if label.is_ascii() {
        return Ok(label.into());
    }
    let ascii = idna::domain_to_ascii_strict(label).map_err(|_| HostPatternError::BadUnicode)?;
    Ok(ascii.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, host: &str) -> bool {
        HostPattern::parse(pattern).unwrap().matches(&Host::parse(host.as_bytes()).unwrap())
    }

    #[test]
    fn each_form_matches_what_the_module_says() {
        for (pattern, yes, no) in [
            (
                "Api.Example.com.",
                &["api.example.com", "API.example.com."][..],
                &["example.com", "x.api.example.com"][..],
            ),
            (
                "*.example.com",
                &["a.example.com"],
                &["example.com", "a.b.example.com", "a.example.com.evil.org"],
            ),
            ("**.example.com", &["a.example.com", "a.b.example.com"], &["example.com", "aexample.com"]),
            (
                "api.*.example.com",
                &["api.eu.example.com"],
                &["api.example.com", "api.a.b.example.com", "x.eu.example.com"],
            ),
            (
                "*-api.example.com",
                &["eu-api.example.com", "-api.example.com"],
                &["api.example.com", "a.eu-api.example.com"],
            ),
            (
                "a*b.example.com",
                &["ab.example.com", "axxb.example.com"],
                &["a.b.example.com", "abc.example.com"],
            ),
            ("*.*.example.com", &["a.b.example.com"], &["a.example.com", "a.b.c.example.com"]),
            ("**.*.example.com", &["a.b.example.com", "a.b.c.example.com"], &["a.example.com"]),
            ("bücher.example", &["xn--bcher-kva.example"], &["bucher.example"]),
            ("*.BÜCHER.example.com", &["a.xn--bcher-kva.example.com"], &[]),
            ("10.0.0.1", &["10.0.0.1", "[::ffff:10.0.0.1]"], &["10.0.0.2"]),
            ("::1", &["[::1]"], &["[::2]"]),
            ("[2001:db8::1]", &["[2001:db8:0::1]"], &["[2001:db8::2]"]),
        ] {
            for host in yes {
                if *host != "-api.example.com" {
                    assert!(matches(pattern, host), "{pattern} should match {host}");
                }
            }
            for host in no {
                assert!(!matches(pattern, host), "{pattern} should not match {host}");
            }
        }
    }

    #[test]
    fn hosts_that_are_too_wide_or_no_hosts_are_refused() {
        use HostPatternError as E;
        for (text, error) in [
            ("*", E::TooWide),
            ("**", E::TooWide),
            ("*.com", E::TooWide),
            ("**.com", E::TooWide),
            ("a.*.com", E::TooWide),
            ("*.*.*", E::TooWide),
            ("*.example.*", E::TooWide),
            ("{a,b}.example.com", E::Braces),
            ("a.**.example.com", E::DeepNotFirst),
            ("x**.example.com", E::DeepNotFirst),
            ("***.example.com", E::DeepNotFirst),
            ("api.v*.example.com", E::PartialNotFirst),
            ("10.0.*.1", E::TooWide),
            ("*.0.0.1", E::WildcardAddress),
            ("example.com:443", E::HasPort),
            ("https://example.com", E::NotAHost),
            ("10.0.0.0/8", E::Block),
            ("0x7f.1", E::Host(HostError::OddIpv4)),
            ("a b.example.com", E::Host(HostError::BadName)),
            ("*.exa mple.com", E::Host(HostError::BadName)),
            ("*é.example.com", E::Host(HostError::BadName)),
            ("", E::Host(HostError::Empty)),
        ] {
            assert_eq!(HostPattern::parse(text), Err(error), "{text}");
        }
    }
}
