//! Address classes and the guard in front of every dial.
//!
//! Owns which addresses may be dialled: `class` says what an address is, looking through every form in which IPv6
//! carries an IPv4 address; `guard` says whether it may be dialled, and is the only maker of [`Checked`], which is what
//! the dialler takes. Never resolves a name, never asks the system anything: what the host's own addresses are is told.

mod class;
mod guard;

pub use class::Class;
pub use guard::{Checked, Guard, Reach, Refused};
