//! How long a body is, decided by type: [`Framing`] cannot hold a contradiction.
//!
//! `BodyFields` gathers `Content-Length` and `Transfer-Encoding` as the lines of a head go by and refuses every
//! spelling that two implementations might read in two ways (RFC 9112 section 6.3).

use super::fault::Fault;
use super::fields::{elements, is_token, trim};
use super::head::{Method, Version};
use super::limits::LENGTH_OCTETS_MAX;

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// There is none.
    None,
    /// This many octets; `Length(0)` was announced, [`Framing::None`] was not.
    Length(u64),
    /// Chunks up to an empty one, then trailers.
    Chunked,
    /// Until the sender closes. Responses only.
    UntilClose,
}

impl Framing {
    /// Whether no octet of body follows the head.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Length(0))
    }
}

/// What the fields of one head say about its body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BodyFields {
    /// The announced length, if any.
    pub(super) length: Option<u64>,
    /// Whether the transfer coding is `chunked`.
    pub(super) chunked: bool,
}

impl BodyFields {
    /// Takes the value of a `Content-Length` field.
    pub(super) fn content_length(&mut self, value: &[u8]) -> Result<(), Fault> {
        if self.length.is_some() || value.contains(&b',') {
            return Err(Fault::LengthRepeated);
        }
        self.length = Some(parse_length(value)?);
        Ok(())
    }

    /// Takes the value of a `Transfer-Encoding` field.
    pub(super) fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Fault> {
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(coding_fault(value));
        }
        if self.chunked {
            return Err(Fault::TransferCoding);
        }
        self.chunked = true;
        Ok(())
    }

    /// The rules that need both fields and the version.
    fn agreed(self, version: Version) -> Result<Self, Fault> {
        match (self.chunked, self.length, version) {
            (true, Some(_), _) => Err(Fault::LengthAndCoding),
            (true, None, Version::Http10) => Err(Fault::TransferCodingIn10),
            _ => Ok(self),
        }
    }

    /// The body of a request.
    pub(super) fn of_request(self, method: Method, version: Version) -> Result<Framing, Fault> {
        let framing = match self.agreed(version)? {
            Self { chunked: true, .. } => Framing::Chunked,
            Self { length: Some(length), .. } => Framing::Length(length),
            Self { length: None, .. } => Framing::None,
        };
        match method {
            // RFC 9110 sections 9.3.6 and 9.3.8.
            Method::Connect | Method::Trace if !framing.is_empty() => Err(Fault::BodyNotAllowed),
            Method::Connect | Method::Trace => Ok(Framing::None),
            _ => Ok(framing),
        }
    }

    /// Checks the fields of a response, whatever it answers.
    pub(super) fn of_response(self, version: Version) -> Result<Self, Fault> {
        self.agreed(version)
    }

    /// The body of a response with these checked fields, as the answer to `method`.
    pub(super) fn answering(self, method: Method, status: u16) -> Framing {
        let bodiless = matches!(
            (method, status),
            (Method::Head, _) | (_, 100..=199 | 204 | 304) | (Method::Connect, 200..=299)
        );
        match self {
            _ if bodiless => Framing::None,
            Self { chunked: true, .. } => Framing::Chunked,
            Self { length: Some(length), .. } => Framing::Length(length),
            Self { length: None, .. } => Framing::UntilClose,
        }
    }
}

/// Why this value is not `chunked`. What does not end in it is a bad request (RFC 9112 section 6.3 item 4); what does,
/// behind another coding, is one that could be implemented (section 6.1).
fn coding_fault(value: &[u8]) -> Fault {
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let before_last =
        match value.iter().rposition(|&b| b == b',').and_then(|comma| value.split_at_checked(comma)) {
            Some((before, [b',', last @ ..])) if is_chunked(trim(last)) => before,
            _ => return Fault::TransferCoding,
        };
    if elements(before_last).any(|coding| is_token(coding) && !is_chunked(coding)) {
        Fault::TransferCodingUnknown
    } else {
        Fault::TransferCoding
    }
}

/// Plain decimal digits, at most 20 of them, up to [`LENGTH_OCTETS_MAX`].
fn parse_length(value: &[u8]) -> Result<u64, Fault> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::Length);
    }
    if value.len() > 20 {
        return Err(Fault::LengthTooLarge);
    }
    let mut digits = value.iter().map(|b| u64::from(b.wrapping_sub(b'0')));
    let number = digits.try_fold(0_u64, |sum, digit| sum.checked_mul(10)?.checked_add(digit));
    number.filter(|&n| n <= LENGTH_OCTETS_MAX).ok_or(Fault::LengthTooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_length_is_plain_digits_once() {
        let one = |value: &[u8]| BodyFields::default().content_length(value);
        let rows: &[(&[u8], Result<(), Fault>)] = &[
            (b"0", Ok(())),
            (b"5", Ok(())),
            (b"9223372036854775807", Ok(())),
            (b"9223372036854775808", Err(Fault::LengthTooLarge)),
            (b"18446744073709551616", Err(Fault::LengthTooLarge)),
            (b"99999999999999999999", Err(Fault::LengthTooLarge)),
            (b"000000000000000000000", Err(Fault::LengthTooLarge)),
            (b"+5", Err(Fault::Length)),
            (b"-5", Err(Fault::Length)),
            (b"5 5", Err(Fault::Length)),
            (b"", Err(Fault::Length)),
            (b"0x5", Err(Fault::Length)),
            (b"5a", Err(Fault::Length)),
            (b"5.0", Err(Fault::Length)),
            (b"\xd9\xa5", Err(Fault::Length)),
            (b"5,5", Err(Fault::LengthRepeated)),
            (b"5, 5", Err(Fault::LengthRepeated)),
            (b"5,", Err(Fault::LengthRepeated)),
        ];
        for (value, expected) in rows {
            assert_eq!(one(value), *expected, "{:?}", value.escape_ascii().to_string());
        }
        let mut twice = BodyFields::default();
        assert_eq!(twice.content_length(b"5"), Ok(()));
        assert_eq!(twice.content_length(b"5"), Err(Fault::LengthRepeated));
    }

    #[test]
    fn transfer_encoding_is_chunked_exactly_once() {
        let one = |value: &[u8]| BodyFields::default().transfer_encoding(value);
        let rows: &[(&[u8], Result<(), Fault>)] = &[
            (b"chunked", Ok(())),
            (b"Chunked", Ok(())),
            (b"", Err(Fault::TransferCoding)),
            (b",", Err(Fault::TransferCoding)),
            (b"chunked,", Err(Fault::TransferCoding)),
            (b"chunked, chunked", Err(Fault::TransferCoding)),
            (b"chunked;a=b", Err(Fault::TransferCoding)),
            (b"\"chunked\"", Err(Fault::TransferCoding)),
            (b"chunked\x0b", Err(Fault::TransferCoding)),
            (b"gzip, chunked", Err(Fault::TransferCodingUnknown)),
            (b"identity, chunked", Err(Fault::TransferCodingUnknown)),
            (b"chunked, gzip", Err(Fault::TransferCoding)),
            (b"gzip", Err(Fault::TransferCoding)),
            (b"identity", Err(Fault::TransferCoding)),
            (b"xchunked", Err(Fault::TransferCoding)),
            (b"chunked, identity", Err(Fault::TransferCoding)),
            (b", chunked", Err(Fault::TransferCoding)),
        ];
        for (value, expected) in rows {
            assert_eq!(one(value), *expected, "{:?}", value.escape_ascii().to_string());
        }
        let mut twice = BodyFields::default();
        assert_eq!(twice.transfer_encoding(b"chunked"), Ok(()));
        assert_eq!(twice.transfer_encoding(b"chunked"), Err(Fault::TransferCoding));
    }

    #[test]
    fn a_request_has_no_length_beside_a_coding_and_no_coding_in_http_1_0() {
        let both = BodyFields { length: Some(0), chunked: true };
        assert_eq!(both.of_request(Method::Post, Version::Http11), Err(Fault::LengthAndCoding));
        assert_eq!(both.of_response(Version::Http11), Err(Fault::LengthAndCoding));
        let chunked = BodyFields { length: None, chunked: true };
        assert_eq!(chunked.of_request(Method::Post, Version::Http10), Err(Fault::TransferCodingIn10));
        assert_eq!(chunked.of_request(Method::Post, Version::Http11), Ok(Framing::Chunked));
        assert_eq!(BodyFields::default().of_request(Method::Get, Version::Http11), Ok(Framing::None));
    }

    #[test]
    fn connect_and_trace_have_no_body() {
        for method in [Method::Connect, Method::Trace] {
            let length = |n| BodyFields { length: Some(n), chunked: false };
            let chunked = BodyFields { length: None, chunked: true };
            assert_eq!(length(1).of_request(method, Version::Http11), Err(Fault::BodyNotAllowed));
            assert_eq!(chunked.of_request(method, Version::Http11), Err(Fault::BodyNotAllowed));
            assert_eq!(length(0).of_request(method, Version::Http11), Ok(Framing::None));
        }
    }

    #[test]
    fn some_answers_have_no_body_whatever_their_fields_say() {
        let chunked = BodyFields { length: None, chunked: true };
        let length = BodyFields { length: Some(7), chunked: false };
        for fields in [chunked, length, BodyFields::default()] {
            for status in [100, 101, 103, 199, 204, 304] {
                assert_eq!(fields.answering(Method::Get, status), Framing::None);
            }
            assert_eq!(fields.answering(Method::Head, 200), Framing::None);
            assert_eq!(fields.answering(Method::Connect, 200), Framing::None);
        }
        assert_eq!(chunked.answering(Method::Get, 200), Framing::Chunked);
        assert_eq!(length.answering(Method::Connect, 403), Framing::Length(7));
        assert_eq!(BodyFields::default().answering(Method::Get, 200), Framing::UntilClose);
        assert_eq!(length.answering(Method::Get, 205), Framing::Length(7));
    }
}
