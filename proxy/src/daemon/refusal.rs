//! Why the daemon did not do what it was asked for.

use thiserror::Error;

use crate::diagnostic::Diagnostics;
use crate::made::MadeError;

/// A refusal; nothing was changed.
#[derive(Debug, Error)]
pub enum Refusal {
    /// What was asked for cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The policy has errors.
    #[error("the policy cannot be used:\n{0}")]
    Policy(Diagnostics),
    /// The configuration has errors.
    #[error("the configuration cannot be used:\n{0}")]
    Config(Diagnostics),
    /// There is no such sandbox.
    #[error("there is no sandbox {0}; `sluice sandbox ls` shows those there are")]
    NotFound(String),
    /// The name or the namespace is taken.
    #[error("{0}")]
    Exists(String),
    /// There is no room, or the daemon is stopping.
    #[error("{0}")]
    Unavailable(String),
    /// The kernel or a part of Sluice failed.
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    /// Somebody else works on it.
    pub(super) fn busy(name: &str) -> Self {
        Self::Exists(format!("sandbox {name} is being made or removed just now; try again"))
    }
}

impl From<sluice_netns::Error> for Refusal {
    fn from(error: sluice_netns::Error) -> Self {
        use sluice_netns::Error as Network;
        let text = error.to_string();
        match error {
            Network::Exists { .. }
            | Network::Kept(_)
            | Network::AttachedAlready(_)
            | Network::HostFenceOwned(_) => Self::Exists(text),
            Network::Name(_)
            | Network::LinkName(_)
            | Network::HostNamespace(_)
            | Network::NotANamespace(_) => Self::Invalid(text),
            _ => Self::Failed(text),
        }
    }
}

impl From<MadeError> for Refusal {
    fn from(error: MadeError) -> Self {
        match error {
            MadeError::Network(error) => error.into(),
            error => Self::Failed(error.to_string()),
        }
    }
}
