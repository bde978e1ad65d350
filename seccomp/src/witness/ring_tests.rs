use super::super::notes::{Notes, Refused};
use super::*;
use std::os::fd::AsFd;
use std::path::Path;

fn process(pid: u32) -> Arc<Process> {
    Arc::new(Process {
        pid,
        start_time: 1,
        exe: Path::new("/bin/x").into(),
        comm: "x".into(),
        uid: 5,
        ancestors: Arc::new([Path::new("/bin/sh").into()]),
        args: Arc::new(["x".into(), "--noproxy".into()]),
        proxy_variable: Some(super::super::notes::ProxyVariable::Absent),
    })
}

fn note(process: &Arc<Process>, number: u64) -> Note {
    Note {
        time_ns: number,
        tid: 11,
        process: Arc::clone(process),
        proto: Proto::Udp,
        src_port: Some(number as u16),
        dst: "[2001:db8::1]:53".parse().unwrap(),
        call: Call::SendTo,
    }
}

/// Everything a visit gives: the notes' times, and what was missed.
fn visit(reader: &mut NoteReader) -> (Vec<u64>, Missed) {
    let mut times = Vec::new();
    let missed = reader.read(|note| times.push(note.time_ns));
    (times, missed)
}

#[test]
fn notes_arrive_whole_and_in_order() {
    let (mut writer, memory) = note_ring().unwrap();
    let mut reader = NoteReader::open(memory.as_fd()).unwrap();
    let process = process(1);
    let kinds = [
        Note { src_port: None, dst: "1.2.3.4:80".parse().unwrap(), ..note(&process, 1) },
        Note { proto: Proto::Tcp, call: Call::SendMmsg, ..note(&process, 2) },
        Note { proto: Proto::Icmp, call: Call::Connect, ..note(&self::process(2), 3) },
        Note { call: Call::SendMsg, tid: u32::MAX, time_ns: u64::MAX, ..note(&process, 4) },
    ];
    for note in &kinds {
        writer.push(note);
    }
    let mut read = Vec::new();
    assert!(reader.has_news());
    assert_eq!(reader.read(|note| read.push(note)), Missed::default());
    assert_eq!(read, kinds);
    assert!(Arc::ptr_eq(&read[0].process, &read[1].process), "a process is read once");
    assert!(!reader.has_news());
}

#[test]
fn a_reader_that_was_lapped_goes_on_with_the_oldest_note_and_knows_its_loss() {
    let (mut writer, memory) = note_ring().unwrap();
    let mut reader = NoteReader::open(memory.as_fd()).unwrap();
    let all = RING_NOTES as u64 + 10;
    let process = process(1);
    (0..all).for_each(|number| writer.push(&note(&process, number)));
    let (times, missed) = visit(&mut reader);
    assert_eq!(missed, Missed { overwritten: 10, garbled: 0 });
    assert_eq!(times, (10..all).collect::<Vec<_>>());
}

#[test]
fn processes_without_end_are_written_over_and_the_latest_are_there() {
    let (mut writer, memory) = note_ring().unwrap();
    let mut reader = NoteReader::open(memory.as_fd()).unwrap();
    let old = process(1);
    for number in 0..12_000_u32 {
        writer.push(&note(&process(number), number.into()));
        writer.push(&note(&old, number.into()));
        if number % 100 == 0 {
            let mut processes = Vec::new();
            assert_eq!(reader.read(|note| processes.push(note.process)), Missed::default());
            assert_eq!(*processes[processes.len() - 2], *process(number));
            assert_eq!(**processes.last().unwrap(), *old);
        }
    }
    // A reader that comes late finds the notes, but not all their processes.
    let mut late = NoteReader::open(memory.as_fd()).unwrap();
    let (times, missed) = visit(&mut late);
    assert_eq!(times.len() as u64 + missed.overwritten, 24_000);
    assert!(times.len() > 1_000 && missed.garbled == 0, "{missed:?}");
}

#[test]
fn a_ring_is_read_while_it_is_written() {
    const ALL: u64 = 300_000;
    let (mut writer, memory) = note_ring().unwrap();
    let mut reader = NoteReader::open(memory.as_fd()).unwrap();
    let writing = std::thread::spawn(move || {
        let processes: Vec<_> = (0..7).map(process).collect();
        (0..ALL).for_each(|number| writer.push(&note(&processes[(number % 7) as usize], number)));
    });
    let (mut seen, mut overwritten, mut last) = (0, 0, None);
    while seen + overwritten < ALL {
        let missed = reader.read(|note| {
            assert!(last.is_none_or(|last| last < note.time_ns), "in order");
            assert_eq!(note.src_port, Some(note.time_ns as u16), "whole");
            assert_eq!(u64::from(note.process.pid), note.time_ns % 7, "with its own process");
            last = Some(note.time_ns);
            seen += 1;
        });
        assert_eq!(missed.garbled, 0);
        overwritten += missed.overwritten;
    }
    writing.join().unwrap();
    assert_eq!(seen + overwritten, ALL);
}

#[test]
fn whatever_a_writer_does_a_reader_neither_panics_nor_stays() {
    // A ring whose words anybody can set, as a launcher gone mad could.
    let (writer, memory) = note_ring().unwrap();
    let mut reader = NoteReader::open(memory.as_fd()).unwrap();
    let words = writer.memory.words();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..16 {
        for word in words {
            word.store(if round % 2 == 0 { next() } else { next() >> 48 }, Relaxed);
        }
        for written in
            [next(), reader.next.wrapping_add(next() >> 50), u64::MAX, 0, reader.next.wrapping_sub(1)]
        {
            words[WRITTEN].store(written, Relaxed);
            words[BEGUN].store(written, Relaxed);
            words[TEXT_BEGUN].store(next() >> (next() % 64), Relaxed);
            let mut notes = 0_usize;
            let missed = reader.read(|_| notes += 1);
            assert!(notes <= RING_NOTES);
            assert!(notes > 0 || missed != Missed::default() || !reader.has_news());
            assert!(reader.processes.len() <= PROCESSES_READ_MAX);
        }
    }
}

#[test]
fn only_a_sealed_ring_of_the_right_size_is_taken() {
    let notes = Notes::default();
    let file = tempfile::tempfile().unwrap();
    file.set_len((WORDS * 8) as u64).unwrap();
    assert!(notes.attach(file).is_err(), "a file can be cut");
    let (_, small) = Memory::create(8).unwrap();
    assert!(notes.attach(small).is_err());
    let (_, other) = Memory::create(WORDS).unwrap();
    assert!(notes.attach(other).is_err(), "no magic number");
    let (_writer, ring) = note_ring().unwrap();
    assert!(notes.attach(ring).is_ok());
}

#[test]
fn a_ring_outlives_its_writer_and_is_read_to_its_end_when_it_is_let_go() {
    let notes = Notes::default();
    let (mut writer, memory) = note_ring().unwrap();
    let id = notes.attach(memory).unwrap();
    writer.push(&note(&process(4), 1));
    drop(writer);
    notes.detach(id);
    let refused = Refused {
        proto: Proto::Udp,
        src_port: Some(1),
        dst: "[2001:db8::1]:53".parse().unwrap(),
        logged_ns: 2,
    };
    assert_eq!(notes.join(&refused).unwrap().note.process.pid, 4);
}

#[test]
fn notes_of_several_launchers_are_one_sandboxs() {
    let notes = Notes::default();
    let rings: Vec<_> = (0..3).map(|_| note_ring().unwrap()).collect();
    for (pid, (mut writer, memory)) in (1..).zip(rings) {
        notes.attach(memory).unwrap();
        writer.push(&Note { proto: Proto::Tcp, call: Call::Connect, ..note(&process(pid), pid.into()) });
    }
    let dst = "[2001:db8::1]:53".parse().unwrap();
    for port in 1..=3 {
        assert_eq!(notes.lookup_tcp(port, dst).unwrap().process.pid, port.into());
    }
}
