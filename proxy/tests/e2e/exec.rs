//! Running `sluice exec` and looking at what came of it.

use std::fmt;
use std::io::{Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::events::Happening;
use super::{PATIENCE, Scene, assert_contract, sluice};

/// A `sluice exec` to be started. Without a policy of its own everything is denied.
pub(crate) struct Exec<'a> {
    scene: &'a Scene,
    name: String,
    policy: String,
    options: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Option<Vec<u8>>,
    /// A file of this run's own.
    events: Option<PathBuf>,
}

impl<'a> Exec<'a> {
    pub(super) fn new(scene: &'a Scene) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let events = format!("{}.ndjson", COUNT.fetch_add(1, Ordering::Relaxed));
        Self {
            scene,
            name: scene.name().into(),
            policy: "deny".into(),
            options: Vec::new(),
            env: Vec::new(),
            stdin: None,
            events: Some(scene.dir().join(events)),
        }
    }

    /// `open`, `deny`, or the text of a policy.
    pub(crate) fn policy(mut self, policy: &str) -> Self {
        self.policy = if policy.contains('\n') {
            self.scene.file("policy.yaml", policy).display().to_string()
        } else {
            policy.into()
        };
        self
    }

    /// Everything is allowed, and origins on loopback addresses are reachable.
    pub(crate) fn open(self) -> Self {
        self.policy("open").permit_loopback()
    }

    pub(crate) fn permit_loopback(self) -> Self {
        self.option("--permit-special").option("127.0.0.0/8")
    }

    pub(crate) fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }

    /// Names the sandbox otherwise than the scene does.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// What the workload reads; without it, nothing.
    pub(crate) fn stdin(mut self, octets: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(octets.into());
        self
    }

    /// Leaves `--events` to the test.
    pub(crate) fn without_events_file(mut self) -> Self {
        self.events = None;
        self
    }

    /// Runs `command` to its end.
    pub(crate) fn run<S: AsRef<str>>(self, command: &[S]) -> Outcome {
        self.start(command).finish()
    }

    /// The whole command line, for whoever starts it by other means.
    pub(crate) fn command_line<S: AsRef<str>>(&self, command: &[S]) -> Vec<String> {
        let mut line = vec![sluice().display().to_string(), "exec".into()];
        line.extend(["--policy".into(), self.policy.clone(), "--name".into(), self.name.clone()]);
        if let Some(path) = &self.events {
            line.extend(["--events".into(), path.display().to_string()]);
        }
        line.extend(self.options.iter().cloned());
        line.push("--".into());
        line.extend(command.iter().map(|word| word.as_ref().into()));
        line
    }

    /// Starts `command`.
    pub(crate) fn start<S: AsRef<str>>(self, command: &[S]) -> Running {
        let line = self.command_line(command);
        self.start_line(&line)
    }

    /// Starts a command line of the test's own in the scene.
    pub(crate) fn start_line(self, line: &[String]) -> Running {
        let (program, args) = line.split_first().expect("a program");
        let mut start = Command::new(program);
        start.args(args).current_dir(self.scene.dir());
        // A call that a thread's list does not have ends Sluice.
        start.env("SLUICE_HARDENING", "strict");
        start.envs(self.env.iter().map(|(name, value)| (name, value)));
        start.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.scene.inside(|| start.spawn()).expect("start sluice");
        let mut stdin = child.stdin.take().expect("stdin");
        let stdin = match self.stdin {
            Some(octets) => {
                // A workload that does not read is no failure of the test.
                std::thread::spawn(move || stdin.write_all(&octets).ok());
                None
            }
            None => Some(stdin),
        };
        let stdout = Heard::listen(child.stdout.take().expect("stdout"));
        let stderr = Heard::listen(child.stderr.take().expect("stderr"));
        Running { child: Some(child), stdin, stdout, stderr, events: self.events, name: self.name }
    }
}

/// A running `sluice exec`. Dropping it kills it.
pub(crate) struct Running {
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    stdout: Heard,
    stderr: Heard,
    events: Option<PathBuf>,
    name: String,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("send a signal");
    }

    /// Waits until the workload has printed `text`.
    pub(crate) fn hear(&self, text: &str) {
        let said = self.stdout.wait_for(text);
        assert!(said, "never printed {text:?}\n{}\n{}", self.stdout.text(), self.stderr.text());
    }

    /// Waits until Sluice, or the workload, has said `text` on stderr.
    pub(crate) fn hear_on_stderr(&self, text: &str) {
        assert!(self.stderr.wait_for(text), "never said {text:?}\n{}", self.stderr.text());
    }

    /// What was printed so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Sends a line to the workload.
    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is still open");
        writeln!(stdin, "{line}").expect("write to the workload");
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> Outcome {
        drop(self.stdin.take());
        let mut child = self.child.take().expect("running");
        let pid = Pid::from_raw(child.id().cast_signed());
        let (done, ended) = channel();
        let waiter = std::thread::spawn(move || done.send(child.wait()));
        let Ok(status) = ended.recv_timeout(PATIENCE) else {
            // The waiter has not reaped it, so the pid is still its own.
            kill(pid, Signal::SIGKILL).ok();
            panic!("did not end within {PATIENCE:?}\n{}\n{}", self.stdout.text(), self.stderr.text());
        };
        waiter.join().expect("waiter").expect("send");
        let status = status.expect("wait");
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        let events = self.events.take().map(|path| std::fs::read_to_string(path).unwrap_or_default());
        Outcome {
            code,
            stdout: self.stdout.all(),
            stderr: String::from_utf8_lossy(&self.stderr.all()).into_owned(),
            events: assert_contract(&events.unwrap_or_default()),
            name: self.name.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// How a run ended, and all it said.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Sluice's exit code; 128 + n when signal n ended Sluice itself.
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) events: Vec<Happening>,
    /// The sandbox's name.
    pub(crate) name: String,
}

impl Outcome {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails unless the run ended with `code`.
    #[track_caller]
    pub(crate) fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self}");
        self
    }

    /// The events of one kind.
    pub(crate) fn events_of(&self, kind: &str) -> Vec<&Happening> {
        self.events.iter().filter(|event| event["event"] == kind).collect()
    }

    /// The one event of a kind.
    #[track_caller]
    pub(crate) fn the(&self, kind: &str) -> &Happening {
        match self.events_of(kind)[..] {
            [event] => event,
            ref events => panic!("{} events {kind}, not one\n{self}", events.len()),
        }
    }

    /// Attempts told by the events of one kind: an event that folds several counts them.
    pub(crate) fn attempts(&self, kind: &str) -> u64 {
        self.events_of(kind).iter().map(|event| event["count"].as_u64().unwrap_or(1)).sum()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "exit code {}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.text(), self.stderr)?;
        writeln!(f, "--- events")?;
        self.events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

/// What a pipe has said so far.
struct Heard {
    shared: Arc<(Mutex<Vec<u8>>, Condvar)>,
    closed: Receiver<()>,
}

impl Heard {
    fn listen(mut from: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let (close, closed) = channel();
        let to = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut octets = vec![0; 1 << 16];
            while let Ok(count @ 1..) = from.read(&mut octets) {
                to.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&octets[..count]);
                to.1.notify_all();
            }
            // Nobody may be waiting any more.
            close.send(()).ok();
        });
        Self { shared, closed }
    }

    fn wait_for(&self, text: &str) -> bool {
        let begun = Instant::now();
        let mut heard = self.shared.0.lock().expect("reader");
        while !String::from_utf8_lossy(&heard).contains(text) {
            let Some(left) = PATIENCE.checked_sub(begun.elapsed()) else { return false };
            heard = self.shared.1.wait_timeout(heard, left).expect("reader").0;
        }
        true
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.0.lock().expect("reader")).into_owned()
    }

    /// Everything up to the end, which comes when the last process that holds the pipe has gone.
    fn all(&self) -> Vec<u8> {
        let ended = self.closed.recv_timeout(PATIENCE);
        assert!(ended.is_ok(), "somebody still holds the output after the end: {}", self.text());
        self.shared.0.lock().expect("reader").clone()
    }
}
