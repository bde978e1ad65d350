//! Every form of the kernel's packet log line, read from `kmsg.txt`; and what is not quite such a line.

use std::fs;

use proptest::prelude::*;
use proptest::sample::Index;
use sluice_bypass::{Attempt, Interface, Line, kmsg};

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kmsg.txt");

fn table() -> String {
    fs::read_to_string(TABLE).expect(TABLE)
}

/// The records of the table, each with what it is to be read as.
fn rows(table: &str) -> Vec<(&str, &str)> {
    let lines: Vec<_> = table.lines().filter(|line| !line.starts_with('#')).collect();
    lines.chunks(2).map(|pair| (pair[0], pair.get(1).map_or("", |expected| expected.trim()))).collect()
}

fn summary(record: &str) -> String {
    let Some((record, line)) = kmsg::parse(record.as_bytes()) else { return "no record".into() };
    match line {
        Line::Attempt(attempt) => attempt_summary(&attempt),
        Line::Foreign => format!("foreign, facility {}", record.facility),
        Line::Forged => format!("forged, facility {}", record.facility),
        Line::Malformed(why) => format!("malformed: {why}"),
    }
}

#[allow(clippy::format_push_string)] // a test may allocate
fn attempt_summary(attempt: &Attempt<'_>) -> String {
    let port = |port: Option<u16>| port.map_or_else(String::new, |port| format!(" {port}"));
    let mut text = format!(
        "#{} {}: {} {}{} -> {}{}",
        attempt.seq,
        attempt.tag.name,
        attempt.proto,
        attempt.src,
        port(attempt.src_port),
        attempt.dst,
        port(attempt.dst_port),
    );
    for (what, interface) in [("in", attempt.in_interface), ("out", attempt.out_interface)] {
        match interface {
            Interface::Name("lo") | Interface::None => {}
            Interface::Name(name) => text += &format!(" {what} {name}"),
            Interface::Index(index) => text += &format!(" {what} {index}"),
        }
    }
    if let Some(icmp) = attempt.icmp {
        text += &format!(" type {} code {}", icmp.kind, icmp.code);
    }
    if attempt.tcp.0 != 0 {
        text += &format!(" flags {:#04x}", attempt.tcp.0);
    }
    if attempt.by_kernel() {
        text += " by kernel";
    }
    if attempt.later_fragment {
        text += " fragment";
    }
    for (what, number) in
        [("bytes", attempt.packet_bytes), ("uid", attempt.uid), ("gid", attempt.gid), ("mark", attempt.mark)]
    {
        if let Some(number) = number {
            text += &format!(" {what} {number}");
        }
    }
    text
}

#[test]
fn every_form_is_read_as_the_table_says() {
    let table = table();
    let rows = rows(&table);
    assert!(rows.len() > 60, "{TABLE} has only {} rows", rows.len());
    for (record, expected) in rows {
        assert_eq!(summary(record), expected, "\n{record}");
    }
}

#[test]
fn a_line_cut_anywhere_never_names_another_destination() {
    let table = table();
    for (record, _) in rows(&table) {
        let Some((_, Line::Attempt(whole))) = kmsg::parse(record.as_bytes()) else { continue };
        // Behind the word DST=, which a cut inside would change.
        let from = record.find(" LEN=").unwrap();
        for end in from..record.len() {
            match kmsg::parse(&record.as_bytes()[..end]) {
                Some((_, Line::Attempt(cut))) => assert_eq!(cut.dst, whole.dst, "{}", &record[..end]),
                Some((_, Line::Malformed(_))) => {}
                other => panic!("{other:?} for {}", &record[..end]),
            }
        }
    }
}

#[test]
fn words_of_later_kernels_are_passed_over() {
    let table = table();
    for (record, _) in rows(&table) {
        let Some((_, Line::Attempt(before))) = kmsg::parse(record.as_bytes()) else { continue };
        let with_more = record.replacen(" SRC=", " NEWKEY=77 NEWWORD SRC=", 1) + " ANOTHER=x (y) z";
        let Some((_, Line::Attempt(after))) = kmsg::parse(with_more.as_bytes()) else {
            panic!("{with_more}");
        };
        assert_eq!(before, after);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_lines_never_panic_and_never_speak_for_the_kernel(
        row in any::<Index>(),
        edits in proptest::collection::vec((any::<Index>(), any::<Option<u8>>(), any::<bool>()), 0..12),
        facility in 1_u32..24,
    ) {
        let table = table();
        let rows = rows(&table);
        let mut bytes = row.get(&rows).0.as_bytes().to_vec();
        for (at, byte, insert) in edits {
            let at = at.index(bytes.len().max(1));
            match byte {
                Some(byte) if insert => bytes.insert(at.min(bytes.len()), byte),
                Some(byte) if at < bytes.len() => bytes[at] = byte,
                None if at < bytes.len() => { bytes.remove(at); }
                _ => {}
            }
        }
        let _no_panic = kmsg::parse(&bytes);
        // The same bytes behind a head of another facility are never an attempt.
        let text = bytes.iter().position(|&byte| byte == b';').map_or(&bytes[..], |at| &bytes[at + 1..]);
        let mut forged = format!("{},1,1,-;", facility << 3 | 4).into_bytes();
        forged.extend_from_slice(text);
        let (_, line) = kmsg::parse(&forged).unwrap();
        prop_assert!(matches!(line, Line::Forged | Line::Foreign));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = kmsg::parse(&bytes);
        let mut ours = b"4,1,1,-;sluice[a:0123456789abcdef] ".to_vec();
        ours.extend(&bytes);
        let (_, line) = kmsg::parse(&ours).unwrap();
        prop_assert!(matches!(line, Line::Attempt(_) | Line::Malformed(_)));
    }
}
