//! Reading a response head from an origin, as strictly as a request.
//!
//! What is refused here becomes `502` and the connection to the origin is dropped; nothing of it is passed on. What a
//! status means (interim, final, a switch of protocols) is for the driver, which knows what was asked.

use super::fault::Fault;
use super::fields::{Fields, Known, Span, control_fault, elements, parse_line};
use super::framing::{BodyFields, Framing};
use super::head::{Connection, HopFields, Kind, Line, Lines, Method, RequestHead, Upgrade, Version};
use super::limits::HeadLimits;

/// What a response head says; as [`super::head::RequestHead`], it holds no octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Octets of the head with its empty line.
    pub len: usize,
    /// From 100 to 599.
    pub status: u16,
    /// The version of the sender.
    pub version: Version,
    /// What `Connection` says.
    pub connection: Connection,
    /// The protocol of a 101, or one offered.
    pub upgrade: Upgrade,
    body: BodyFields,
    reason: Span,
    fields: Span,
}

impl ResponseHead {
    /// How its body is delimited, as the answer to a request with this method.
    pub fn framing(&self, method: Method) -> Framing {
        self.body.answering(method, self.status)
    }

    /// Whether this, read from `buf`, switches to a protocol that `request`, read from `asked`, offered: every name it
    /// gives is one of the offer's. A 101 for which this is false is never passed on (RFC 9110 section 7.8).
    pub fn accepts(&self, buf: &[u8], request: &RequestHead, asked: &[u8]) -> bool {
        let was_offered = |chosen: &[u8]| {
            let mut offers = request.fields(asked).named(b"upgrade").flat_map(|field| elements(field.value));
            offers.any(|offered| offered.eq_ignore_ascii_case(chosen))
        };
        self.status == 101
            && request.upgrade != Upgrade::None
            && self.upgrade != Upgrade::None
            && self.fields(buf).named(b"upgrade").flat_map(|field| elements(field.value)).all(was_offered)
    }

    /// 1xx but 101: another head follows. An HTTP/1.0 client is not shown it (RFC 9110 section 15.2).
    pub fn is_interim(&self) -> bool {
        matches!(self.status, 100 | 102..=199)
    }

    /// The announced length, also where there is no body (HEAD, 304).
    pub fn content_length(&self) -> Option<u64> {
        self.body.length
    }

    /// The reason phrase; may be empty, holds no control octet but TAB.
    pub fn reason<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        self.reason.of_buffer(buf)
    }

    /// All field lines, in order.
    pub fn fields<'b>(&self, buf: &'b [u8]) -> Fields<'b> {
        Fields::new(self.fields.of_buffer(buf))
    }

    /// Whether the connection may serve another request once this response, as the answer to `method`, has been read.
    /// Not if its head announces a body it must not have: some origins then send one.
    pub fn is_persistent(&self, method: Method) -> bool {
        let says_body = self.body.chunked || self.body.length.is_some_and(|length| length > 0);
        let has_none = matches!(self.status, 100..=199 | 204);
        self.version == Version::Http11
            && !self.connection.close
            && self.framing(method) != Framing::UntilClose
            && !(has_none && says_body)
    }
}

/// Reads response heads, one after the other; see [`super::head::RequestReader`], of which it is the mirror.
#[derive(Clone, Debug)]
pub struct ResponseReader {
    limits: HeadLimits,
    lines: Lines,
    line: Option<StatusLine>,
    body: BodyFields,
    hop: HopFields,
}

impl ResponseReader {
    /// A reader at the start of a head.
    pub fn new(limits: HeadLimits) -> Self {
        let (lines, body, hop) = (Lines::default(), BodyFields::default(), HopFields::default());
        Self { limits, lines, line: None, body, hop }
    }

    /// Reads on in `buf`, which starts at the first octet of the head and holds at least what it held at the call
    /// before. `None`: the head goes on.
    pub fn read(&mut self, buf: &[u8]) -> Result<Option<ResponseHead>, Fault> {
        let Some(line) = self.status_line(buf)? else { return Ok(None) };
        while let Some(next) = self.lines.next(buf, &self.limits)? {
            match next {
                Line::Field(octets) => self.observe(octets)?,
                Line::End { fields, len } => {
                    let StatusLine { version, status, reason } = line;
                    let body = self.body.of_response(version)?;
                    let (connection, upgrade) = (self.hop.connection, self.hop.upgrade(version));
                    *self = Self::new(self.limits);
                    return Ok(Some(ResponseHead {
                        len,
                        status,
                        version,
                        connection,
                        upgrade,
                        body,
                        reason,
                        fields,
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Whether any octet of a head has arrived: a request with nothing answered may be sent again.
    pub fn has_started(&self) -> bool {
        self.lines.has_started()
    }

    fn status_line(&mut self, buf: &[u8]) -> Result<Option<StatusLine>, Fault> {
        if self.line.is_none() {
            let octets = self.lines.first(buf, &self.limits, Kind::Response)?;
            self.line = octets.map(|octets| StatusLine::parse(octets, buf)).transpose()?;
        }
        Ok(self.line)
    }

    fn observe(&mut self, line: &[u8]) -> Result<(), Fault> {
        let field = parse_line(line)?;
        match Known::of(field.name) {
            Some(Known::ContentLength) => self.body.content_length(field.value),
            Some(Known::TransferEncoding) => self.body.transfer_encoding(field.value),
            Some(known) => self.hop.observe(known, field.value),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct StatusLine {
    version: Version,
    status: u16,
    reason: Span,
}

impl StatusLine {
    /// `VERSION SP 3DIGIT SP REASON` (RFC 9112 section 4). The space before an absent reason may be absent too: many
    /// origins leave it out, and the line is written anew in any case.
    fn parse(line: &[u8], buf: &[u8]) -> Result<Self, Fault> {
        if let Some(fault) = control_fault(line) {
            return Err(fault);
        }
        let (version, rest) = line.split_at_checked(8).ok_or(Fault::StatusLine)?;
        let version = Version::parse(version, Fault::StatusLine)?;
        let [b' ', hundreds @ b'1'..=b'5', tens @ b'0'..=b'9', ones @ b'0'..=b'9', reason @ ..] = rest else {
            return Err(Fault::StatusLine);
        };
        let reason = match reason {
            [] => reason,
            [b' ', reason @ ..] => reason,
            _ => return Err(Fault::StatusLine),
        };
        let digit = |b: &u8| u16::from(b.wrapping_sub(b'0'));
        let status = digit(hundreds) * 100 + digit(tens) * 10 + digit(ones);
        Ok(Self { version, status, reason: Span::of(reason, buf) })
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
