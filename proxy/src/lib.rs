//! The egress proxy of Sluice.

pub mod address;
pub mod config;
pub mod destination;
pub mod diagnostic;
pub mod event;
pub mod http;
pub mod identity;
pub mod policy;
pub mod tls;
pub mod yaml;
