//! The mark by which a log line is known to be ours: `sluice[<name>:<token>] `, or `sluice-host[<name>:<token>] ` where
//! the fence on the host's side of a link prints it.
//!
//! The name says which sandbox's fence printed the line. The token is a secret of that fence, so that root in
//! another sandbox, who may add log rules of its own, cannot speak in this sandbox's name: the owner compares
//! it with the one it gave out.

use std::fmt;

use crate::limits::TAG_NAME_BYTES;

const INNER: &[u8] = b"sluice[";
const HOST: &[u8] = b"sluice-host[";

/// Whether a line begins as tagged lines do.
pub fn is_opened(text: &[u8]) -> bool {
    text.starts_with(INNER) || text.starts_with(HOST)
}

/// Which fence printed a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fence {
    /// The one inside the sandbox: somebody tried to go around the proxy.
    Inner,
    /// The one on the host's side of the sandbox's link: somebody got past the inner one.
    Host,
}

/// The tag of one fence. `Display` prints it as the log rule's prefix has it, the closing space included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag<'a> {
    /// Which of its fences.
    pub fence: Fence,
    /// The sandbox: `[A-Za-z0-9][A-Za-z0-9._-]*`, at most [`TAG_NAME_BYTES`] bytes.
    pub name: &'a str,
    /// The fence's secret, printed as 16 lower-case hexadecimal digits.
    pub token: u64,
}

impl<'a> Tag<'a> {
    /// Takes a tag off the front of `text`; `None` when it is not exactly of our form.
    pub fn strip(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (fence, inside) = match (text.strip_prefix(INNER), text.strip_prefix(HOST)) {
            (Some(inside), _) => (Fence::Inner, inside),
            (None, inside) => (Fence::Host, inside?),
        };
        let colon = inside.iter().take(TAG_NAME_BYTES + 1).position(|&byte| byte == b':')?;
        let (name, rest) = inside.split_at_checked(colon)?;
        let (token, rest) = rest.strip_prefix(b":")?.split_first_chunk::<16>()?;
        let rest = rest.strip_prefix(b"] ")?;
        Some((Self { fence, name: valid_name(name)?, token: parse_token(token)? }, rest))
    }
}

impl fmt::Display for Tag<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let opening = match self.fence {
            Fence::Inner => "sluice",
            Fence::Host => "sluice-host",
        };
        write!(f, "{opening}[{}:{:016x}] ", self.name, self.token)
    }
}

fn valid_name(name: &[u8]) -> Option<&str> {
    let (first, rest) = name.split_first()?;
    let ok = first.is_ascii_alphanumeric()
        && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if ok { std::str::from_utf8(name).ok() } else { None }
}

/// Only the form our fences print: a second spelling would be a second way to forge.
fn parse_token(digits: &[u8; 16]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |value, digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(nibble))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_tag_is_read_back() {
        for fence in [Fence::Inner, Fence::Host] {
            let tag = Tag { fence, name: "agent-7.b_1", token: 0x0123_4567_89ab_cdef };
            let line = format!("{tag}IN= OUT=lo");
            let (read, rest) = Tag::strip(line.as_bytes()).unwrap();
            assert_eq!(read, tag);
            assert_eq!(rest, b"IN= OUT=lo");
        }
    }

    #[test]
    fn anything_but_the_exact_form_is_not_a_tag() {
        let long = format!("sluice[{}:0123456789abcdef] ", "a".repeat(TAG_NAME_BYTES + 1));
        for text in [
            "",
            "sluice[",
            "sluice[a",
            "sluice[a:",
            "sluice[:0123456789abcdef] ",
            "sluice[-a:0123456789abcdef] ",
            "sluice[a b:0123456789abcdef] ",
            "sluice[a:0123456789ABCDEF] ",
            "sluice[a:0123456789abcde] ",
            "sluice[a:0123456789abcdef0] ",
            "sluice[a:0123456789abcdef]",
            "sluice[a:0123456789abcdef]x",
            " sluice[a:0123456789abcdef] ",
            "Sluice[a:0123456789abcdef] ",
            "sluice-host",
            "sluice-host:0123456789abcdef] ",
            "sluice-hosts[a:0123456789abcdef] ",
            &long,
        ] {
            assert!(Tag::strip(text.as_bytes()).is_none(), "{text:?}");
        }
        let longest = format!("sluice[{}:0123456789abcdef] ", "a".repeat(TAG_NAME_BYTES));
        assert!(Tag::strip(longest.as_bytes()).is_some());
    }
}
