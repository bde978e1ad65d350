//! Every bound of this crate, with its unit and its reason.

use std::time::Duration;

/// Bytes of one `/dev/kmsg` read. The kernel never prints a longer record (`PRINTK_MESSAGE_MAX` is 2,048 since
/// Linux 6.5, 8,192 before) and fails the read with EINVAL when the buffer is too small.
pub const KMSG_RECORD_BYTES: usize = 8192;

/// Records read from one source before the others and the commands get a turn. At 2 µs a record that is half a
/// millisecond, so a flood on one source delays the rest by less than the 1 ms promised for an event.
pub const RECORDS_PER_TURN: usize = 256;

/// How often a [`crate::Sink`] is called at least when nothing happens, so that it can end folding windows.
pub const TICK: Duration = Duration::from_millis(250);

/// How long [`crate::fold::Fold`] collects repetitions before it reports them.
pub const FOLD_WINDOW: Duration = Duration::from_secs(5);

/// Distinct (process, destination, port, protocol) that one sandbox's [`crate::fold::Fold`] tells apart at a
/// time. Worst case about 100 bytes each: 50 KiB a sandbox. A port scan has more; the rest is told by process and
/// protocol, and of those too no more are told apart.
pub const FOLD_KEYS: usize = 512;

/// Longest sandbox name in a [`crate::Tag`], in bytes: the prefix of an nft log rule holds 127.
pub const TAG_NAME_BYTES: usize = 40;

/// Bytes of one NFLOG netlink read: one datagram holds at most this many (`NFULNL_NLBUFSIZ_DEFAULT` is a page,
/// and we ask the kernel for no more than the packet's headers).
pub const NFLOG_DATAGRAM_BYTES: usize = 16 * 1024;

/// Bytes of packet NFLOG copies to us: an IPv6 header, a few extension headers and a TCP header.
pub const NFLOG_COPY_BYTES: u32 = 160;

/// Receive buffer of one NFLOG socket in bytes; about 8,000 messages, a quarter of a second of the highest flood
/// one sandbox can produce.
pub const NFLOG_SOCKET_BYTES: usize = 4 << 20;

/// Turns that a socket gets when it is given up: as many as its full buffer needs at the least message size.
pub const NFLOG_LAST_TURNS: usize = NFLOG_SOCKET_BYTES / 256 / RECORDS_PER_TURN;

/// After a nudge the monitor looks at once, then after this time, and then after twice the time before. A log
/// line follows the witness's note by some 50 µs. One look costs about 15 µs of CPU, most of it the wake-up.
pub const ALERT_FIRST: Duration = Duration::from_micros(50);

/// The longest time between two such looks; with the shorter ones before, the looks end after 6.4 ms: the kernel
/// itself wakes the monitor at the next timer tick (4 ms at HZ=250, 10 ms at HZ=100).
pub const ALERT_LAST: Duration = Duration::from_micros(3200);

/// How long attempts gather after a look that found some. Woken for each, the monitor would spend twice as much on waking
/// up as on its work in a flood; woken by timer ticks alone (every 4 ms), it would find half the ring written over at
/// 100,000 lines a second. An event is promised within 1 ms.
pub const ALERT_REST: Duration = Duration::from_micros(500);

/// Priority (nice value) of the monitor's thread. The log's ring holds some 10 ms of a flood; on a host whose
/// cores are all busy, a thread of ordinary priority may wait longer than that for its turn.
pub const NICE: i32 = -15;

/// Old records that a start skips: more than any log holds (`log_buf_len` is 16 MiB at most by default), so that a flood
/// that never pauses cannot keep the monitor from starting.
pub const OLD_RECORDS_MAX: usize = 200_000;

/// Nudges without an attempt found, from which on the looks they ask for gather too ([`ALERT_REST`]): in a flood whose lines
/// the fence's limit suppresses nearly all looks find nothing. A line that comes all the same is seen that much later.
pub const NUDGES_IN_VAIN_MAX: u32 = 8;
