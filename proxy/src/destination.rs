//! Where a request wants to go: a host in one canonical spelling, and a port.
//!
//! A [`Host`] is either an IP address or a lower-case ASCII name; there is no third form, so nothing behind the
//! parser has to think about `127.1`, `0x7f000001` or `EXAMPLE.com.` again.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use thiserror::Error;

/// Longest host name in octets, without the trailing dot (RFC 1035 section 2.3.4).
pub const HOST_OCTETS_MAX: usize = 253;
const LABEL_OCTETS_MAX: usize = 63;

/// A host in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A lower-case ASCII name without a trailing dot; never spelt like a number.
    Name(Box<str>),
    /// An address literal.
    Ip(IpAddr),
}

/// Why some bytes are not a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum HostError {
    /// Nothing there.
    #[error("the host is empty")]
    Empty,
    /// Over 253 octets, or a label over 63.
    #[error("the host name is too long")]
    TooLong,
    /// A character or label shape no host name has.
    #[error("the host name holds a character or label that is not allowed")]
    BadName,
    /// Ends in a number but is not a plain dotted quad (`127.1`, `0x7f.1`, `2130706433`).
    #[error("the host is a number that is not a plain IPv4 address")]
    OddIpv4,
    /// Brackets without a plain IPv6 address in them.
    #[error("the host is not a valid IPv6 address")]
    BadIpv6,
}

/// A host that has been checked but not yet copied: what a parser hands out, so that a request to the same place as
/// the one before costs no allocation ([`HostRef::is`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRef<'b> {
    /// A name as it was spelt, without its trailing dot; the case is the sender's.
    Name(&'b str),
    /// An address literal.
    Ip(IpAddr),
}

impl<'b> HostRef<'b> {
    /// Parses the host of a URI authority (RFC 3986 section 3.2.2): a name, a dotted quad, or IPv6 in brackets.
    pub fn parse(bytes: &'b [u8]) -> Result<Self, HostError> {
        let text = std::str::from_utf8(bytes).map_err(|_| HostError::BadName)?;
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(HostError::BadIpv6)?;
            return inner.parse::<Ipv6Addr>().map(|ip| Self::Ip(ip.into())).map_err(|_| HostError::BadIpv6);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if name.len() > HOST_OCTETS_MAX {
            return Err(HostError::TooLong);
        }
        let last = name.rsplit('.').next().unwrap_or(name);
        if is_number(last) {
            // All that browsers take for an IPv4 address; only one spelling of it is taken here.
            return match (name.parse::<Ipv4Addr>(), name.split('.').try_for_each(check_label)) {
                (Ok(ip), _) => Ok(Self::Ip(ip.into())),
                (Err(_), Ok(())) => Err(HostError::OddIpv4),
                (Err(_), Err(error)) => Err(error),
            };
        }
        name.split('.').try_for_each(check_label).map(|()| Self::Name(name))
    }

    /// Whether this is the same host, names without regard to case.
    pub fn is(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Name(spelt), Host::Name(name)) => spelt.eq_ignore_ascii_case(name),
            (Self::Ip(ip), Host::Ip(other)) => ip == other,
            _ => false,
        }
    }

    /// The canonical host; allocates for a name.
    pub fn to_host(&self) -> Host {
        match self {
            Self::Name(name) => Host::Name(name.to_ascii_lowercase().into_boxed_str()),
            Self::Ip(ip) => Host::Ip(*ip),
        }
    }
}

impl Host {
    /// Parses the host of a URI authority; see [`HostRef::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self, HostError> {
        HostRef::parse(bytes).map(|host| host.to_host())
    }

    /// The name, if it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Ip(_) => None,
        }
    }
}

/// Letters, digits, hyphens (not at the ends) and underscores.
fn check_label(label: &str) -> Result<(), HostError> {
    if label.len() > LABEL_OCTETS_MAX {
        return Err(HostError::TooLong);
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let hyphen_at_end = label.starts_with('-') || label.ends_with('-');
    if label.is_empty() || hyphen_at_end || !label.bytes().all(plain) {
        Err(HostError::BadName)
    } else {
        Ok(())
    }
}

/// The "ends in a number" test of the WHATWG URL standard, for one label: all digits, or `0x` and hex digits.
fn is_number(label: &str) -> bool {
    if label.bytes().all(|b| b.is_ascii_digit()) {
        return true;
    }
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    hex.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl fmt::Display for Host {
    /// As in a URI authority: IPv6 in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// A host and a port from 1 to 65535.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Where to.
    pub host: Host,
    /// Never 0.
    pub port: u16,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The host and port of a request target, checked but not yet copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'b> {
    /// Where to.
    pub host: HostRef<'b>,
    /// Never 0; absent where the sender left it to the scheme.
    pub port: Option<NonZeroU16>,
}

/// Why some bytes are not an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum AuthorityError {
    /// `user@` or `user:password@`: never accepted, never forwarded (RFC 9110 section 4.2.4).
    #[error("the authority holds user information")]
    Userinfo,
    /// Empty, zero, over 65535, a leading zero, or anything but digits.
    #[error("the port is not a plain number from 1 to 65535")]
    Port,
    /// The host in it is none.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl<'b> Authority<'b> {
    /// Parses `host` or `host:port`. A colon with nothing behind it is refused.
    pub fn parse(bytes: &'b [u8]) -> Result<Self, AuthorityError> {
        if bytes.contains(&b'@') {
            return Err(AuthorityError::Userinfo);
        }
        // The colons of an IPv6 literal are inside its brackets.
        let host_end = match bytes.strip_prefix(b"[") {
            Some(_) => bytes.iter().position(|&b| b == b']').ok_or(HostError::BadIpv6)?.saturating_add(1),
            None => bytes.iter().position(|&b| b == b':').unwrap_or(bytes.len()),
        };
        let (host, rest) = bytes.split_at_checked(host_end).ok_or(HostError::BadName)?;
        let port = match rest.split_first() {
            None => None,
            Some((b':', digits)) => Some(parse_port(digits).ok_or(AuthorityError::Port)?),
            Some(_) => return Err(HostError::BadIpv6.into()),
        };
        Ok(Self { host: HostRef::parse(host)?, port })
    }

    /// The port meant: the one given, or the scheme's.
    pub fn port_or(&self, default: u16) -> u16 {
        self.port.map_or(default, NonZeroU16::get)
    }

    /// Whether this names `destination` where the scheme's port is `default_port`.
    pub fn is(&self, destination: &Destination, default_port: u16) -> bool {
        self.port_or(default_port) == destination.port && self.host.is(&destination.host)
    }

    /// The destination meant; allocates for a name.
    pub fn to_destination(&self, default_port: u16) -> Destination {
        Destination { host: self.host.to_host(), port: self.port_or(default_port) }
    }
}

/// A port in plain decimal: no sign, no leading zero, 1 to 65535.
fn parse_port(digits: &[u8]) -> Option<NonZeroU16> {
    if digits.len() > 5 || digits.first() == Some(&b'0') || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_and_lose_one_trailing_dot() {
        assert_eq!(Host::parse(b"API.Example.COM."), Ok(Host::Name("api.example.com".into())));
        assert_eq!(Host::parse(b"a.."), Err(HostError::BadName));
        assert_eq!(Host::parse(b"."), Err(HostError::Empty));
    }

    #[test]
    fn odd_ipv4_spellings_are_refused_not_resolved() {
        for odd in
            ["127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "1.2.3.4.5", "example.0x"]
        {
            assert_eq!(Host::parse(odd.as_bytes()), Err(HostError::OddIpv4), "{odd}");
        }
        assert_eq!(Host::parse(b"127.0.0.1."), Ok(Host::Ip(Ipv4Addr::LOCALHOST.into())));
    }

    #[test]
    fn ipv6_needs_brackets_and_no_zone() {
        assert_eq!(Host::parse(b"[::1]"), Ok(Host::Ip(Ipv6Addr::LOCALHOST.into())));
        for bad in ["[::1", "[]", "[fe80::1%25eth0]", "[::1]x"] {
            assert_eq!(Host::parse(bad.as_bytes()), Err(HostError::BadIpv6), "{bad}");
        }
        assert_eq!(Host::parse(b"::1"), Err(HostError::BadName));
    }

    #[test]
    fn junk_is_refused() {
        for junk in [&b"a b"[..], b"a\0", b"\xff", b"a/b", b"user@host", b"-a", b"a-"] {
            assert_eq!(Host::parse(junk), Err(HostError::BadName), "{junk:?}");
        }
        assert_eq!(Host::parse(&[b'a'; 64]), Err(HostError::TooLong));
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_plain_port() {
        let parse = |text: &'static str| Authority::parse(text.as_bytes());
        let with_port = parse("API.example.com:8443").map(|a| a.to_destination(80));
        assert_eq!(with_port.map(|d| d.to_string()), Ok("api.example.com:8443".to_owned()));
        assert_eq!(parse("a").map(|a| a.port_or(80)), Ok(80));
        assert_eq!(
            parse("[::1]:65535").map(|a| a.to_destination(80).to_string()),
            Ok("[::1]:65535".to_owned())
        );
        for port in [
            "a:",
            "a:0",
            "a:00",
            "a:080",
            "a:65536",
            "a:+80",
            "a:-1",
            "a: 80",
            "a:80 ",
            "a:8e1",
            "a:99999999999",
        ] {
            assert_eq!(parse(port), Err(AuthorityError::Port), "{port}");
        }
        for user in ["u@a:80", "u:p@a", "@a", "a:80@b:80"] {
            assert_eq!(parse(user), Err(AuthorityError::Userinfo), "{user}");
        }
        for host in ["", ":80", "[::1", "[::1]80", "::1", "a b", "127.1:80"] {
            assert!(parse(host).is_err(), "{host}");
        }
    }

    #[test]
    fn a_borrowed_host_is_compared_as_its_canonical_form_would_be() {
        let host = Host::parse(b"example.com");
        let is =
            |text: &'static [u8]| HostRef::parse(text).is_ok_and(|r| host.as_ref().is_ok_and(|h| r.is(h)));
        assert!(is(b"EXAMPLE.com.") && is(b"example.com"));
        assert!(!is(b"example.org") && !is(b"127.0.0.1"));
    }
}
