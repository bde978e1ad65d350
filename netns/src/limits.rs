//! Every bound of this crate, with its unit and its reason.

use std::time::Duration;

/// Longest sandbox name, in bytes. The log prefix carries name and token and the kernel takes 127 bytes of it.
pub const NAME_BYTES_MAX: usize = 40;

/// Pending connections per listening socket. The kernel caps it at `net.core.somaxconn` (4096 by default), so
/// more would be an empty promise; fewer makes a burst of a busy sandbox wait for SYN retransmissions (1 s).
pub const LISTEN_BACKLOG: i32 = 4096;

/// Most listening sockets one sandbox may have: one per worker core, and no machine we know has more cores.
pub const LISTENERS_MAX: usize = 1024;

/// How long [`crate::Sandbox::destroy`] waits for killed processes to be gone. Death by SIGKILL takes
/// microseconds; seconds mean a process stuck in the kernel, which no waiting cures.
pub const KILL_WAIT: Duration = Duration::from_secs(5);

/// First and longest pause between two looks at processes that were killed.
pub const KILL_POLL_MIN: Duration = Duration::from_micros(200);
/// See [`KILL_POLL_MIN`].
pub const KILL_POLL_MAX: Duration = Duration::from_millis(20);

/// Lines a second that each protocol of one sandbox may write to the kernel log (refusing and counting are never
/// limited). The log ring of the whole host holds about 500 such lines: more from one sandbox push out the others'.
pub const LOG_LINES_PER_SECOND: u32 = 200;

/// Lines a protocol may write at once before [`LOG_LINES_PER_SECOND`] holds: a build tool's parallel downloads.
pub const LOG_LINES_BURST: u32 = 400;

/// Longest log prefix nft accepts, in bytes (`NF_LOG_PREFIXLEN` in the kernel, less its final NUL).
pub const LOG_PREFIX_BYTES_MAX: usize = 127;

/// Longest record of a sandbox read back from the state directory, in bytes. Ours are about 400.
pub const RECORD_BYTES_MAX: u64 = 16 * 1024;

/// How long the lock of an owner that is dead may still be held by somebody who looks into its descriptors.
pub const LINGERING_LOCK_MAX: Duration = Duration::from_millis(500);

/// How often it is tried again meanwhile.
pub const LINGERING_LOCK_POLL: Duration = Duration::from_millis(2);
