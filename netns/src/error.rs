//! What can go wrong with a sandbox's network, each message saying what failed, with which value, and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::SandboxName;

/// Why an operation on a sandbox's network failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that cannot name a sandbox.
    #[error(
        "{0:?} cannot name a sandbox: use 1 to {max} of A-Z a-z 0-9 . _ - and begin with a letter or digit",
        max = crate::limits::NAME_BYTES_MAX
    )]
    Name(String),

    /// A text that is no log token.
    #[error("{0:?} is not a log token (16 lower-case hex digits)")]
    Token(String),

    /// The name is in use by a living owner.
    #[error("sandbox {name} exists already and is owned by the living process {owner}: choose another name")]
    Exists {
        /// The name asked for.
        name: SandboxName,
        /// The owner's pid as it recorded it, or `?`.
        owner: String,
    },

    /// The name is that of a sandbox that waits for its daemon.
    #[error(
        "sandbox {0} is kept, with what runs in it, for the daemon that made it: start the daemon and see `sluice sandbox ls`, \
         or choose another name"
    )]
    Kept(SandboxName),

    /// A text that cannot name a guarded link.
    #[error(
        "{0:?} cannot name a sandbox's link: 1 to 15 printable characters, none of / : * \" \\ or blank, and not lo"
    )]
    LinkName(String),

    /// What was to be attached is no sandbox's namespace but the host's.
    #[error("{0} is the host's own network namespace: fencing it would cut off the host")]
    HostNamespace(String),

    /// What was to be attached is not there or not a namespace.
    #[error(
        "{0} is not a network namespace; give the pid of a process inside, or a path such as /run/netns/NAME"
    )]
    NotANamespace(String),

    /// The namespace is another sandbox's.
    #[error("that namespace is sandbox {0}'s already")]
    AttachedAlready(SandboxName),

    /// Another daemon fences links here.
    #[error(
        "another daemon owns the host fence (it holds {}; `fuser -v` on it says which): end it, or name no `link` here",
        .0.display()
    )]
    HostFenceOwned(PathBuf),

    /// A file, mount or namespace operation failed.
    #[error("cannot {action} {path}: {source}{}", remedy(source))]
    Io {
        /// What was tried, as a verb phrase that the path completes.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// Links, addresses or routes could not be set.
    #[error("cannot {action}: {reason}")]
    Netlink {
        /// What was tried.
        action: String,
        /// What the kernel said.
        reason: String,
    },

    /// A listening socket could not be made inside.
    #[error("cannot listen on {address} inside sandbox {name}: {source}")]
    Listen {
        /// The sandbox.
        name: SandboxName,
        /// The proxy's address.
        address: std::net::SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },

    /// A number of listeners that makes no sense.
    #[error("{0} listeners asked for; ask for 1 to {max}", max = crate::limits::LISTENERS_MAX)]
    ListenerCount(usize),

    /// `nft` could not be run.
    #[error("cannot run nft: {0}; install the package nftables and see that nft is on PATH")]
    NftMissing(io::Error),

    /// `nft` refused what we asked.
    #[error("nft refused to {action}: {stderr}")]
    NftRefused {
        /// What was asked.
        action: &'static str,
        /// What nft said, trimmed.
        stderr: String,
    },

    /// `nft` answered something that is not what its JSON schema promises.
    #[error("nft answered with something unexpected while asked to {action}: {reason}")]
    NftAnswer {
        /// What was asked.
        action: &'static str,
        /// What is wrong with the answer.
        reason: String,
    },

    /// The kernel's rules, read back, are not those that were loaded. Nothing may run behind such a fence.
    #[error(
        "the fence read back from the kernel is not the one loaded: {0}; does something else change nft rules?"
    )]
    FenceDiffers(String),

    /// The fence of a sandbox is no longer there.
    #[error("the fence of sandbox {0} is gone: somebody with power over its namespace removed it")]
    FenceGone(SandboxName),

    /// Processes survived SIGKILL.
    #[error(
        "{} process(es) of sandbox {name} still there {waited:?} after SIGKILL (pids {pids:?}); \
         they hang in the kernel: the sandbox stays and the next sweep tries again", pids.len()
    )]
    ProcessesLeft {
        /// The sandbox.
        name: SandboxName,
        /// Who is left.
        pids: Vec<u32>,
        /// How long was waited.
        waited: Duration,
    },

    /// A helper thread could not be started or died.
    #[error("the thread that enters a namespace {0}")]
    Thread(String),
}

impl Error {
    /// A constructor for `map_err`: `cannot {action} {path}: …`.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { action, path: path.as_ref().to_owned(), source: source.into() }
    }
}

/// What to do about the usual refusals of the kernel.
fn remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN (`sluice doctor` says what is missing)"
        }
        Some(libc::ENOSPC) => "; see user.max_net_namespaces and the space of the state directory",
        Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files (LimitNOFILE)",
        _ => "",
    }
}
