//! The workload's system-call filter: default allow, with the refusals of one table (`table.rs`).
//!
//! A row names a call, a test of its arguments, the errno the caller gets, and why. `compile.rs`
//! turns the rows into BPF by `seccompiler`: a program knows one refusal, so there is one for each errno,
//! and a hand-written one for calls newer than the table; laid behind one another they are one
//! program. Calls whose answer does not depend on arguments are cached by the kernel (since 5.11)
//! and cost next to nothing.
//!
//! A 32-bit (i386) entry kills the process with SIGSYS: its call numbers mean other calls. The x32
//! entry is beyond the highest known call and answers ENOSYS.

#[cfg(test)]
pub(crate) mod architectures;
#[cfg(test)]
mod cases;
mod compile;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use compile::condition;
pub use compile::{FilterError, Programs, compile};
pub use table::{Arg, HIGHEST_KNOWN_CALL, On, Op, ROWS, Row};

/// Which netlink sockets a workload may open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Netlink {
    /// `NETLINK_ROUTE` alone: `getifaddrs`, `os.networkInterfaces()`, `ip addr` read through it.
    /// Changing anything needs `CAP_NET_ADMIN`, which no workload has.
    #[default]
    Route,
    /// None at all.
    Deny,
    /// Every protocol the kernel has.
    All,
}

/// The knobs that switch rows of the table on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterOptions {
    /// Which netlink sockets may be opened.
    pub netlink: Netlink,
    /// Whether `memfd_create` may make executable memory files. Off, it needs `MFD_NOEXEC_SEAL`.
    pub memfd_exec: bool,
    /// Whether processes of the sandbox may trace one another. Only safe where a pid namespace or a
    /// Landlock domain keeps tracing inside; the launch turns it off otherwise.
    pub tracing: bool,
}

impl Default for FilterOptions {
    fn default() -> Self {
        Self { netlink: Netlink::Route, memfd_exec: true, tracing: true }
    }
}

impl FilterOptions {
    /// Whether rows under this condition are part of the filter.
    pub fn includes(&self, on: On) -> bool {
        match on {
            On::Always => true,
            On::NetlinkRoute => self.netlink == Netlink::Route,
            On::NetlinkDeny => self.netlink == Netlink::Deny,
            On::MemfdExecOff => !self.memfd_exec,
            On::TracingOff => !self.tracing,
        }
    }
}
