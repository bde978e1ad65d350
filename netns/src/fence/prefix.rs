//! How a fence's lines in the kernel log begin.

use std::fmt;

use crate::{LogToken, SandboxName, limits};

/// The start of a log line, ending in one space: `sluice[<name>:<token>] ` or `sluice-host[<name>:<token>] `.
#[derive(Clone, PartialEq, Eq)]
pub struct LogPrefix(String);

/// The longest name, the token and what is around them fit into what the kernel takes.
const _: () = assert!("sluice-host[:] ".len() + limits::NAME_BYTES_MAX + 16 <= limits::LOG_PREFIX_BYTES_MAX);

impl LogPrefix {
    /// Of the fence inside sandbox `name`.
    pub fn inner(name: &SandboxName, token: LogToken) -> Self {
        Self(format!("sluice[{name}:{token}] "))
    }

    /// Of the fence on the host's side of sandbox `name`'s links: `sluice-host[<name>:<token>] `.
    pub fn host(name: &SandboxName, token: LogToken) -> Self {
        Self(format!("sluice-host[{name}:{token}] "))
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
