//! As much of a response head as a load generator needs: status, length of the body, whether the connection stays.

use super::session::Failure;

/// A head longer than this is an error, bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What a response's head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// The status code.
    pub(crate) status: u16,
    /// Bytes of the head, the empty line included.
    pub(crate) length: usize,
    /// Bytes of the body; `None` if not told.
    pub(crate) body: Option<u64>,
    /// Whether the server closes afterwards.
    pub(crate) closes: bool,
}

/// Parses the head at the start of `bytes`; `None` while it is incomplete.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let Some(length) = end(bytes) else {
        return if bytes.len() > HEAD_BYTES_MAX {
            Err(Failure::Head("longer than 16 KiB"))
        } else {
            Ok(None)
        };
    };
    let text = bytes.get(..length).unwrap_or_default();
    let mut lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii_end);
    let status_line = lines.next().unwrap_or_default();
    let is_http = status_line.starts_with(b"HTTP/1.");
    let status =
        status_line.get(9..12).and_then(number).filter(|_| is_http).ok_or(Failure::Head("no status line"))?;
    let mut head =
        Head { status: status as u16, length, body: None, closes: status_line.starts_with(b"HTTP/1.0") };
    for line in lines {
        if let Some(value) = field(line, b"content-length") {
            head.body = Some(number(value).ok_or(Failure::Head("Content-Length is no number"))?);
        } else if let Some(value) = field(line, b"connection") {
            head.closes = value.eq_ignore_ascii_case(b"close");
        }
    }
    Ok(Some(head))
}

/// Where the head ends: behind the first empty line.
pub(crate) fn end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The value of `line` if it is the field `name` (in lower case).
pub(crate) fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (before, after) = line.split_at_checked(name.len())?;
    (before.eq_ignore_ascii_case(name) && after.first() == Some(&b':')).then(|| after[1..].trim_ascii())
}

/// Digits only.
fn number(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_head_is_read_whatever_the_case_of_its_fields() {
        let bytes = b"HTTP/1.1 200 OK\r\nVia: x\r\ncontent-LENGTH:  12\r\nConnection: Close\r\n\r\nbody";
        let head = parse(bytes).unwrap().unwrap();
        assert_eq!(head, Head { status: 200, length: bytes.len() - 4, body: Some(12), closes: true });
    }

    #[test]
    fn an_incomplete_head_is_waited_for_and_a_bad_one_refused() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nA: b\r\n").unwrap().is_none());
        assert!(parse(b"SSH-2.0 x y z\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n").is_err());
        assert!(parse(&vec![b'a'; HEAD_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_field_is_matched_by_its_whole_name() {
        assert_eq!(field(b"Connection: close", b"connection"), Some(&b"close"[..]));
        assert_eq!(field(b"Connection-Id: close", b"connection"), None);
        assert_eq!(field(b"Con", b"connection"), None);
    }
}
