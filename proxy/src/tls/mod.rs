//! TLS as far as a proxy that does not terminate it looks: the first message, read in passing.
//!
//! Owns the reading of a ClientHello and the comparison of the name in it with the one that was judged. Never changes,
//! holds back or answers a byte, and never knows a key.

pub mod client_hello;
