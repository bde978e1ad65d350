use super::super::notes::{Call, Process};
use super::*;
use std::path::Path;

const MS: u64 = 1_000_000;

fn note(pid: u32, time_ns: u64, src_port: Option<u16>, dst: &str) -> Note {
    let process = Process {
        pid,
        start_time: 1,
        exe: Path::new("/bin/x").into(),
        comm: "x".into(),
        uid: 0,
        ancestors: Arc::new([]),
        args: Arc::new([]),
        proxy_variable: None,
    };
    Note {
        time_ns,
        tid: pid,
        process: Arc::new(process),
        proto: Proto::Tcp,
        src_port,
        dst: dst.parse().unwrap(),
        call: Call::Connect,
    }
}

fn line(src_port: u16, dst: &str, logged_ns: u64) -> Refused {
    Refused { proto: Proto::Tcp, src_port: Some(src_port), dst: dst.parse().unwrap(), logged_ns }
}

fn index(notes: impl IntoIterator<Item = Note>) -> Index {
    let mut index = Index::new(100);
    notes.into_iter().for_each(|note| index.add(note));
    index
}

fn pid(pick: Option<Pick>) -> Option<u32> {
    pick.map(|pick| pick.note.process.pid)
}

fn untold(proto: Proto, count: u64) -> Untold {
    Untold { proto, count, after_ns: 0, before_ns: u64::MAX, proxy: "10.200.0.1".parse().unwrap() }
}

#[test]
fn one_line_takes_one_tcp_note() {
    let mut index = index([note(7, MS, Some(40_000), "1.2.3.4:80")]);
    let found = index.pick(&line(40_000, "1.2.3.4:80", 2 * MS)).unwrap();
    assert!(found.exact);
    assert_eq!(pid(index.pick(&line(40_000, "1.2.3.4:80", 2 * MS))), None);
}

#[test]
fn a_port_used_again_joins_by_time_also_where_lines_are_missing() {
    let at = |pid, ms| note(pid, ms * MS, Some(40_000), "1.2.3.4:80");
    // The first one's line was never written.
    let mut index = index([at(1, 100), at(2, 500), at(3, 900)]);
    assert_eq!(pid(index.pick(&line(40_000, "1.2.3.4:80", 501 * MS))), Some(2));
    assert_eq!(pid(index.pick(&line(40_000, "1.2.3.4:80", 901 * MS))), Some(3));
    assert_eq!(index.latest_tcp(40_000, "1.2.3.4:80".parse().unwrap()).unwrap().process.pid, 1);
}

#[test]
fn a_udp_connect_answers_for_every_datagram_and_a_sendto_for_one() {
    let udp = |pid, call| Note { proto: Proto::Udp, call, ..note(pid, MS, Some(5_000), "8.8.8.8:53") };
    let datagram = Refused { proto: Proto::Udp, ..line(5_000, "8.8.8.8:53", MS) };
    let mut connected = index([udp(3, Call::Connect)]);
    (0..3).for_each(|_| assert_eq!(pid(connected.pick(&datagram)), Some(3)));
    assert_eq!(connected.settle(&untold(Proto::Udp, 9), |_| ()), 0, "how many it sent is not noted");
    let mut sent = index([udp(3, Call::SendTo), udp(3, Call::SendTo)]);
    assert_eq!(pid(sent.pick(&datagram)), Some(3));
    assert_eq!(sent.settle(&untold(Proto::Udp, 9), |_| ()), 1);
    // `sendmsg` from the same socket is not noted.
    assert_eq!(pid(sent.pick(&datagram)), Some(3));
}

#[test]
fn ping_joins_by_its_identifier_whatever_port_the_caller_named() {
    let ping = Note { proto: Proto::Icmp, call: Call::SendTo, ..note(3, MS, Some(77), "9.9.9.9:0") };
    let mut index = index([ping]);
    let line = |id| Refused {
        proto: Proto::Icmp,
        src_port: Some(id),
        dst: "9.9.9.9:0".parse().unwrap(),
        logged_ns: MS,
    };
    assert_eq!(pid(index.pick(&line(78))), None);
    assert_eq!(pid(index.pick(&line(77))), Some(3));
}

#[test]
fn a_note_without_a_port_joins_by_destination_and_order_once() {
    let mut index = index([note(1, MS, None, "1.2.3.4:80"), note(2, 2 * MS, None, "1.2.3.4:80")]);
    for expected in [Some(1), Some(2), None] {
        let found = index.pick(&line(999, "1.2.3.4:80", 3 * MS));
        assert!(found.as_ref().is_none_or(|found| !found.exact));
        assert_eq!(pid(found), expected);
    }
}

#[test]
fn an_old_note_without_a_port_joins_nothing() {
    let mut index = index([note(1, MS, None, "1.2.3.4:80")]);
    let later = 2 * MS + PORTLESS_NOTE_AGE_MS_MAX * 1_000_000;
    assert_eq!(pid(index.pick(&line(999, "1.2.3.4:80", later))), None);
}

#[test]
fn what_left_no_line_is_settled_from_the_notes_that_no_line_claimed() {
    let notes = (0..6).map(|n| note(n, u64::from(n) * MS, Some(1_000 + n as u16), "1.2.3.4:80"));
    let mut index = index(notes.chain([note(9, 4 * MS, Some(3_000), "10.200.0.1:3128")]));
    assert_eq!(pid(index.pick(&line(1_002, "1.2.3.4:80", 3 * MS))), Some(2));
    let mut pids = Vec::new();
    let lost = Untold { after_ns: MS, before_ns: 5 * MS, ..untold(Proto::Tcp, 100) };
    assert_eq!(index.settle(&lost, |note| pids.push(note.process.pid)), 3);
    assert_eq!(pids, [1, 3, 4], "in time, unclaimed, and not towards the proxy");
    assert_eq!(index.settle(&lost, |_| ()), 0, "each once");
    assert_eq!(index.settle(&untold(Proto::Tcp, 1), |note| pids.push(note.process.pid)), 1);
    assert_eq!(pids, [1, 3, 4, 0], "no more than asked for");
    // Should a line come after all, it is still named.
    assert_eq!(pid(index.pick(&line(1_003, "1.2.3.4:80", 9 * MS))), Some(3));
}

#[test]
fn a_line_prefers_a_note_that_nothing_has_told_yet() {
    let mut index = index([note(1, MS, Some(9), "1.2.3.4:80")]);
    assert_eq!(index.settle(&untold(Proto::Tcp, 1), |_| ()), 1);
    index.add(note(2, 700 * MS, Some(9), "1.2.3.4:80"));
    assert_eq!(pid(index.pick(&line(9, "1.2.3.4:80", 701 * MS))), Some(2));
}

#[test]
fn a_full_index_drops_the_oldest_and_counts_only_unseen_ones() {
    let mut index = Index::new(2);
    index.add(note(1, 1, Some(1), "1.2.3.4:80"));
    index.latest_tcp(1, "1.2.3.4:80".parse().unwrap()).unwrap();
    index.add(note(2, 2, Some(2), "1.2.3.4:80"));
    index.add(note(3, 3, Some(3), "1.2.3.4:80"));
    assert_eq!((index.len(), index.dropped_unseen()), (2, 0));
    index.add(note(4, 4, None, "1.2.3.4:80"));
    assert_eq!((index.len(), index.dropped_unseen()), (2, 1));
    assert!(index.latest_tcp(2, "1.2.3.4:80".parse().unwrap()).is_none());
    assert!(index.latest_tcp(3, "1.2.3.4:80".parse().unwrap()).is_some());
    index.add(note(5, 5, None, "1.2.3.4:80"));
    index.add(note(6, 6, None, "1.2.3.4:80"));
    assert_eq!(pid(index.pick(&line(1, "1.2.3.4:80", MS))), Some(5));
}

#[test]
fn thousands_of_notes_of_one_port_are_dropped_one_by_one_without_looking_at_all_the_others() {
    const KEPT: usize = 16_384;
    let mut index = Index::new(KEPT);
    let at = |number: u64| note(u32::try_from(number).unwrap(), number * MS, Some(40_000), "1.2.3.4:80");
    let began = std::time::Instant::now();
    (0..100_000).for_each(|number| index.add(at(number)));
    // To look at all the others each time takes two hundred times as long as the rest.
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    assert_eq!(index.len(), KEPT);
    // One in the middle is claimed, and those around it are still found.
    assert_eq!(pid(index.pick(&line(40_000, "1.2.3.4:80", 99_990 * MS))), Some(99_980));
    for _ in 0..3 {
        index.add(at(100_000));
    }
    assert_eq!(pid(index.pick(&line(40_000, "1.2.3.4:80", 99_991 * MS))), Some(99_981));
}
