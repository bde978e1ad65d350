//! The little that the yardsticks understand of a request: `CONNECT ip:port`, and for `least` `METHOD http://ip:port/…`.

use std::net::SocketAddr;
use std::ops::Range;

/// A head longer than this is refused, bytes.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The answer to a CONNECT that was dialled.
pub(super) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";
/// The answer to anything else.
pub(super) const BAD: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// The answer when the origin cannot be reached.
pub(super) const UNREACHABLE: &[u8] =
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// Bytes of the head.
    pub(super) length: usize,
    /// Where to.
    pub(super) target: SocketAddr,
    /// `None` for CONNECT; for a forward request the part of the head to leave out (`http://authority`).
    pub(super) origin: Option<Range<usize>>,
    /// Whether it asks for another protocol: bytes both ways from then on.
    pub(super) upgrades: bool,
}

/// Reads the head at the start of `bytes`: `Ok(None)` while incomplete, `Err` with the answer to give.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Request>, &'static [u8]> {
    let Some(length) = crate::load::head::end(bytes) else {
        return if bytes.len() > HEAD_BYTES_MAX { Err(BAD) } else { Ok(None) };
    };
    let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
    if let Some(rest) = line.strip_prefix(b"CONNECT ") {
        let target = rest.split(|&byte| byte == b' ').next().and_then(address).ok_or(BAD)?;
        return Ok(Some(Request { length, target, origin: None, upgrades: false }));
    }
    let method = line.iter().position(|&byte| byte == b' ').ok_or(BAD)?;
    let url = line.get(method + 1..).unwrap_or_default();
    let authority = url.strip_prefix(b"http://").ok_or(BAD)?;
    let size = authority.iter().position(|&byte| byte == b'/').ok_or(BAD)?;
    let target = authority.get(..size).and_then(address).ok_or(BAD)?;
    let origin = Some(method + 1..method + 1 + b"http://".len() + size);
    let mut lines = bytes.get(..length).unwrap_or_default().split(|&byte| byte == b'\n');
    let upgrades = lines.any(|line| crate::load::head::field(line, b"upgrade").is_some());
    Ok(Some(Request { length, target, origin, upgrades }))
}

/// `ip:port`, or `ip` with port 80.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    text.parse().ok().or_else(|| text.parse().ok().map(|ip| SocketAddr::new(ip, 80)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_and_forward_requests_are_read() {
        let bytes = b"CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: x\r\n\r\nearly";
        let request = parse(bytes).unwrap().unwrap();
        assert_eq!(request.length, bytes.len() - 5);
        assert_eq!((request.target.port(), request.origin), (443, None));

        let bytes = b"GET http://127.0.0.1:8080/a?b HTTP/1.1\r\nHost: x\r\n\r\n";
        let request = parse(bytes).unwrap().unwrap();
        assert_eq!(request.target.port(), 8080);
        let cut = request.origin.unwrap();
        assert_eq!(
            [&bytes[..cut.start], &bytes[cut.end..]].concat(),
            b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n"
        );
    }

    #[test]
    fn an_upgrade_is_noticed_by_its_field() {
        let head = crate::load::tunnel::upgrade_head("http://127.0.0.1:1", "127.0.0.1:1");
        assert!(parse(head.as_bytes()).unwrap().unwrap().upgrades);
    }

    #[test]
    fn what_is_neither_is_refused() {
        assert_eq!(parse(b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n"), Ok(None));
        assert_eq!(parse(b"GET / HTTP/1.1\r\n\r\n"), Err(BAD));
        assert_eq!(parse(b"CONNECT example.com:443 HTTP/1.1\r\n\r\n"), Err(BAD));
        assert_eq!(parse(&vec![b'a'; HEAD_BYTES_MAX + 1]), Err(BAD));
    }
}
