//! Every bound of this crate: its unit and its reason.

/// Notes kept for the two readers. A note is used within milliseconds (by the proxy when it accepts,
/// by the bypass core when the log line arrives); 8,192 cover a burst of a second at the rate one
/// witness thread can answer, at about 150 bytes each: 1.2 MiB per sandbox.
pub const NOTES_MAX: usize = 8_192;

/// Milliseconds after which a note without a source port no longer joins by order. The log line of a
/// refused connect is read within milliseconds; an older note belongs to a connect that went elsewhere.
pub const PORTLESS_NOTE_AGE_MS_MAX: u64 = 10_000;

/// Threads whose pidfd the witness keeps open. Most workloads connect from a few threads; one slot is
/// one descriptor of the launcher.
pub const THREADS_CACHED_MAX: usize = 128;

/// Processes whose identity (exe, start time, ancestors) the witness keeps. Each holds two descriptors.
pub const PROCESSES_CACHED_MAX: usize = 128;

/// Parents followed upwards. Deeper chains are cut there; real ones (shell, make, npm, node) are below ten.
pub const ANCESTORS_MAX: usize = 16;

/// Milliseconds without binding after the workload's namespace ran out of free ports: the kernel walks
/// its whole port range before it says so, which must not happen for each connect of a flood.
pub const PORTS_EXHAUSTED_PAUSE_MS: u64 = 1_000;

/// Bytes of a socket address that matter: `struct sockaddr_in6`.
pub const SOCKADDR_BYTES_MAX: usize = 28;

/// Supplementary groups taken by the kernel (`NGROUPS_MAX`).
pub const GROUPS_MAX: usize = 65_536;

/// Bytes of a link target of `/proc/<pid>/exe` (`PATH_MAX`).
pub const PATH_BYTES_MAX: usize = 4_096;
