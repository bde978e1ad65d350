//! A tour of the appliance on one machine, without the internet: the demonstration makes its own.
//!
//! `internet.rs` is a namespace with an HTTP origin and a WebSocket echo in it; `tour.rs` is what runs in the sandbox and
//! shows what works and what does not. In between is the real appliance, nothing of it replaced.

pub mod internet;
pub mod tour;

/// The policy of the tour.
pub const POLICY: &str = include_str!("policy.yaml");
/// An origin the policy allows.
pub const API: &str = "api.example";
/// A WebSocket echo the policy allows.
pub const ECHO: &str = "echo.example";
/// A host nobody allows.
pub const FORBIDDEN: &str = "forbidden.example";
