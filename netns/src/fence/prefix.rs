//! How a fence's lines in the kernel log begin.

use std::fmt;

use crate::{LogToken, SandboxName, limits};

/// The start of a log line: `sluice[<name>:<token>] `, ending in one space.
#[derive(Clone, PartialEq, Eq)]
pub struct LogPrefix(String);

/// The longest name, the token and what is around them fit into what the kernel takes.
const _: () = assert!("sluice[:] ".len() + limits::NAME_BYTES_MAX + 16 <= limits::LOG_PREFIX_BYTES_MAX);

impl LogPrefix {
    /// Of the fence inside sandbox `name`.
    pub fn inner(name: &SandboxName, token: LogToken) -> Self {
        Self(format!("sluice[{name}:{token}] "))
    }

    /// The prefix as the kernel prints it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Carries a secret: see [`LogToken`].
impl fmt::Debug for LogPrefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("LogPrefix(…)")
    }
}
