//! Reads perf records: who connects, which connection it became, who executes another program. Pure.
//!
//! Layouts are those of `linux/perf_event.h` for events opened as `ring.rs` does: a sample is thread, time and raw
//! bytes; every other record ends with thread and time. Numbers are in the machine's order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::table::Tuple;
use super::format::{Field, Layout};

/// `PERF_RECORD_LOST`
const LOST: u32 = 2;
/// `PERF_RECORD_COMM`
const COMM: u32 = 3;
/// `PERF_RECORD_FORK`
const FORK: u32 = 7;
/// `PERF_RECORD_SAMPLE`
const SAMPLE: u32 = 9;
/// `PERF_RECORD_LOST_SAMPLES`
const LOST_SAMPLES: u32 = 13;
/// `PERF_RECORD_MISC_COMM_EXEC`: the name changed because of an exec.
const BY_EXEC: u16 = 1 << 13;

const HEADER_BYTES: usize = 8;
/// `TCP_SYN_SENT`
const SYN_SENT: i32 = 2;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// A thread calls connect. The socket's port may not be chosen yet.
    Connecting {
        /// CLOCK_MONOTONIC, in nanoseconds; of every record.
        time_ns: u64,
        /// Its process, in the pid namespace of whoever opened the event; 0 if it has no number there.
        pid: u32,
        /// The socket, by its address in the kernel.
        socket: u64,
    },
    /// The connect has been answered, or given up.
    Settled {
        time_ns: u64,
        socket: u64,
        /// Its ends; none if it never got a port.
        tuple: Option<Tuple>,
    },
    /// A process executes another program: what was known of it holds no more.
    Executed { time_ns: u64, pid: u32 },
    /// A process starts, maybe under a number that another had.
    Started { time_ns: u64, pid: u32 },
    /// Records were turned away because the ring was full.
    Lost { time_ns: u64, records: u64 },
}

impl Record {
    /// When it was made.
    pub(super) const fn time_ns(&self) -> u64 {
        match *self {
            Self::Connecting { time_ns, .. }
            | Self::Settled { time_ns, .. }
            | Self::Executed { time_ns, .. }
            | Self::Started { time_ns, .. }
            | Self::Lost { time_ns, .. } => time_ns,
        }
    }
}

/// Hands on the records of a ring, in the order they are there. False if they could not all be understood: then what is
/// missing is unknown.
#[must_use]
pub(super) fn each(mut bytes: &[u8], layout: &Layout, mut tell: impl FnMut(Record)) -> bool {
    while !bytes.is_empty() {
        let Ok((kind, misc, size)) = header(bytes) else { return false };
        let Some((record, rest)) = bytes.split_at_checked(size) else { return false };
        let Some(body) = record.get(HEADER_BYTES..) else { return false };
        match read(kind, misc, body, layout) {
            Ok(Some(record)) => tell(record),
            Ok(None) => {}
            Err(Malformed) => return false,
        }
        bytes = rest;
    }
    true
}

/// Shorter than its fields.
#[derive(Debug)]
struct Malformed;

fn header(bytes: &[u8]) -> Result<(u32, u16, usize), Malformed> {
    let kind = u32::from_ne_bytes(array(bytes, 0)?);
    let misc = u16::from_ne_bytes(array(bytes, 4)?);
    let size = usize::from(u16::from_ne_bytes(array(bytes, 6)?));
    if size < HEADER_BYTES { Err(Malformed) } else { Ok((kind, misc, size)) }
}

/// None: a record of no interest.
fn read(kind: u32, misc: u16, body: &[u8], layout: &Layout) -> Result<Option<Record>, Malformed> {
    match kind {
        SAMPLE => sample(body, layout),
        COMM if misc & BY_EXEC != 0 => {
            Ok(Some(Record::Executed { time_ns: time_at_end(body)?, pid: word(body, 0)? }))
        }
        // pid, parent, tid, parent's tid: a new thread has its process's pid and another tid.
        FORK => {
            let (pid, tid) = (word(body, 0)?, word(body, 8)?);
            Ok((pid == tid).then_some(Record::Started { time_ns: time_at_end(body)?, pid }))
        }
        LOST => Ok(Some(Record::Lost { time_ns: time_at_end(body)?, records: long(body, 8)? })),
        LOST_SAMPLES => Ok(Some(Record::Lost { time_ns: time_at_end(body)?, records: long(body, 0)? })),
        _ => Ok(None),
    }
}

fn sample(body: &[u8], layout: &Layout) -> Result<Option<Record>, Malformed> {
    let (pid, time_ns) = (word(body, 0)?, long(body, 8)?);
    let length = word(body, 16)? as usize;
    let raw = body.get(20..).and_then(|raw| raw.get(..length)).ok_or(Malformed)?;
    let socket = u64::from_ne_bytes(raw_array(raw, layout.socket)?);
    let old_state = i32::from_ne_bytes(raw_array(raw, layout.old_state)?);
    let new_state = i32::from_ne_bytes(raw_array(raw, layout.new_state)?);
    Ok(match (old_state, new_state) {
        (SYN_SENT, _) => Some(Record::Settled { time_ns, socket, tuple: tuple(raw, layout)? }),
        (_, SYN_SENT) => Some(Record::Connecting { time_ns, pid, socket }),
        _ => None,
    })
}

/// None: no port, or a family that has none.
fn tuple(raw: &[u8], layout: &Layout) -> Result<Option<Tuple>, Malformed> {
    let port = |field| raw_array(raw, field).map(u16::from_ne_bytes);
    let v4 = |field| raw_array::<4>(raw, field).map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
    let v6 = |field| raw_array::<16>(raw, field).map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
    let family = u16::from_ne_bytes(raw_array(raw, layout.family)?);
    let (source, target) = match i32::from(family) {
        libc::AF_INET => (v4(layout.source_v4)?, v4(layout.target_v4)?),
        libc::AF_INET6 => (v6(layout.source_v6)?, v6(layout.target_v6)?),
        _ => return Ok(None),
    };
    let (from, to) = (port(layout.source_port)?, port(layout.target_port)?);
    Ok((from != 0).then(|| Tuple::new(SocketAddr::new(source, from), SocketAddr::new(target, to))))
}

fn time_at_end(body: &[u8]) -> Result<u64, Malformed> {
    long(body, body.len().checked_sub(8).ok_or(Malformed)?)
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn long(bytes: &[u8], at: usize) -> Result<u64, Malformed> {
    array(bytes, at).map(u64::from_ne_bytes)
}

fn raw_array<const N: usize>(raw: &[u8], field: Field) -> Result<[u8; N], Malformed> {
    array(raw, field.at)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Malformed> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::format;
    use super::*;

    fn layout() -> Layout {
        format::parse(format::tests::FORMAT).unwrap()
    }

    fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
        let size = (HEADER_BYTES + body.len()) as u16;
        [&kind.to_ne_bytes()[..], &misc.to_ne_bytes(), &size.to_ne_bytes(), body].concat()
    }

    fn change(socket: u64, states: (i32, i32), ports: (u16, u16), family: u16) -> Vec<u8> {
        let mut raw = vec![0; 76];
        raw[8..16].copy_from_slice(&socket.to_ne_bytes());
        raw[16..20].copy_from_slice(&states.0.to_ne_bytes());
        raw[20..24].copy_from_slice(&states.1.to_ne_bytes());
        raw[24..26].copy_from_slice(&ports.0.to_ne_bytes());
        raw[26..28].copy_from_slice(&ports.1.to_ne_bytes());
        raw[28..30].copy_from_slice(&family.to_ne_bytes());
        raw[32..36].copy_from_slice(&[10, 0, 0, 1]);
        raw[36..40].copy_from_slice(&[10, 0, 0, 2]);
        raw[40..56].copy_from_slice(&"::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
        raw[56..72].copy_from_slice(&"::ffff:10.0.0.2".parse::<Ipv6Addr>().unwrap().octets());
        let head = [7_u32.to_ne_bytes(), 8_u32.to_ne_bytes()].concat();
        let body = [&head[..], &99_u64.to_ne_bytes(), &76_u32.to_ne_bytes(), &raw].concat();
        record(SAMPLE, 0, &body)
    }

    fn all(bytes: &[u8]) -> Vec<Record> {
        let mut records = Vec::new();
        assert!(each(bytes, &layout(), |record| records.push(record)));
        records
    }

    #[test]
    fn a_connect_is_its_beginning_and_its_end() {
        let tuple = Tuple::new("10.0.0.1:5000".parse().unwrap(), "10.0.0.2:3128".parse().unwrap());
        for family in [libc::AF_INET as u16, libc::AF_INET6 as u16] {
            let bytes =
                [change(1, (7, 2), (0, 3128), family), change(1, (2, 1), (5000, 3128), family)].concat();
            assert_eq!(
                all(&bytes),
                [
                    Record::Connecting { time_ns: 99, pid: 7, socket: 1 },
                    Record::Settled { time_ns: 99, socket: 1, tuple: Some(tuple) }
                ]
            );
        }
    }

    #[test]
    fn a_connect_that_got_no_port_has_no_ends() {
        assert_eq!(
            all(&change(1, (2, 7), (0, 80), 2)),
            [Record::Settled { time_ns: 99, socket: 1, tuple: None }]
        );
    }

    #[test]
    fn execs_and_new_processes_are_told_from_names_and_threads() {
        let end = [0_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat();
        let comm =
            [&[7_u32, 7].map(u32::to_ne_bytes).concat()[..], b"curl\0\0\0\0", &end, &5_u64.to_ne_bytes()]
                .concat();
        assert_eq!(all(&record(COMM, BY_EXEC, &comm)), [Record::Executed { time_ns: 5, pid: 7 }]);
        assert!(all(&record(COMM, 0, &comm)).is_empty());
        let fork = |pid: u32, tid: u32| {
            let words = [pid, 1, tid, 1].map(u32::to_ne_bytes).concat();
            record(FORK, 0, &[&words[..], &4_u64.to_ne_bytes(), &end, &5_u64.to_ne_bytes()].concat())
        };
        assert_eq!(all(&fork(8, 8)), [Record::Started { time_ns: 5, pid: 8 }]);
        assert!(all(&fork(7, 8)).is_empty());
    }

    #[test]
    fn a_loss_is_counted() {
        let body = [3_u64.to_ne_bytes(), 12_u64.to_ne_bytes(), [0; 8], 5_u64.to_ne_bytes()].concat();
        assert_eq!(all(&record(LOST, 0, &body)), [Record::Lost { time_ns: 5, records: 12 }]);
    }

    #[test]
    fn what_is_cut_short_is_no_record() {
        let whole = change(1, (2, 1), (5000, 3128), 2);
        for length in 1..whole.len() {
            assert!(!each(&whole[..length], &layout(), |record| panic!("{record:?}")), "{length}");
        }
        // A record that claims to be longer than its fields.
        let mut bytes = whole.clone();
        bytes[24..28].copy_from_slice(&77_u32.to_ne_bytes());
        assert!(!each(&bytes, &layout(), |record| panic!("{record:?}")));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = each(&bytes, &layout(), |_| {});
        }

        #[test]
        fn a_true_record_with_any_byte_changed_holds(
            at in 0_usize..104,
            to in any::<u8>(),
            states in (0_i32..14, 0_i32..14),
        ) {
            let mut bytes = change(9, states, (1, 2), 2);
            let at = at % bytes.len();
            bytes[at] = to;
            let mut seen = 0;
            let _ = each(&bytes, &layout(), |_| seen += 1);
            prop_assert!(seen <= bytes.len() / HEADER_BYTES);
        }
    }
}
