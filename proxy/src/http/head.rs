//! Reading a request head, incrementally and strictly.
//!
//! [`RequestReader`] is fed the same growing buffer until it has a [`RequestHead`]. It looks at no octet twice,
//! judges every line as soon as it is complete (so that HTTP/0.9, an HTTP/2 preface or TLS is refused at once rather
//! than after a time-out), and gives the same verdict however the octets arrive.
//!
//! The tokenizer is ours because strictness is its purpose: every refusal has a name, and offsets come out without a
//! table of fields. `httparse` stands beside it as the second opinion in tests and fuzzing: whatever is accepted here
//! must mean the same there.

use super::fault::Fault;
use super::fields::{Fields, Known, Span, control_fault, is_token, is_token_octet, parse_line};
use super::framing::{BodyFields, Framing};
use super::limits::{HeadLimits, METHOD_OCTETS_MAX};
use crate::destination::Authority;

mod hop;
mod lines;

pub use hop::{Connection, Nominated, Upgrade};
pub(super) use hop::{HopFields, http2_or_h2c, is_nominated};
pub(super) use lines::{Line, Lines};

/// A request method. Case-sensitive; unknown ones are forwarded (RFC 9110 section 9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Method {
    Connect,
    Delete,
    Get,
    Head,
    Options,
    Patch,
    Post,
    Put,
    Trace,
    /// Any other token; [`RequestHead::method_name`] has it.
    Other,
}

impl Method {
    fn of(name: &[u8]) -> Self {
        match name {
            b"CONNECT" => Self::Connect,
            b"DELETE" => Self::Delete,
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"TRACE" => Self::Trace,
            _ => Self::Other,
        }
    }

    /// Whether sending it twice is as good as once (RFC 9110 section 9.2.2): the only ones ever retried.
    pub fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::Trace | Self::Put | Self::Delete)
    }
}

/// The versions spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2, whose heads are read in the words of HTTP/1.1 ([`super::two`]).
    Http2,
}

impl Version {
    /// Of an `HTTP-version` (RFC 9112 section 2.3). `malformed` is the fault of what is none at all.
    pub(super) fn parse(text: &[u8], malformed: Fault) -> Result<Self, Fault> {
        match text {
            b"HTTP/1.1" => Ok(Self::Http11),
            b"HTTP/1.0" => Ok(Self::Http10),
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                Err(Fault::Version)
            }
            _ => Err(malformed),
        }
    }
}

/// What a request head says. Holds no octets, only where they are: the accessors take the buffer the head was read
/// from, which may have grown or moved meanwhile, but must still start at the same octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Octets of the head with its empty line: where the body starts.
    pub len: usize,
    /// The method.
    pub method: Method,
    /// The version of the sender.
    pub version: Version,
    /// How its body is delimited; never [`Framing::UntilClose`].
    pub framing: Framing,
    /// What `Connection` says.
    pub connection: Connection,
    /// The switch of protocols on offer. None in HTTP/1.0, none without `Connection: upgrade`; h2c does not count.
    pub upgrade: Upgrade,
    /// `Expect: 100-continue`, from a sender that may use it (not HTTP/1.0).
    pub expect_continue: bool,
    /// `Max-Forwards` of an OPTIONS or TRACE request.
    pub max_forwards: Option<u64>,
    /// Whether the sender takes trailers (`TE: trailers` with `Connection: TE`).
    pub te_trailers: bool,
    method_name: Span,
    target: Span,
    host: Option<Span>,
    fields: Span,
}

impl RequestHead {
    /// The method as it was spelt: a token.
    pub fn method_name<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        self.method_name.of_buffer(buf)
    }

    /// The request target as it came: no control octet, no space, not empty; see [`super::target`].
    pub fn target<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        self.target.of_buffer(buf)
    }

    /// The value of `Host`: an authority. Absent only in HTTP/1.0.
    pub fn host<'b>(&self, buf: &'b [u8]) -> Option<&'b [u8]> {
        self.host.map(|span| span.of_buffer(buf))
    }

    /// All field lines, in order.
    pub fn fields<'b>(&self, buf: &'b [u8]) -> Fields<'b> {
        Fields::new(self.fields.of_buffer(buf))
    }

    /// Whether another request may follow on this connection. Never with HTTP/1.0: a proxy keeps no connection open
    /// to such a client, whatever it asks for (RFC 9112 section 9.3).
    pub fn is_persistent(&self) -> bool {
        self.version != Version::Http10 && !self.connection.close
    }
}

/// Reads request heads, one after the other. See the module.
#[derive(Clone, Debug)]
pub struct RequestReader {
    limits: HeadLimits,
    lines: Lines,
    line: Option<RequestLine>,
    gathered: Gathered,
}

impl RequestReader {
    /// A reader at the start of a head.
    pub fn new(limits: HeadLimits) -> Self {
        Self { limits, lines: Lines::default(), line: None, gathered: Gathered::default() }
    }

    /// Reads on in `buf`, which starts at the first octet of the head and holds at least what it held at the call
    /// before. `None`: the head goes on. After a head the reader is at the start of the next one, for which `buf` must
    /// start behind this head and its body. After a fault it is of no more use.
    pub fn read(&mut self, buf: &[u8]) -> Result<Option<RequestHead>, Fault> {
        let Some(line) = self.request_line(buf)? else { return Ok(None) };
        while let Some(next) = self.lines.next(buf, &self.limits)? {
            match next {
                Line::Field(octets) => self.gathered.observe(octets, buf)?,
                Line::End { fields, len } => {
                    let head = finish(line, self.gathered, fields, len)?;
                    *self = Self::new(self.limits);
                    return Ok(Some(head));
                }
            }
        }
        Ok(None)
    }

    fn request_line(&mut self, buf: &[u8]) -> Result<Option<RequestLine>, Fault> {
        if self.line.is_none() {
            let octets = self.lines.first(buf, &self.limits, Kind::Request)?;
            self.line = octets.map(|octets| RequestLine::parse(octets, buf)).transpose()?;
        }
        Ok(self.line)
    }

    /// Whether a request line has been read of the head that is being read: whoever sent it speaks HTTP.
    pub fn has_line(&self) -> bool {
        self.line.is_some()
    }

    /// Whether any octet of a head has arrived: tells a client that fell silent within a request from an idle one.
    pub fn has_started(&self) -> bool {
        self.lines.has_started()
    }
}

/// Which kind of head is read. An empty line may precede a request (RFC 9112 section 2.2), not a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
}

/// A parsed request line.
#[derive(Clone, Copy, Debug)]
struct RequestLine {
    method: Method,
    method_name: Span,
    target: Span,
    version: Version,
}

impl RequestLine {
    /// `METHOD SP TARGET SP VERSION`, single spaces, nothing else (RFC 9112 section 3).
    fn parse(line: &[u8], buf: &[u8]) -> Result<Self, Fault> {
        if let Some(fault) = control_fault(line) {
            return Err(fault);
        }
        let mut words = line.split(|&b| b == b' ');
        let (Some(method), Some(target), version) = (words.next(), words.next(), words.next()) else {
            return Err(Fault::RequestLine);
        };
        if method.is_empty() || target.is_empty() || words.next().is_some() {
            return Err(Fault::RequestLine);
        }
        if !is_token(method) {
            return Err(Fault::Method);
        }
        if method.len() > METHOD_OCTETS_MAX {
            return Err(Fault::MethodTooLong);
        }
        // Without a version it is HTTP/0.9.
        let version = Version::parse(version.ok_or(Fault::RequestLine)?, Fault::RequestLine)?;
        // What is left may still be a TAB, a backslash or a raw UTF-8 octet.
        if !target.iter().all(|&b| b.is_ascii_graphic() && b != b'\\') {
            return Err(Fault::TargetOctet);
        }
        Ok(Self {
            method: Method::of(method),
            method_name: Span::of(method, buf),
            target: Span::of(target, buf),
            version,
        })
    }
}

/// What the field lines of a request have said so far.
#[derive(Clone, Copy, Debug, Default)]
struct Gathered {
    body: BodyFields,
    hop: HopFields,
    host: Option<Span>,
    expect_continue: bool,
    max_forwards: MaxForwards,
}

/// `Max-Forwards` counts for OPTIONS and TRACE only, so a bad one is a fault only there.
#[derive(Clone, Copy, Debug, Default)]
enum MaxForwards {
    #[default]
    Absent,
    Is(u64),
    Bad,
}

impl Gathered {
    fn observe(&mut self, line: &[u8], buf: &[u8]) -> Result<(), Fault> {
        let field = parse_line(line)?;
        let Some(known) = Known::of(field.name) else { return Ok(()) };
        match known {
            Known::ContentLength => self.body.content_length(field.value)?,
            Known::TransferEncoding => self.body.transfer_encoding(field.value)?,
            Known::Disguised => return Err(Fault::DisguisedField),
            Known::Host => {
                if self.host.is_some() {
                    return Err(Fault::HostRepeated);
                }
                Authority::parse(field.value).map_err(|_| Fault::Host)?;
                self.host = Some(Span::of(field.value, buf));
            }
            Known::Expect => {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Fault::Expectation);
                }
                self.expect_continue = true;
            }
            Known::MaxForwards => {
                self.max_forwards = match (self.max_forwards, parse_max_forwards(field.value)) {
                    (MaxForwards::Absent, Some(number)) => MaxForwards::Is(number),
                    _ => MaxForwards::Bad,
                }
            }
            _ => self.hop.observe(known, field.value)?,
        }
        Ok(())
    }
}

/// The rules that need the whole head.
fn finish(line: RequestLine, gathered: Gathered, fields: Span, len: usize) -> Result<RequestHead, Fault> {
    let RequestLine { method, method_name, target, version } = line;
    let Gathered { body, hop, host, expect_continue, max_forwards } = gathered;
    if host.is_none() && version == Version::Http11 {
        return Err(Fault::HostMissing);
    }
    let max_forwards = match (method, max_forwards) {
        (Method::Options | Method::Trace, MaxForwards::Bad) => return Err(Fault::MaxForwards),
        (Method::Options | Method::Trace, MaxForwards::Is(number)) => Some(number),
        _ => None,
    };
    Ok(RequestHead {
        len,
        method,
        version,
        framing: body.of_request(method, version)?,
        connection: hop.connection,
        upgrade: hop.upgrade(version),
        expect_continue: expect_continue && version == Version::Http11,
        max_forwards,
        te_trailers: hop.te_trailers && hop.connection.te,
        method_name,
        target,
        host,
        fields,
    })
}

/// Plain digits; more than fit mean "very many" all the same.
fn parse_max_forwards(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = value.iter().map(|b| u64::from(b.wrapping_sub(b'0')));
    Some(digits.fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(digit)))
}

/// The fault of a first octet with which no message starts, told before its line is complete: whoever speaks another
/// protocol hears so at once.
fn first_octet_fault(octet: u8, kind: Kind) -> Option<Fault> {
    match octet {
        b'\r' => None,
        b'\n' => Some(Fault::BareLf),
        // The content type of a TLS handshake record.
        0x16 => Some(Fault::Tls),
        b' ' | b'\t' => Some(Fault::LeadingSpace),
        b if b < b' ' || b == 0x7f => Some(Fault::ControlOctet),
        b if is_token_octet(b) => None,
        _ if kind == Kind::Response => Some(Fault::StatusLine),
        _ => Some(Fault::Method),
    }
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
