use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

const NETNS: u64 = 4_026_531_840;
const PID: u32 = 77;

/// A proc file system of one's own.
struct Fixture {
    root: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn path(&self, pid: u32) -> std::path::PathBuf {
        self.root.path().join(pid.to_string())
    }

    fn process(&self, pid: u32, start_time: u64, netns: u64, sockets: &[(u32, u64)]) {
        let dir = self.path(pid);
        for part in ["fd", "ns", &format!("task/{pid}")] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        symlink(format!("net:[{netns}]"), dir.join("ns/net")).unwrap();
        let zeros = "0 ".repeat(17);
        fs::write(dir.join("stat"), format!("{pid} (a) b) S 1 {zeros}{start_time} 0 0 0 4096\n")).unwrap();
        self.run(pid, 1);
        for &(fd, inode) in sockets {
            self.socket(pid, fd, inode);
        }
    }

    fn socket(&self, pid: u32, fd: u32, inode: u64) {
        symlink(format!("socket:[{inode}]"), self.path(pid).join(format!("fd/{fd}"))).unwrap();
    }

    fn close(&self, pid: u32, fd: u32) {
        fs::remove_file(self.path(pid).join(format!("fd/{fd}"))).unwrap();
    }

    fn run(&self, pid: u32, stints: u32) {
        fs::write(self.path(pid).join(format!("task/{pid}/schedstat")), format!("1000 0 {stints}\n"))
            .unwrap();
    }

    fn end(&self, pid: u32) {
        fs::remove_dir_all(self.path(pid)).unwrap();
    }

    fn holders(&self, settled: Duration) -> Holders {
        let elsewhere = Elsewhere::default();
        elsewhere.add(1);
        let proc = Arc::new(ProcRoot::open(self.root.path()).unwrap());
        let mut holders = Holders::new(proc, Members::Namespace, NETNS, Arc::new(elsewhere));
        holders.settled = settled;
        holders
    }
}

fn pids(search: &Search) -> Vec<u32> {
    search.findings[0].holders.iter().map(|holder| holder.dir.pid()).collect()
}

fn search(holders: &mut Holders, inode: u64) -> Search {
    holders.search(&[inode], Need::Proof, false).unwrap()
}

#[test]
fn descriptors_are_read_again_only_once_the_process_has_run() {
    let fixture = Fixture::new();
    fixture.process(PID, 1, NETNS, &[(3, 555)]);
    let mut holders = fixture.holders(Duration::ZERO);
    assert_eq!(pids(&search(&mut holders, 555)), [PID]);
    // No process can do this without running; a fixture can.
    fixture.socket(PID, 4, 556);
    assert_eq!(pids(&search(&mut holders, 556)), [0; 0]);
    fixture.run(PID, 2);
    assert_eq!(pids(&search(&mut holders, 556)), [PID]);
    fixture.close(PID, 4);
    assert_eq!(pids(&holders.search(&[556], Need::Proof, true).unwrap()), [0; 0], "afresh trusts nothing");
}

#[test]
fn counters_vouch_for_nothing_until_longer_than_a_tick_has_passed() {
    let fixture = Fixture::new();
    fixture.process(PID, 1, NETNS, &[(3, 555)]);
    let mut holders = fixture.holders(Duration::from_secs(3600));
    search(&mut holders, 555);
    fixture.socket(PID, 4, 556);
    assert_eq!(pids(&search(&mut holders, 556)), [PID]);
}

#[test]
fn a_process_that_was_given_the_pid_of_an_owner_is_not_taken_for_it() {
    let fixture = Fixture::new();
    fixture.process(PID, 1, NETNS, &[(3, 555)]);
    let mut holders = fixture.holders(Duration::ZERO);
    assert_eq!(search(&mut holders, 555).findings[0].holders[0].start_time, 1);
    assert_eq!(holders.quick(555).unwrap().fd, 3);
    fixture.end(PID);
    fixture.process(PID, 2, NETNS, &[(3, 556)]);
    assert!(holders.quick(555).is_none());
    // The counters of the one that ended stand still: what is remembered of it must not be pinned on the other.
    assert_eq!(pids(&search(&mut holders, 555)), [0; 0]);
    assert!(holders.quick(556).is_none(), "a descriptor of the same number is another process's");
    let found = holders.search(&[556], Need::Proof, true).unwrap();
    assert_eq!(found.findings[0].holders[0].start_time, 2);
}

#[test]
fn processes_elsewhere_are_left_out_and_those_in_unknown_namespaces_are_not() {
    let fixture = Fixture::new();
    fixture.process(10, 1, 1, &[(3, 555)]);
    fixture.process(11, 1, 2, &[(3, 555)]);
    fixture.process(12, 1, NETNS, &[(3, 555)]);
    let found = search(&mut fixture.holders(Duration::ZERO), 555);
    assert_eq!(pids(&found), [12, 11]);
    assert_eq!(found.processes, 2);
}

#[test]
fn a_name_is_sought_at_the_last_owner_first_and_no_further() {
    let fixture = Fixture::new();
    fixture.process(10, 1, NETNS, &[(3, 555)]);
    fixture.process(99, 1, NETNS, &[(3, 556)]);
    let mut holders = fixture.holders(Duration::ZERO);
    let found = holders.search(&[555], Need::Name, false).unwrap();
    assert_eq!((pids(&found), found.processes), (vec![10], 2), "at first the latest is looked at first");
    fixture.run(10, 2);
    fixture.socket(10, 7, 557);
    let found = holders.search(&[557], Need::Name, false).unwrap();
    assert_eq!((pids(&found), found.processes), (vec![10], 1));
}

#[test]
fn the_worker_finds_a_descriptor_it_has_seen_or_the_next_one() {
    let fixture = Fixture::new();
    fixture.process(PID, 1, NETNS, &[(3, 555), (90, 600)]);
    let mut holders = fixture.holders(Duration::ZERO);
    search(&mut holders, 555);
    fixture.socket(PID, 4, 556);
    fixture.socket(PID, 40, 557);
    assert_eq!(holders.quick(556).unwrap().fd, 4, "the next descriptor");
    fixture.close(PID, 3);
    fixture.socket(PID, 3, 558);
    assert_eq!(holders.quick(558).unwrap().fd, 3, "one that was used lately");
    assert_eq!(holders.quick(600).unwrap().fd, 90, "one that was read with the others");
    assert!(holders.quick(557).is_none(), "the rest is the scanner's");
}

#[test]
fn a_process_with_more_descriptors_than_are_read_makes_the_answer_unsure() {
    let fixture = Fixture::new();
    fixture.process(PID, 1, NETNS, &[(3, 555), (4, 556)]);
    let mut holders = fixture.holders(Duration::ZERO);
    let Look::Unreadable = holders.read(PID, false, &mut 1) else { panic!("cut short in silence") };
    assert!(!holders.snapshots[&PID].readable);
}

#[test]
fn what_is_remembered_of_processes_that_are_gone_is_dropped() {
    let fixture = Fixture::new();
    (10..20).for_each(|pid| fixture.process(pid, 1, NETNS, &[(3, u64::from(pid))]));
    let mut holders = fixture.holders(Duration::ZERO);
    search(&mut holders, 10);
    assert_eq!((holders.snapshots.len(), holders.counters), (10, 10));
    (10..19).for_each(|pid| fixture.end(pid));
    search(&mut holders, 10);
    assert_eq!((holders.snapshots.len(), holders.counters), (1, 1));
}

#[test]
fn a_process_that_reads_a_line_is_known_to_have_run() {
    use std::io::Write as _;
    let mut child = std::process::Command::new("/bin/sh")
        .args(["-c", "read one; read two"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let dir = ProcRoot::open(Path::new("/proc")).unwrap().process(child.id()).unwrap();
    let holders = Fixture::new().holders(Duration::ZERO);
    let deadline = Instant::now() + Duration::from_secs(20);
    let asleep = || dir.stat(|stat| Some(stat.windows(3).any(|bytes| bytes == b") S"))) == Ok(true);
    while !asleep() {
        assert!(Instant::now() < deadline, "the shell never waits for its first line");
    }
    let watch = holders.watch(&dir, None).unwrap();
    assert!(watch.unchanged_since().is_some());
    child.stdin.as_mut().unwrap().write_all(b"1\n").unwrap();
    while watch.unchanged_since().is_some() {
        assert!(Instant::now() < deadline, "it ran, and its counters never moved");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
