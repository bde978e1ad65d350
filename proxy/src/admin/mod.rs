//! The admin API: JSON over HTTP/1.1 on a Unix socket (docs/api.md).
//!
//! Owns the socket, who may speak on it, and the translation between requests and the [`Daemon`](crate::daemon).
//! Never: what a sandbox is or how it is made.
//!
//! The life of a call: `socket.rs` accepts the connection of root or of the daemon's own user and turns everybody else
//! away; `routes.rs` reads the request into a type of [`wire`] and has the daemon do it on a thread that may wait;
//! `answer.rs` turns what came of it into a status and JSON; `stream.rs` are the answers that last. [`client`] is the other end.

mod answer;
pub mod client;
mod routes;
pub mod socket;
mod stream;
pub mod wire;

pub use routes::{Reload, serve};
