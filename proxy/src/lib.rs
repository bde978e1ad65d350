//! The egress proxy of Sluice.

pub mod address;
pub mod cli;
pub mod config;
pub mod control;
pub mod destination;
pub mod diagnostic;
pub mod event;
pub mod http;
pub mod identity;
pub mod limits;
pub mod policy;
pub mod yaml;
pub mod worker;
