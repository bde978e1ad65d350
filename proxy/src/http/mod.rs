//! HTTP as pure functions over bytes: HTTP/1.1, and the heads of HTTP/2 in its words.
//!
//! Owns what a request, a response and their bodies are on the wire, and what Sluice itself answers. Bytes (and, where
//! one is needed, the time) come in, values go out. It never touches a socket, a clock or a file, never panics on what
//! a peer sent, and on a warm connection never allocates: it writes into buffers its caller owns.
//!
//! The life of a request: [`head`] finds its end and checks every line · [`framing`] says how long the body is ·
//! [`target`] says where it goes · (policy and the dial happen elsewhere) · [`rewrite`] writes the head for the next
//! hop · [`chunked`] walks a chunked body · [`response`] reads the origin's answer · [`rewrite`] writes it for the
//! client. [`two`] puts the heads of HTTP/2 into these words and back. Whatever goes wrong is a [`fault`] in the bytes or another [`reject::Reject`], and [`answer`] writes it.
//!
//! One rule holds throughout: what could be read in two ways is refused, not repaired, so that the same bytes are
//! never one message to Sluice and another to the next hop.

pub mod answer;
pub mod chunked;
pub mod date;
pub mod fault;
pub mod fields;
pub mod framing;
pub mod head;
pub mod limits;
pub mod reject;
pub mod response;
pub mod rewrite;
pub mod target;
pub mod two;
