//! The load generator: what clients do (sessions), when (pace), and how it is measured (driver).

pub(crate) mod driver;
pub(crate) mod exchange;
pub(crate) mod fetch;
pub(crate) mod head;
pub(crate) mod pace;
pub(crate) mod session;
mod thread;
pub(crate) mod tunnel;
pub(crate) mod visit;
pub(crate) mod volume;
