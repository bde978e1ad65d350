//! Request targets (RFC 9112 section 3.2): what a proxy is asked for, and what the origin is asked in turn.
//!
//! [`on_proxy`] reads the target of a request to the proxy itself, [`in_tunnel`] that of a request inside a tunnel whose
//! HTTP is inspected. Both borrow from the head; nothing is copied until [`Authority::to_destination`].

use std::num::NonZeroU16;

use super::fault::Fault;
use super::fields::split_once;
use super::head::{Method, RequestHead};
use crate::destination::{Authority, Destination};

/// Where a request to the proxy wants to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'b> {
    /// CONNECT: a tunnel to this authority, which has a port.
    Tunnel(Authority<'b>),
    /// Anything else: a request to forward, in plaintext, to port 80 unless another is given.
    Forward(Authority<'b>, Path<'b>),
}

/// What to ask an origin for: origin-form or asterisk-form, exactly as the client spelt it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'b> {
    /// Starts with `/`, or is `*`.
    pub path: &'b [u8],
    /// What is behind the first `?`, without it.
    pub query: Option<&'b [u8]>,
}

/// The scheme inside a tunnel, for the default port of a `Host` and for absolute-form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plaintext.
    Http,
    /// Inside TLS that Sluice terminates.
    Https,
}

/// The port of `http://` without one.
pub const HTTP_PORT: u16 = 80;
/// The port of `https://` without one.
pub const HTTPS_PORT: u16 = 443;

impl Scheme {
    /// The port where none is given.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => HTTP_PORT,
            Self::Https => HTTPS_PORT,
        }
    }

    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Http => b"http://",
            Self::Https => b"https://",
        }
    }
}

impl Path<'_> {
    /// Whether this is asterisk-form: the origin as a whole.
    pub fn is_asterisk(&self) -> bool {
        self.path == b"*"
    }

    /// Appends it as a request line wants it.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.path);
        if let Some(query) = self.query {
            out.push(b'?');
            out.extend_from_slice(query);
        }
    }
}

/// The target of a request to the proxy.
pub fn on_proxy<'b>(head: &RequestHead, buf: &'b [u8]) -> Result<Target<'b>, Fault> {
    parse(head.method, head.target(buf))
}

/// The pure core of [`on_proxy`]: the target of a request with this method.
pub fn parse(method: Method, target: &[u8]) -> Result<Target<'_>, Fault> {
    check_octets(target)?;
    if method == Method::Connect {
        let authority = Authority::parse(target)?;
        return authority.port.map(|_: NonZeroU16| Target::Tunnel(authority)).ok_or(Fault::Port);
    }
    if target.first() == Some(&b'/') || target == b"*" {
        return Err(Fault::OriginFormToProxy);
    }
    let (authority, path) = absolute_form(method, target, Scheme::Http)?;
    Ok(Target::Forward(authority, path))
}

/// The target of a request inside a tunnel to `tunnel`. It, and its `Host`, must name the tunnel's own destination:
/// that is what was judged and dialled.
pub fn in_tunnel<'b>(
    head: &RequestHead,
    buf: &'b [u8],
    tunnel: &Destination,
    scheme: Scheme,
) -> Result<Path<'b>, Fault> {
    if head.method == Method::Connect {
        return Err(Fault::NestedConnect);
    }
    let target = head.target(buf);
    check_octets(target)?;
    let names_tunnel = |authority: Authority<'_>| authority.is(tunnel, scheme.default_port());
    if let Some(host) = head.host(buf) {
        let host = Authority::parse(host).map_err(|_| Fault::Host)?;
        if !names_tunnel(host) {
            return Err(Fault::HostMismatch);
        }
    }
    if target == b"*" {
        return asterisk(head.method);
    }
    if target.first() == Some(&b'/') {
        return Ok(split_query(target));
    }
    let (authority, path) = absolute_form(head.method, target, scheme)?;
    if names_tunnel(authority) { Ok(path) } else { Err(Fault::HostMismatch) }
}

fn asterisk(method: Method) -> Result<Path<'static>, Fault> {
    match method {
        Method::Options => Ok(Path { path: b"*", query: None }),
        _ => Err(Fault::TargetForm),
    }
}

/// `scheme://authority[/path][?query]`.
fn absolute_form(method: Method, target: &[u8], scheme: Scheme) -> Result<(Authority<'_>, Path<'_>), Fault> {
    let rest = match strip_prefix_ignore_case(target, scheme.prefix()) {
        Some(rest) => rest,
        None if strip_prefix_ignore_case(target, Scheme::Https.prefix()).is_some() => {
            return Err(Fault::SchemeHttps);
        }
        None if target.windows(3).any(|three| three == b"://") => return Err(Fault::SchemeUnknown),
        None => return Err(Fault::TargetForm),
    };
    let authority_end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(authority_end).ok_or(Fault::TargetForm)?;
    let authority = Authority::parse(authority)?;
    let path = match tail.first() {
        // RFC 9112 section 3.2.4.
        None if method == Method::Options => Path { path: b"*", query: None },
        None => Path { path: b"/", query: None },
        Some(b'?') => Path { path: b"/", query: tail.get(1..) },
        Some(_) => split_query(tail),
    };
    Ok((authority, path))
}

fn split_query(target: &[u8]) -> Path<'_> {
    match split_once(target, b'?') {
        Some((path, query)) => Path { path, query: Some(query) },
        None => Path { path: target, query: None },
    }
}

/// No control octet, space, raw non-ASCII or backslash (which some origins take for a slash), and no fragment.
/// Other octets that RFC 3986 wants encoded (`|`, `"`, `[`, a lone `%`) are common, harmless here, and pass.
fn check_octets(target: &[u8]) -> Result<(), Fault> {
    if target.is_empty() {
        return Err(Fault::TargetForm);
    }
    for &octet in target {
        match octet {
            b'#' => return Err(Fault::Fragment),
            b'\\' => return Err(Fault::TargetOctet),
            _ if !octet.is_ascii_graphic() => return Err(Fault::TargetOctet),
            _ => {}
        }
    }
    Ok(())
}

fn strip_prefix_ignore_case<'b>(bytes: &'b [u8], prefix: &[u8]) -> Option<&'b [u8]> {
    let (start, rest) = bytes.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::HostError;
    use crate::http::head::RequestReader;
    use crate::http::limits::HeadLimits;

    /// `host:port path ?query` of what a forward target means.
    fn forward(method: Method, target: &'static str) -> Result<(String, String), Fault> {
        match parse(method, target.as_bytes())? {
            Target::Forward(authority, path) => {
                let mut line = Vec::new();
                path.write(&mut line);
                let line = String::from_utf8_lossy(&line).into_owned();
                Ok((authority.to_destination(HTTP_PORT).to_string(), line))
            }
            Target::Tunnel(_) => panic!("{target} is no tunnel"),
        }
    }

    #[test]
    fn absolute_form_becomes_a_destination_and_origin_form() {
        let rows = [
            ("http://a.example/x?y=1", "a.example:80", "/x?y=1"),
            ("HTTP://A.Example:8080", "a.example:8080", "/"),
            ("http://a.example?q", "a.example:80", "/?q"),
            ("http://a.example/?", "a.example:80", "/?"),
            ("http://a.example/a//b/../c;d=%2F?e?f", "a.example:80", "/a//b/../c;d=%2F?e?f"),
            ("http://[2001:db8::1]:81/", "[2001:db8::1]:81", "/"),
            ("http://10.0.0.1/user@host:x", "10.0.0.1:80", "/user@host:x"),
            ("http://a/%", "a:80", "/%"),
            ("http://a/a[]=|\"<>{}^`", "a:80", "/a[]=|\"<>{}^`"),
        ];
        for (target, destination, path) in rows {
            assert_eq!(forward(Method::Get, target), Ok((destination.into(), path.into())), "{target}");
        }
    }

    #[test]
    fn options_without_a_path_asks_for_the_whole_origin() {
        assert_eq!(forward(Method::Options, "http://a.example"), Ok(("a.example:80".into(), "*".into())));
        assert_eq!(forward(Method::Options, "http://a.example/"), Ok(("a.example:80".into(), "/".into())));
    }

    #[test]
    fn forward_targets_that_are_refused() {
        let rows = [
            ("/path", Fault::OriginFormToProxy),
            ("*", Fault::OriginFormToProxy),
            ("https://a/", Fault::SchemeHttps),
            ("HTTPS://a/", Fault::SchemeHttps),
            ("ws://a/", Fault::SchemeUnknown),
            ("ftp://a/", Fault::SchemeUnknown),
            ("a:80", Fault::TargetForm),
            ("http:/a/", Fault::TargetForm),
            ("http:a", Fault::TargetForm),
            ("http://", Fault::TargetHost(HostError::Empty)),
            ("http:///x", Fault::TargetHost(HostError::Empty)),
            ("http://:80/", Fault::TargetHost(HostError::Empty)),
            ("http://user@a/", Fault::Userinfo),
            ("http://user:pw@a:80/", Fault::Userinfo),
            ("http://@a/", Fault::Userinfo),
            ("http://a/#f", Fault::Fragment),
            ("http://a#f", Fault::Fragment),
            ("http://a:/", Fault::Port),
            ("http://a:0/", Fault::Port),
            ("http://a:65536/", Fault::Port),
            ("http://a:+80/", Fault::Port),
            ("http://a:80a/", Fault::Port),
            ("http://a\\b/", Fault::TargetOctet),
            ("http://a/\\b", Fault::TargetOctet),
            ("http://a/\u{e9}", Fault::TargetOctet),
            ("http://a/ b", Fault::TargetOctet),
            ("http://a/\tb", Fault::TargetOctet),
            ("http://a/\0", Fault::TargetOctet),
            ("http://0x7f.1/", Fault::TargetHost(HostError::OddIpv4)),
            ("http://2130706433/", Fault::TargetHost(HostError::OddIpv4)),
            ("http://127.1/", Fault::TargetHost(HostError::OddIpv4)),
            ("http://a%2eb/", Fault::TargetHost(HostError::BadName)),
            ("http://[::1%25lo]/", Fault::TargetHost(HostError::BadIpv6)),
            ("http://[::1]x/", Fault::TargetHost(HostError::BadIpv6)),
            ("", Fault::TargetForm),
        ];
        for (target, fault) in rows {
            assert_eq!(forward(Method::Get, target), Err(fault), "{target:?}");
        }
    }

    #[test]
    fn connect_takes_an_authority_with_a_port_and_nothing_else() {
        let connect = |target: &'static str| match parse(Method::Connect, target.as_bytes()) {
            Ok(Target::Tunnel(authority)) => Ok(authority.to_destination(0).to_string()),
            Ok(Target::Forward(..)) => panic!("{target} is no forward request"),
            Err(fault) => Err(fault),
        };
        assert_eq!(connect("A.example:443"), Ok("a.example:443".into()));
        assert_eq!(connect("[::1]:22"), Ok("[::1]:22".into()));
        let rows = [
            ("a", Fault::Port),
            ("a:", Fault::Port),
            ("a:0", Fault::Port),
            ("a:65536", Fault::Port),
            ("a:0443", Fault::Port),
            ("a:443/", Fault::Port),
            ("a:443?x", Fault::Port),
            (":443", Fault::TargetHost(HostError::Empty)),
            ("u@a:443", Fault::Userinfo),
            ("/", Fault::TargetHost(HostError::BadName)),
            ("*", Fault::TargetHost(HostError::BadName)),
            ("http://a:443", Fault::Port),
            ("a:443#f", Fault::Fragment),
            ("::1:443", Fault::Port),
        ];
        for (target, fault) in rows {
            assert_eq!(connect(target), Err(fault), "{target}");
        }
    }

    #[test]
    fn inside_a_tunnel_everything_names_the_tunnels_destination() -> Result<(), HostError> {
        let host = crate::destination::Host::parse(b"a.example")?;
        let path = |port, scheme, line: &str, host_field: &str| {
            let tunnel = Destination { host: host.clone(), port };
            let text = format!("{line} HTTP/1.1\r\nHost: {host_field}\r\n\r\n");
            let head =
                RequestReader::new(HeadLimits::default()).read(text.as_bytes())?.ok_or(Fault::FieldLine)?;
            let path = in_tunnel(&head, text.as_bytes(), &tunnel, scheme)?;
            let mut out = Vec::new();
            path.write(&mut out);
            Ok(String::from_utf8_lossy(&out).into_owned())
        };
        let (http, https) = (Scheme::Http, Scheme::Https);
        assert_eq!(path(443, https, "GET /x?y", "a.example"), Ok("/x?y".into()));
        assert_eq!(path(80, http, "GET /", "A.EXAMPLE.:80"), Ok("/".into()));
        assert_eq!(path(8080, http, "GET http://a.example:8080/x", "a.example:8080"), Ok("/x".into()));
        assert_eq!(path(443, https, "GET https://a.example/x", "a.example"), Ok("/x".into()));
        assert_eq!(path(80, http, "OPTIONS *", "a.example"), Ok("*".into()));
        let rows = [
            (80, http, "GET /", "b.example", Fault::HostMismatch),
            (8080, http, "GET /", "a.example", Fault::HostMismatch),
            (443, http, "GET /", "a.example", Fault::HostMismatch),
            (80, http, "GET http://b.example/", "a.example", Fault::HostMismatch),
            (80, http, "GET https://a.example/", "a.example", Fault::SchemeHttps),
            (443, https, "GET http://a.example/", "a.example", Fault::SchemeUnknown),
            (80, http, "GET *", "a.example", Fault::TargetForm),
            (80, http, "GET a.example:80", "a.example", Fault::TargetForm),
            (80, http, "CONNECT a.example:80", "a.example", Fault::NestedConnect),
            (80, http, "GET /#x", "a.example", Fault::Fragment),
        ];
        for (port, scheme, line, host_field, fault) in rows {
            assert_eq!(path(port, scheme, line, host_field), Err(fault), "{line} {host_field}");
        }
        Ok(())
    }
}
