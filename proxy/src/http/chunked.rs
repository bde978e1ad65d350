//! Chunked bodies (RFC 9112 section 7.1): checked while they pass, in place, without copying data.
//!
//! A driver hands [`ChunkedBody::pass`] what it has read; what is to be forwarded ends up at the front of the same
//! buffer, ready to be written. Normally that is every octet, so nothing moves. Left out are chunk extensions, trailer
//! fields that must not travel, and, for a receiver that cannot read chunks, the framing itself. A size line or trailer
//! line is forwarded only once it is complete and right. Where the body ends is known to the octet: what follows it
//! is the next message and is not touched.

use std::ops::Range;

use super::fault::Fault;
use super::fields::{Known, is_token, is_token_octet, parse_line, split_once};
use super::head::Nominated;
use super::limits::{
    CHUNK_EXTENSION_OCTETS_MAX, CHUNK_LINE_OCTETS_MAX, CHUNK_OCTETS_MAX, TRAILER_FIELDS_MAX,
    TRAILER_LINE_OCTETS_MAX, TRAILER_OCTETS_MAX,
};

/// What of a body is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The body stays chunked.
    Chunks,
    /// Only the data: for an HTTP/1.0 receiver, who reads until close. Trailers are dropped.
    Data,
}

/// What one call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Octets to forward, at the front of the buffer.
    pub kept: usize,
    /// Octets of the input used up. What lies behind them, if the body goes on, is an incomplete line: it is handed in
    /// again with more behind it.
    pub consumed: usize,
    /// What comes next.
    pub then: Then,
}

/// What comes behind the octets used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// More of the body.
    More,
    /// Nothing: the body has ended.
    End,
    /// No body: what follows is malformed. What was kept is still right, but the message is never completed.
    Fault(Fault),
}

/// A chunked body on its way through.
#[derive(Clone, Debug)]
pub struct ChunkedBody {
    keep: Keep,
    nominated: Nominated,
    state: State,
    extension_octets: u64,
    trailer_octets: usize,
    trailer_fields: usize,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The line that starts a chunk.
    Size,
    /// This many octets of data, more than 0.
    Data(u64),
    /// The CRLF behind the data.
    DataEnd,
    /// A trailer line, or the empty line that ends the body.
    Trailer,
    /// Nothing.
    Ended,
}

impl ChunkedBody {
    /// A body that starts with the next octet. `nominated` are the names its head nominates.
    pub fn new(keep: Keep, nominated: Nominated) -> Self {
        let state = State::Size;
        Self { keep, nominated, state, extension_octets: 0, trailer_octets: 0, trailer_fields: 0 }
    }

    /// Checks the next octets of the body and moves those to be forwarded to the front of `buf`. What is behind
    /// `consumed` stays as and where it is.
    pub fn pass(&mut self, buf: &mut [u8]) -> Passed {
        let mut pass = Pass { buf, kept: 0, consumed: 0 };
        let then = loop {
            match self.step(&mut pass) {
                Ok(Step::Again) => {}
                Ok(Step::Wait) => break Then::More,
                Ok(Step::End) => break Then::End,
                Err(fault) => break Then::Fault(fault),
            }
        };
        Passed { kept: pass.kept, consumed: pass.consumed, then }
    }

    /// Octets of data that follow at once: a driver may move up to so many without looking at them (splice), and says
    /// so with [`Self::data_moved`].
    pub fn data_left(&self) -> u64 {
        match self.state {
            State::Data(left) => left,
            _ => 0,
        }
    }

    /// This many octets of data, of the [`Self::data_left`], were moved elsewhere.
    pub fn data_moved(&mut self, octets: u64) {
        if let State::Data(left) = self.state {
            self.state = after_data(left.saturating_sub(octets));
        }
    }

    fn step(&mut self, pass: &mut Pass<'_>) -> Result<Step, Fault> {
        match self.state {
            State::Size => self.size_line(pass),
            State::Data(left) => {
                let here = pass.rest().len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if here == 0 {
                    return Ok(Step::Wait);
                }
                pass.keep_next(here, true);
                self.state = after_data(left.saturating_sub(here as u64));
                Ok(Step::Again)
            }
            State::DataEnd => match pass.rest() {
                [b'\r', b'\n', ..] => {
                    pass.keep_next(2, self.keep == Keep::Chunks);
                    self.state = State::Size;
                    Ok(Step::Again)
                }
                [] | [b'\r'] => Ok(Step::Wait),
                _ => Err(Fault::ChunkEnd),
            },
            State::Trailer => self.trailer_line(pass),
            State::Ended => Ok(Step::End),
        }
    }

    fn size_line(&mut self, pass: &mut Pass<'_>) -> Result<Step, Fault> {
        let faults = LineFaults { end: Fault::ChunkSize, too_long: Fault::ChunkExtension };
        let Some(line) = complete_line(pass.rest(), CHUNK_LINE_OCTETS_MAX, faults)? else {
            return Ok(Step::Wait);
        };
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extensions) = line.split_at_checked(digits).ok_or(Fault::ChunkSize)?;
        let octets = parse_size(size)?;
        check_extensions(extensions)?;
        let extension_octets = self.extension_octets.saturating_add(extensions.len() as u64);
        if extension_octets > CHUNK_EXTENSION_OCTETS_MAX {
            return Err(Fault::ChunkExtension);
        }
        let dropped = extensions.len();
        let framing = self.keep == Keep::Chunks;
        pass.keep_next(digits, framing);
        pass.keep_next(dropped, false);
        pass.keep_next(2, framing);
        self.extension_octets = extension_octets;
        self.state = if octets == 0 { State::Trailer } else { State::Data(octets) };
        Ok(Step::Again)
    }

    fn trailer_line(&mut self, pass: &mut Pass<'_>) -> Result<Step, Fault> {
        let faults = LineFaults { end: Fault::BareLf, too_long: Fault::TrailerTooLarge };
        let Some(line) = complete_line(pass.rest(), TRAILER_LINE_OCTETS_MAX, faults)? else {
            return Ok(Step::Wait);
        };
        let octets = line.len().saturating_add(2);
        let chunks = self.keep == Keep::Chunks;
        if line.is_empty() {
            pass.keep_next(octets, chunks);
            self.state = State::Ended;
            return Ok(Step::End);
        }
        let (all_octets, all_fields) =
            (self.trailer_octets.saturating_add(octets), self.trailer_fields.saturating_add(1));
        if all_octets > TRAILER_OCTETS_MAX || all_fields > TRAILER_FIELDS_MAX {
            return Err(Fault::TrailerTooLarge);
        }
        let travels = may_travel(parse_line(line)?.name, &self.nominated)?;
        pass.keep_next(octets, chunks && travels);
        (self.trailer_octets, self.trailer_fields) = (all_octets, all_fields);
        Ok(Step::Again)
    }
}

enum Step {
    Again,
    Wait,
    End,
}

fn after_data(left: u64) -> State {
    if left == 0 { State::DataEnd } else { State::Data(left) }
}

/// One buffer being compacted: kept octets, then a gap, then the rest of the input.
struct Pass<'b> {
    buf: &'b mut [u8],
    kept: usize,
    consumed: usize,
}

impl Pass<'_> {
    fn rest(&self) -> &[u8] {
        self.buf.get(self.consumed..).unwrap_or_default()
    }

    /// Uses up `octets` of the rest, and keeps them or not.
    fn keep_next(&mut self, octets: usize, keep: bool) {
        let end = self.consumed.saturating_add(octets).min(self.buf.len());
        let next: Range<usize> = self.consumed..end;
        self.consumed = end;
        if keep {
            let octets = next.len();
            if self.kept != next.start {
                self.buf.copy_within(next, self.kept);
            }
            self.kept = self.kept.saturating_add(octets);
        }
    }
}

/// The faults of a line that ends in a bare LF, and of one that does not end.
#[derive(Clone, Copy)]
struct LineFaults {
    end: Fault,
    too_long: Fault,
}

/// The line at the start of `rest`, without its CRLF, if it is complete.
fn complete_line(rest: &[u8], octets_max: usize, faults: LineFaults) -> Result<Option<&[u8]>, Fault> {
    // With its CR the line may take one octet more.
    let lf_max = octets_max.saturating_add(1);
    match split_once(rest, b'\n') {
        None if rest.len() > lf_max => Err(faults.too_long),
        None => Ok(None),
        Some((line, _)) if line.len() > lf_max => Err(faults.too_long),
        Some((line, _)) => line.strip_suffix(b"\r").map(Some).ok_or(faults.end),
    }
}

/// 1 to 16 hex digits, up to [`CHUNK_OCTETS_MAX`].
fn parse_size(digits: &[u8]) -> Result<u64, Fault> {
    match digits.len() {
        0 => return Err(Fault::ChunkSize),
        1..=16 => {}
        _ => return Err(Fault::ChunkTooLarge),
    }
    let text = std::str::from_utf8(digits).map_err(|_| Fault::ChunkSize)?;
    let octets = u64::from_str_radix(text, 16).map_err(|_| Fault::ChunkSize)?;
    if octets > CHUNK_OCTETS_MAX { Err(Fault::ChunkTooLarge) } else { Ok(octets) }
}

/// `*( ";" token [ "=" ( token / quoted-string ) ] )`, without the optional white space that RFC 9112 tolerates and
/// that no sender needs.
fn check_extensions(mut rest: &[u8]) -> Result<(), Fault> {
    if !matches!(rest.first(), None | Some(b';')) {
        return Err(Fault::ChunkSize);
    }
    while let Some((semicolon, behind)) = rest.split_first() {
        let (name, behind) = take_token(behind);
        if *semicolon != b';' || !is_token(name) {
            return Err(Fault::ChunkExtension);
        }
        rest = match behind.strip_prefix(b"=") {
            None => behind,
            Some(value) => match value.strip_prefix(b"\"") {
                Some(quoted) => behind_quoted(quoted)?,
                None => match take_token(value) {
                    ([], _) => return Err(Fault::ChunkExtension),
                    (_, behind) => behind,
                },
            },
        };
    }
    Ok(())
}

fn take_token(bytes: &[u8]) -> (&[u8], &[u8]) {
    let octets = bytes.iter().take_while(|&&b| is_token_octet(b)).count();
    bytes.split_at_checked(octets).unwrap_or((bytes, &[]))
}

/// What is behind a quoted string whose opening quote is already gone.
fn behind_quoted(mut rest: &[u8]) -> Result<&[u8], Fault> {
    let is_text = |b: u8| b == b'\t' || (b >= b' ' && b != 0x7f);
    loop {
        rest = match rest {
            [b'"', behind @ ..] => return Ok(behind),
            [b'\\', escaped, behind @ ..] if is_text(*escaped) => behind,
            [b'\\', ..] | [] => return Err(Fault::ChunkExtension),
            [octet, behind @ ..] if is_text(*octet) => behind,
            _ => return Err(Fault::ChunkExtension),
        }
    }
}

/// Whether a trailer field is forwarded. One that frames or routes the message is an attack; one that means this hop
/// only, or that a receiver might merge into the head to its harm (RFC 9110 section 6.5.1), is left out.
pub(super) fn may_travel(name: &[u8], nominated: &Nominated) -> Result<bool, Fault> {
    match Known::of(name) {
        Some(Known::ContentLength | Known::TransferEncoding | Known::Disguised | Known::Host) => {
            Err(Fault::TrailerForbidden)
        }
        Some(_) => Ok(false),
        None => {
            let is_head_only = HEAD_ONLY.iter().any(|head_only| name.eq_ignore_ascii_case(head_only));
            let is_condition = name.get(..3).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"if-"));
            Ok(!is_head_only && !is_condition && !nominated.contains(name))
        }
    }
}

/// Request modifiers, authentication, response control and content format.
const HEAD_ONLY: &[&[u8]] = &[
    b"age",
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expires",
    b"location",
    b"pragma",
    b"range",
    b"retry-after",
    b"set-cookie",
    b"vary",
    b"www-authenticate",
];

#[cfg(test)]
#[path = "chunked_tests.rs"]
mod tests;
