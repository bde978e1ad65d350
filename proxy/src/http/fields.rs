//! Field lines: the strict grammar of one line, the names that mean something to a proxy, and comma lists.
//!
//! [`parse_line`] is the only place where a field line becomes a [`Field`]. A head that passed it line by line can be
//! walked again with [`Fields`], so that no table of fields is kept.

use super::fault::Fault;

/// A stretch of the buffer a head was read from. Kept instead of a slice, so that the buffer may move meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// From `start` up to, but not including, `end`.
    pub(super) fn new(start: usize, end: usize) -> Self {
        // Heads are bounded far below 4 GiB; a span that did not fit would be empty, never wrong.
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) => Self { start, end },
            _ => Self::default(),
        }
    }

    /// Where `part` lies in `whole`, of which it must be a slice; else an empty span.
    pub(super) fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        match start.checked_add(part.len()) {
            Some(end) if end <= whole.len() => Self::new(start, end),
            _ => Self::default(),
        }
    }

    /// The octets; empty if `buf` is not the buffer this was made from.
    pub(super) fn of_buffer(self, buf: &[u8]) -> &[u8] {
        buf.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// One field line of a checked head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'b> {
    /// A token, as it was spelt.
    pub name: &'b [u8],
    /// Without the white space around it; holds no control octet but TAB.
    pub value: &'b [u8],
}

/// Parses one field line, without its CRLF, under the strict reading of RFC 9112 section 5: no folding, no space
/// before the colon, a token for a name, no control octet but TAB in the value.
pub fn parse_line(line: &[u8]) -> Result<Field<'_>, Fault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Fault::LineFolding);
    }
    let (name, value) =
        split_once(line, b':').ok_or_else(|| control_fault(line).unwrap_or(Fault::FieldLine))?;
    if !is_token(name) {
        return Err(match name.last() {
            Some(b' ' | b'\t') => Fault::SpaceBeforeColon,
            _ => control_fault(name).unwrap_or(Fault::FieldName),
        });
    }
    match control_fault(value) {
        Some(fault) => Err(fault),
        None => Ok(Field { name, value: trim(value) }),
    }
}

/// The fault of the first octet that no line may hold: CR, NUL, or another control octet but TAB.
pub(super) fn control_fault(bytes: &[u8]) -> Option<Fault> {
    let is_control = |b: u8| (b < b' ' && b != b'\t') || b == 0x7f;
    // Without an early exit, so that the compiler can look at many octets at once.
    if !bytes.iter().fold(false, |found, &b| found | is_control(b)) {
        return None;
    }
    let first = bytes.iter().copied().find(|&b| is_control(b));
    Some(if first == Some(b'\r') { Fault::BareCr } else { Fault::ControlOctet })
}

/// The field lines of a head that has been checked.
#[derive(Clone, Debug)]
pub struct Fields<'b> {
    rest: &'b [u8],
}

impl<'b> Fields<'b> {
    /// Over the lines in `lines`, each with its CRLF, up to the empty one.
    pub(super) fn new(lines: &'b [u8]) -> Self {
        Self { rest: lines }
    }

    /// The fields with this name, compared without regard to case, in order.
    pub fn named(self, name: &'static [u8]) -> impl Iterator<Item = Field<'b>> {
        self.filter(move |field| field.name.eq_ignore_ascii_case(name))
    }
}

impl<'b> Iterator for Fields<'b> {
    type Item = Field<'b>;

    fn next(&mut self) -> Option<Field<'b>> {
        let (line, rest) = split_once(self.rest, b'\n')?;
        self.rest = rest;
        let line = line.strip_suffix(b"\r")?;
        let (name, value) = split_once(line, b':')?;
        Some(Field { name, value: trim(value) })
    }
}

/// The names a proxy acts on. All others pass untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Connection,
    ContentLength,
    Date,
    /// `Content_Length` and `Transfer_Encoding`.
    Disguised,
    Expect,
    Host,
    Http2Settings,
    KeepAlive,
    MaxForwards,
    /// Any `Proxy-*`.
    Proxy,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    Via,
}

impl Known {
    /// Which of them this is.
    pub(super) fn of(name: &[u8]) -> Option<Self> {
        let candidates: &[(&str, Self)] = match name.len() {
            2 => &[("te", Self::Te)],
            3 => &[("via", Self::Via)],
            4 => &[("host", Self::Host), ("date", Self::Date)],
            6 => &[("expect", Self::Expect)],
            7 => &[("upgrade", Self::Upgrade), ("trailer", Self::Trailer)],
            10 => &[("connection", Self::Connection), ("keep-alive", Self::KeepAlive)],
            12 => &[("max-forwards", Self::MaxForwards)],
            14 => &[
                ("content-length", Self::ContentLength),
                ("content_length", Self::Disguised),
                ("http2-settings", Self::Http2Settings),
            ],
            17 => &[("transfer-encoding", Self::TransferEncoding), ("transfer_encoding", Self::Disguised)],
            _ => &[],
        };
        let known = candidates.iter().find(|(spelt, _)| name.eq_ignore_ascii_case(spelt.as_bytes()));
        known.map(|&(_, known)| known).or_else(|| is_proxy_field(name).then_some(Self::Proxy))
    }
}

fn is_proxy_field(name: &[u8]) -> bool {
    name.get(..6).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"proxy-"))
}

/// The elements of a comma list, trimmed, empty ones left out (RFC 9110 section 5.6.1.2). Knows no quoted strings:
/// the lists read here have none.
pub(super) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(trim).filter(|element| !element.is_empty())
}

/// Whether these octets are a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&b| is_token_octet(b))
}

/// Whether this octet may stand in a token.
pub(super) fn is_token_octet(octet: u8) -> bool {
    TOKEN.get(usize::from(octet)).copied().unwrap_or(false)
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut octet = 0;
    while octet < 128 {
        let b = octet as u8;
        table[octet] = b.is_ascii_alphanumeric()
            || matches!(b, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+')
            || matches!(b, b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~');
        octet += 1;
    }
    table
};

/// Without the SP and TAB at both ends.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// What is before and behind the first `at`.
pub(super) fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let index = memchr::memchr(at, bytes)?;
    let (before, rest) = bytes.split_at_checked(index)?;
    Some((before, rest.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_line_is_a_token_a_colon_and_a_value_without_controls() {
        let field = |line: &'static [u8]| parse_line(line).map(|f| (f.name, f.value));
        assert_eq!(field(b"A: b \t"), Ok((&b"A"[..], &b"b"[..])));
        assert_eq!(field(b"A:"), Ok((&b"A"[..], &b""[..])));
        assert_eq!(field(b"a!#$%&'*+-.^_`|~9:x\xff\ty"), Ok((&b"a!#$%&'*+-.^_`|~9"[..], &b"x\xff\ty"[..])));
    }

    #[test]
    fn each_way_a_field_line_goes_wrong_has_its_name() {
        let rows: &[(&[u8], Fault)] = &[
            (b" a: b", Fault::LineFolding),
            (b"\ta: b", Fault::LineFolding),
            (b"a : b", Fault::SpaceBeforeColon),
            (b"a\t: b", Fault::SpaceBeforeColon),
            (b": b", Fault::FieldName),
            (b"a b: c", Fault::FieldName),
            (b"a(b: c", Fault::FieldName),
            (b"a\xe9: c", Fault::FieldName),
            (b"a\0: c", Fault::ControlOctet),
            (b"a: b\0", Fault::ControlOctet),
            (b"a: b\x7f", Fault::ControlOctet),
            (b"a: b\x0b", Fault::ControlOctet),
            (b"a: b\rc", Fault::BareCr),
            (b"a\r: b", Fault::BareCr),
            (b"a\rb", Fault::BareCr),
            (b"a", Fault::FieldLine),
            (b"a b", Fault::FieldLine),
        ];
        for (line, fault) in rows {
            assert_eq!(parse_line(line), Err(*fault), "{:?}", line.escape_ascii().to_string());
        }
    }

    #[test]
    fn lists_skip_empty_elements() {
        let list: Vec<&[u8]> = elements(b" a ,, \t,b\t,").collect();
        assert_eq!(list, [b"a", b"b"]);
    }

    #[test]
    fn known_names_are_found_in_any_case() {
        assert_eq!(Known::of(b"cOnnection"), Some(Known::Connection));
        assert_eq!(Known::of(b"PROXY-Anything"), Some(Known::Proxy));
        assert_eq!(Known::of(b"Transfer_Encoding"), Some(Known::Disguised));
        assert_eq!(Known::of(b"X-Proxy-Thing"), None);
    }

    #[test]
    fn a_span_of_foreign_bytes_is_empty() {
        let whole = b"abcdef".to_vec();
        assert_eq!(Span::of(whole.get(2..4).unwrap_or_default(), &whole).of_buffer(&whole), b"cd");
        assert_eq!(Span::of(b"elsewhere", &whole), Span::default());
        assert_eq!(Span::new(4, 9).of_buffer(&whole), b"");
    }
}
