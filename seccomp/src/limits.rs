//! Every bound of this crate: its unit and its reason.

/// Notes kept for the two readers. A note is used within milliseconds (by the proxy when it accepts, by the bypass
/// core when the log line arrives), or within a few tenths of a second where its line is missing; 16,384 cover half a
/// second at the rate one witness thread can answer, at about 200 bytes each: 3 MiB for a sandbox that floods.
pub const NOTES_MAX: usize = 16_384;

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

/// Notes a ring holds before the oldest is written over: half a second of the highest flood one witness can note
/// (30,000 a second), of 64 bytes each. The bypass core reads it many times in that time. A page is only taken once
/// it was used, so a workload that connects seldom has a ring of a few pages.
pub const RING_NOTES: usize = 16_384;

/// Words of text in a ring, for what is said of processes: 512 KiB, some 2,000 processes, of which the newer half is
/// always readable.
pub const RING_TEXT_WORDS: usize = 65_536;

/// Rings of one sandbox: one for each command that runs in it at a time. Each is at most 1.5 MiB, of its launcher's.
pub const RINGS_MAX: usize = 256;

/// Bytes a ring says about one process: a path of the longest kind (`PATH_MAX`) and then as many arguments and
/// ancestors as fit.
pub const PROCESS_RECORD_BYTES_MAX: usize = 8_192;

/// Processes of one ring that its reader keeps decoded.
pub const PROCESSES_READ_MAX: usize = 1_024;

/// Words of a command line that are noted, for hints (`--noproxy`).
pub const ARGS_MAX: usize = 32;

/// Bytes of a command line that are read for them.
pub const ARGS_BYTES_MAX: usize = 2_048;

/// Bytes of an environment that are searched for a proxy variable. Of larger ones it is not known.
pub const ENVIRONMENT_BYTES_MAX: usize = 256 * 1_024;

/// Nanoseconds before a log line in which its note was surely taken: the line follows the note by some 50 µs, and its
/// stamp is right to within a timer tick even while the reader of the log still learns its clock.
pub const JOIN_NEAR_NS: u64 = 10_000_000;

/// Nanoseconds by which a note may seem to be later than its line: the two clocks are matched to some 100 µs.
pub const JOIN_SLACK_NS: u64 = 1_000_000;

/// Notes that are looked at for one line: those of one port, or those without one.
pub const JOIN_SCAN: usize = 4_096;
