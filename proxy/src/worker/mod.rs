//! The data plane.
mod buffers;
mod mailbox;
mod pipes;
mod race;
mod relay;
mod socket;
mod watchdog;

pub(crate) enum Message {}
