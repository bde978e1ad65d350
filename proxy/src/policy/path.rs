//! Request paths in one spelling.
//!
//! Origins decode and tidy a path before they act on it, so a rule that looks at raw octets is stepped around with
//! `/%61dmin`, `//admin` or `/x/../admin`. [`canonical`] makes two views of a path at once:
//!
//! - **sent**: what goes to the origin. Unreserved octets are decoded, other escapes get upper-case digits, dot
//!   segments are resolved, empty segments dropped (RFC 3986 section 6.2.2). It means the same to the origin.
//! - **judged**: what rules are matched against: *sent* with everything decoded but `%2F` and `%25`.
//!
//! What cannot be brought into one meaning is refused: broken escapes, control characters, `\` (some origins take it
//! for `/`), `..;` (some origins take it for `..`), and `..%2F`. An escaped slash is kept and reported; whether it may pass is
//! the endpoint's to say.

use std::borrow::Cow;

use thiserror::Error;

/// A path in one spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath<'a> {
    /// What to send; borrowed when the client's spelling was canonical.
    pub sent: Cow<'a, [u8]>,
    /// What to match rules against.
    pub judged: Cow<'a, [u8]>,
    /// Whether `%2F` is in it.
    pub escaped_slash: bool,
}

/// Why a path has no single meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PathError {
    /// Neither `/…` nor `*`.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// `%` without two hexadecimal digits.
    #[error("the path holds a broken escape")]
    BadEscape,
    /// A control character, space, `?` or `#`, plain, or a control character escaped.
    #[error("the path holds a character that is not allowed")]
    BadOctet,
    /// `\` or `%5C`.
    #[error("the path holds a backslash, which some servers take for a slash")]
    Backslash,
    /// `..;` or `.;` at the start of a segment.
    #[error("the path holds a dot segment with parameters, which servers read in different ways")]
    DotParameters,
    /// A dot segment or nothing beside an escaped slash, as in `/x/..%2Fadmin`.
    #[error("the path hides a dot segment behind an escaped slash")]
    HiddenDots,
}

/// Brings the path of a request (without its query) into one spelling. `*` (OPTIONS) stands for itself.
pub fn canonical(path: &[u8]) -> Result<CanonicalPath<'_>, PathError> {
    if path == b"*" {
        return Ok(borrowed(path));
    }
    let Some(inside) = path.strip_prefix(b"/") else { return Err(PathError::NotAbsolute) };
    let mut before = b'/';
    let (mut escapes, mut dots_or_gaps) = (false, false);
    for &octet in inside {
        match octet {
            0..=b' ' | 0x7f | b'?' | b'#' => return Err(PathError::BadOctet),
            b'\\' => return Err(PathError::Backslash),
            b'%' => escapes = true,
            b'.' | b'/' => dots_or_gaps |= before == b'/',
            _ => {}
        }
        before = octet;
    }
    if !escapes && (!dots_or_gaps || is_plain(inside)) {
        return Ok(borrowed(path));
    }
    rewrite(path, inside)
}

fn borrowed(path: &[u8]) -> CanonicalPath<'_> {
    CanonicalPath { sent: Cow::Borrowed(path), judged: Cow::Borrowed(path), escaped_slash: false }
}

/// No empty segment but the last, no segment that is or may be taken for a dot segment.
fn is_plain(inside: &[u8]) -> bool {
    let mut segments = inside.split(|&octet| octet == b'/').peekable();
    while let Some(segment) = segments.next() {
        let empty_inside = segment.is_empty() && segments.peek().is_some();
        if empty_inside || matches!(segment, b"." | b".." | [b'.', b';', ..] | [b'.', b'.', b';', ..]) {
            return false;
        }
    }
    true
}

fn rewrite<'a>(path: &'a [u8], inside: &[u8]) -> Result<CanonicalPath<'a>, PathError> {
    let mut sent: Vec<u8> = Vec::with_capacity(path.len());
    let mut judged: Vec<u8> = Vec::with_capacity(path.len());
    // Where each segment begins in both views, so that `..` can take the last one back.
    let mut starts: Vec<(usize, usize)> = Vec::new();
    let mut escaped_slash = false;
    let mut directory = true;
    for segment in inside.split(|&octet| octet == b'/') {
        let start = (sent.len(), judged.len());
        sent.push(b'/');
        judged.push(b'/');
        let slashes = decode(segment, &mut sent, &mut judged)?;
        let name = judged.get(start.1 + 1..).unwrap_or_default();
        if matches!(name, [b'.', b';', ..] | [b'.', b'.', b';', ..]) {
            return Err(PathError::DotParameters);
        }
        if slashes && hides_dots(name) {
            return Err(PathError::HiddenDots);
        }
        directory = matches!(name, b"" | b"." | b"..");
        if !directory {
            escaped_slash |= slashes;
            starts.push(start);
            continue;
        }
        let back_to = if name == b".." { starts.pop().unwrap_or((0, 0)) } else { start };
        sent.truncate(back_to.0);
        judged.truncate(back_to.1);
    }
    if directory {
        sent.push(b'/');
        judged.push(b'/');
    }
    // `escaped_slash` may stem from a segment that `..` removed; then it is reported without need, to the safe side.
    let sent = if sent == path { Cow::Borrowed(path) } else { Cow::Owned(sent) };
    Ok(CanonicalPath { sent, judged: Cow::Owned(judged), escaped_slash })
}

/// Whether a segment would turn into dot or empty segments where `%2F` is taken for a slash.
fn hides_dots(segment: &[u8]) -> bool {
    let mut left = segment;
    loop {
        let end = left.windows(3).position(|octets| octets == b"%2F");
        let part = left.get(..end.unwrap_or(left.len())).unwrap_or_default();
        if matches!(part, b"" | b"." | b".." | [b'.', b';', ..] | [b'.', b'.', b';', ..]) {
            return true;
        }
        match end.and_then(|end| left.get(end + 3..)) {
            Some(after) => left = after,
            None => return false,
        }
    }
}

/// Appends one segment to both views; tells whether it holds an escaped slash.
fn decode(segment: &[u8], sent: &mut Vec<u8>, judged: &mut Vec<u8>) -> Result<bool, PathError> {
    let mut slashes = false;
    let mut left = segment;
    while let Some((&octet, after)) = left.split_first() {
        if octet != b'%' {
            sent.push(octet);
            judged.push(octet);
            left = after;
            continue;
        }
        let [high, low, after @ ..] = after else { return Err(PathError::BadEscape) };
        let octet = unescape(*high, *low).ok_or(PathError::BadEscape)?;
        left = after;
        let escape = [b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()];
        match octet {
            0..=0x1f | 0x7f => return Err(PathError::BadOctet),
            b'\\' => return Err(PathError::Backslash),
            b'/' | b'%' => {
                slashes |= octet == b'/';
                sent.extend_from_slice(&escape);
                judged.extend_from_slice(&escape);
            }
            octet if is_unreserved(octet) => {
                sent.push(octet);
                judged.push(octet);
            }
            octet => {
                sent.extend_from_slice(&escape);
                judged.push(octet);
            }
        }
    }
    Ok(slashes)
}

/// RFC 3986 section 2.3.
fn is_unreserved(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_' | b'~')
}

/// The octet behind `%`, from its two digits.
pub(super) fn unescape(high: u8, low: u8) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).map(|digit| digit as u8);
    Some(digit(high)? << 4 | digit(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_for_each_meaning() {
        for (path, sent, judged) in [
            ("/", "/", "/"),
            ("/a/b", "/a/b", "/a/b"),
            ("/a/b/", "/a/b/", "/a/b/"),
            ("/%61dmin", "/admin", "/admin"),
            ("//admin", "/admin", "/admin"),
            ("/a//b///c", "/a/b/c", "/a/b/c"),
            ("/x/../admin", "/admin", "/admin"),
            ("/x/%2e%2E/admin", "/admin", "/admin"),
            ("/../../a", "/a", "/a"),
            ("/a/..", "/", "/"),
            ("/a/.", "/a/", "/a/"),
            ("/a/./b", "/a/b", "/a/b"),
            ("/a/b/../", "/a/", "/a/"),
            ("/.", "/", "/"),
            ("//", "/", "/"),
            ("/.well-known/x", "/.well-known/x", "/.well-known/x"),
            ("/...", "/...", "/..."),
            ("/a%3ab", "/a%3Ab", "/a:b"),
            ("/a%20b", "/a%20b", "/a b"),
            ("/%c3%a9", "/%C3%A9", "/é"),
            ("/a%2fb", "/a%2Fb", "/a%2Fb"),
            ("/%252e%252e/x", "/%252e%252e/x", "/%252e%252e/x"),
            ("/a;x=1/b", "/a;x=1/b", "/a;x=1/b"),
            ("*", "*", "*"),
        ] {
            let found = canonical(path.as_bytes()).unwrap();
            assert_eq!(String::from_utf8_lossy(&found.sent), sent, "{path}");
            assert_eq!(String::from_utf8_lossy(&found.judged), judged, "{path}");
            // What is sent is in its one spelling already.
            assert_eq!(canonical(&found.sent).unwrap().sent, found.sent, "{path}");
        }
        assert!(canonical(b"/a%2Fb").unwrap().escaped_slash);
        assert!(matches!(canonical(b"/a/b").unwrap().sent, Cow::Borrowed(_)));
    }

    #[test]
    fn paths_without_one_meaning_are_refused() {
        for (path, error) in [
            ("", PathError::NotAbsolute),
            ("a", PathError::NotAbsolute),
            ("/%", PathError::BadEscape),
            ("/%2", PathError::BadEscape),
            ("/%zz", PathError::BadEscape),
            ("/%+1", PathError::BadEscape),
            ("/%00", PathError::BadOctet),
            ("/%0a", PathError::BadOctet),
            ("/a b", PathError::BadOctet),
            ("/a?b", PathError::BadOctet),
            ("/a\\b", PathError::Backslash),
            ("/a%5cb", PathError::Backslash),
            ("/a/..;/b", PathError::DotParameters),
            ("/a/%2e.;x/b", PathError::DotParameters),
            ("/a/..%2fb", PathError::HiddenDots),
            ("/a%2f%2e%2e%2fb", PathError::HiddenDots),
            ("/a%2f%2fb", PathError::HiddenDots),
            ("/%2fb", PathError::HiddenDots),
            ("/b%2f", PathError::HiddenDots),
        ] {
            assert_eq!(canonical(path.as_bytes()), Err(error), "{path}");
        }
    }
}
