//! What can be wrong with the bytes of a message: one closed list and its table.

use crate::destination::{AuthorityError, HostError};

/// A fault in a head, a body's framing or a request target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    // Lines.
    /// LF that does not follow CR.
    BareLf,
    /// CR that is not followed by LF.
    BareCr,
    /// NUL or another control octet.
    ControlOctet,
    /// More than one empty line, or other white space, before the first line.
    LeadingSpace,
    /// A TLS record where HTTP was expected.
    Tls,
    // The first line.
    /// Not `METHOD SP TARGET SP VERSION`; also HTTP/0.9.
    RequestLine,
    /// The method is no token.
    Method,
    /// The method is longer than any known one.
    MethodTooLong,
    /// A version other than HTTP/1.0 and HTTP/1.1; also the HTTP/2 preface.
    Version,
    /// The request line is over its bound.
    LineTooLong,
    /// Not `VERSION SP 3DIGIT [SP REASON]`.
    StatusLine,
    // Fields.
    /// The head is over its bound.
    HeadTooLarge,
    /// More field lines than the bound.
    TooManyFields,
    /// A field line without a colon.
    FieldLine,
    /// A field name that is no token.
    FieldName,
    /// White space between a field name and its colon.
    SpaceBeforeColon,
    /// A line that starts with white space (obs-fold, RFC 9112 section 5.2).
    LineFolding,
    /// `Connection` nominates what frames or routes the message, holds what is no token, or too much of it.
    ConnectionOption,
    /// A method that has no body, with one.
    BodyNotAllowed,
    /// `Expect` with anything but `100-continue`.
    Expectation,
    /// `Max-Forwards` twice, or not a number.
    MaxForwards,
    // Framing.
    /// `Content-Length` and `Transfer-Encoding` together.
    LengthAndCoding,
    /// `Content-Length` more than once, as lines or as a list.
    LengthRepeated,
    /// `Content-Length` that is not plain digits.
    Length,
    /// `Content-Length` over its bound.
    LengthTooLarge,
    /// `Transfer-Encoding` that is not `chunked` exactly once.
    TransferCoding,
    /// `Transfer-Encoding` with a coding Sluice does not know.
    TransferCodingUnknown,
    /// `Transfer-Encoding` in HTTP/1.0.
    TransferCodingIn10,
    /// `Transfer_Encoding` and the like: another name to us, the same one to an origin that maps names to variables.
    DisguisedField,
    // Host.
    /// No `Host` in HTTP/1.1.
    HostMissing,
    /// Two `Host` fields.
    HostRepeated,
    /// A `Host` that is no authority.
    Host,
    /// Inside a tunnel, a `Host` or target that is not the tunnel's.
    HostMismatch,
    /// Not the HTTP/2 that was agreed on.
    Http2,
    // The target.
    /// A form this method does not have.
    TargetForm,
    /// An octet no target holds: control, space, non-ASCII, backslash.
    TargetOctet,
    /// A fragment: never sent in a request.
    Fragment,
    /// User information: never accepted.
    Userinfo,
    /// A port that is missing, empty, not plain digits, or not from 1 to 65535.
    Port,
    /// A host that is none.
    TargetHost(HostError),
    /// `https://`: never fetched in plaintext (RFC 9110 section 4.2.2).
    SchemeHttps,
    /// Any other scheme.
    SchemeUnknown,
    /// A path without a host, sent to a proxy.
    OriginFormToProxy,
    /// CONNECT inside a tunnel.
    NestedConnect,
    // Chunked bodies.
    /// A chunk size that is not plain hex digits, or its line's end.
    ChunkSize,
    /// A chunk over its bound.
    ChunkTooLarge,
    /// A chunk extension that is malformed, or too many of them.
    ChunkExtension,
    /// Chunk data that is not followed by CRLF.
    ChunkEnd,
    /// A trailer field that frames or routes the message.
    TrailerForbidden,
    /// A trailer section over its bound.
    TrailerTooLarge,
}

impl Fault {
    /// The status a client gets for this fault in its request.
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// The stable name of this fault in events and metrics.
    pub fn label(self) -> &'static str {
        self.row().1
    }

    /// What is wrong, as one ASCII phrase that holds no byte of the peer's.
    pub fn phrase(self) -> &'static str {
        self.row().2
    }

    /// The table: status as a request, label, phrase.
    #[rustfmt::skip]
    #[allow(clippy::enum_glob_use)] // a table of all of them
    fn row(self) -> (u16, &'static str, &'static str) {
        use Fault::*;
        match self {
            BareLf => (400, "bare_lf", "a line ends in LF without CR"),
            BareCr => (400, "bare_cr", "CR without LF"),
            ControlOctet => (400, "control_octet", "NUL or a control character in the head"),
            LeadingSpace => (400, "leading_space", "white space before the first line"),
            Tls => (400, "tls", "TLS where plain HTTP was expected"),
            RequestLine => (400, "request_line", "the first line is not METHOD TARGET HTTP/1.1"),
            Method => (400, "method", "the method is not a token"),
            MethodTooLong => (501, "method_too_long", "the method is longer than any known one"),
            Version => (505, "version", "only HTTP/1.0 and HTTP/1.1 are spoken here"),
            LineTooLong => (414, "line_too_long", "the request line is too long"),
            StatusLine => (400, "status_line", "the status line is malformed"),
            HeadTooLarge => (431, "head_too_large", "the header section is too large"),
            TooManyFields => (431, "too_many_fields", "too many header fields"),
            FieldLine => (400, "field_line", "a field line has no colon"),
            FieldName => (400, "field_name", "a field name is not a token"),
            SpaceBeforeColon => (400, "space_before_colon", "white space before the colon of a field"),
            LineFolding => (400, "line_folding", "a field line starts with white space"),
            ConnectionOption => (400, "connection_option", "the Connection field is malformed or nominates a framing field"),
            BodyNotAllowed => (400, "body_not_allowed", "this method has no body"),
            Expectation => (417, "expectation", "only Expect: 100-continue is known"),
            MaxForwards => (400, "max_forwards", "Max-Forwards is not one number"),
            LengthAndCoding => (400, "length_and_coding", "Content-Length and Transfer-Encoding together"),
            LengthRepeated => (400, "length_repeated", "more than one Content-Length"),
            Length => (400, "length", "Content-Length is not a plain number"),
            LengthTooLarge => (400, "length_too_large", "Content-Length is too large"),
            TransferCoding => (400, "transfer_coding", "Transfer-Encoding is not chunked exactly once"),
            TransferCodingUnknown => (501, "transfer_coding_unknown", "a transfer coding that is not known here"),
            TransferCodingIn10 => (400, "transfer_coding_in_10", "Transfer-Encoding in HTTP/1.0"),
            DisguisedField => (400, "disguised_field", "a framing field spelt with an underscore"),
            HostMissing => (400, "host_missing", "HTTP/1.1 without a Host field"),
            HostRepeated => (400, "host_repeated", "more than one Host field"),
            Host => (400, "host", "the Host field is malformed"),
            HostMismatch => (400, "host_mismatch", "the request names another host than its tunnel"),
            Http2 => (400, "http2", "what came is not the HTTP/2 that was agreed on"),
            TargetForm => (400, "target_form", "the request target has no form this method allows"),
            TargetOctet => (400, "target_octet", "the request target holds a character that must be percent-encoded"),
            Fragment => (400, "fragment", "the request target holds a fragment"),
            Userinfo => (400, "userinfo", "the request target holds user information"),
            Port => (400, "port", "the port is not a plain number from 1 to 65535"),
            TargetHost(HostError::Empty) => (400, "host_empty", "the host is empty"),
            TargetHost(HostError::TooLong) => (400, "host_too_long", "the host name is too long"),
            TargetHost(HostError::BadName) => (400, "host_name", "the host name holds a character or label that is not allowed"),
            TargetHost(HostError::OddIpv4) => (400, "host_odd_ipv4", "the host is a number that is not a plain IPv4 address"),
            TargetHost(HostError::BadIpv6) => (400, "host_bad_ipv6", "the host is not a valid IPv6 address"),
            SchemeHttps => (501, "scheme_https", "https is not fetched in plaintext: use CONNECT"),
            SchemeUnknown => (501, "scheme_unknown", "only http is forwarded: use CONNECT for other schemes"),
            OriginFormToProxy => (400, "origin_form_to_proxy", "this is a proxy: the target must be a whole URL or CONNECT host:port"),
            NestedConnect => (400, "nested_connect", "CONNECT inside a tunnel"),
            ChunkSize => (400, "chunk_size", "a chunk size is malformed"),
            ChunkTooLarge => (400, "chunk_too_large", "a chunk is too large"),
            ChunkExtension => (400, "chunk_extension", "a chunk extension is malformed or too long"),
            ChunkEnd => (400, "chunk_end", "chunk data is not followed by CRLF"),
            TrailerForbidden => (400, "trailer_forbidden", "a trailer field that frames or routes the message"),
            TrailerTooLarge => (400, "trailer_too_large", "the trailer section is too large"),
        }
    }
}

impl From<AuthorityError> for Fault {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Userinfo => Self::Userinfo,
            AuthorityError::Port => Self::Port,
            AuthorityError::Host(host) => Self::TargetHost(host),
        }
    }
}
