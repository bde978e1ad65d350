//! Every bound on what a peer may send, with its unit and its reason.

/// Bounds on one request or response head. All are configurable; the defaults fit what browsers, package managers
/// and cloud SDKs send with room to spare, and keep the worst case per connection at one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// The first line in octets, without its CRLF. RFC 9112 section 3 recommends at least 8000.
    pub line_octets_max: usize,
    /// The whole head in octets, with all its CRLFs: what a connection may hold while it waits for a head to end.
    pub head_octets_max: usize,
    /// Field lines in one head. Bounds the work of comparing fields with each other.
    pub fields_max: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { line_octets_max: 16 * 1024, head_octets_max: 64 * 1024, fields_max: 128 }
    }
}

/// A method in octets. The longest registered one has 17 (`UPDATEREDIRECTREF`).
pub const METHOD_OCTETS_MAX: usize = 32;

/// Connection options in one head. Each is compared with each field, so this bounds that product.
pub const CONNECTION_OPTIONS_MAX: usize = 16;

/// A chunk-size line in octets, without its CRLF: 16 hex digits and whatever extensions follow.
pub const CHUNK_LINE_OCTETS_MAX: usize = 256;

/// Chunk extensions in one body, in octets. They are read and dropped, so a body made of them is only a burden.
pub const CHUNK_EXTENSION_OCTETS_MAX: u64 = 4 * 1024;

/// Largest chunk in octets: what still fits the signed 64-bit counters of other implementations.
pub const CHUNK_OCTETS_MAX: u64 = i64::MAX as u64;

/// Largest body a `Content-Length` may announce, in octets, for the same reason.
pub const LENGTH_OCTETS_MAX: u64 = i64::MAX as u64;

/// One trailer field line in octets, without its CRLF. A driver's buffer must hold one such line.
pub const TRAILER_LINE_OCTETS_MAX: usize = 4 * 1024;

/// A trailer section in octets.
pub const TRAILER_OCTETS_MAX: usize = 8 * 1024;

/// Trailer fields in one body.
pub const TRAILER_FIELDS_MAX: usize = 32;
