//! Running `sluice serve` in a scene, and asking it.

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{PATIENCE, Scene, assert_contract, eventually, sluice};

/// A `sluice serve`. Dropping it kills it and removes what it kept.
pub(crate) struct Daemon<'a> {
    scene: &'a Scene,
    config: PathBuf,
    child: Option<Child>,
    started: u32,
}

/// What a command said.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub(crate) fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

impl<'a> Daemon<'a> {
    /// Starts with one worker, loopback permitted, and `more` configuration; returns once it answers.
    pub(crate) fn start(scene: &'a Scene, more: &str) -> Self {
        let mut daemon = Self::configured(scene, more);
        daemon.restart();
        daemon
    }

    /// The same, not started.
    pub(crate) fn configured(scene: &'a Scene, more: &str) -> Self {
        let mut daemon = Self { scene, config: PathBuf::new(), child: None, started: 0 };
        daemon.configure(more);
        daemon
    }

    /// Writes another configuration.
    pub(crate) fn configure(&mut self, more: &str) {
        let mut text = String::from("workers: 1\npermit_special_addresses: [127.0.0.0/8]\n");
        let _ = writeln!(text, "events: {}", self.scene.dir().join("served.ndjson").display());
        self.config = self.scene.file("serve.yaml", &(text + more));
    }

    /// Starts it, again or for the first time.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        self.started += 1;
        let log = File::create(self.log_path()).expect("a log");
        let mut start = Command::new(sluice());
        // A call that a thread's list does not have ends Sluice.
        start.env("SLUICE_HARDENING", "strict");
        start.args(["serve", "--config"]).arg(&self.config).stdin(Stdio::null());
        start.stdout(log.try_clone().expect("clone")).stderr(log);
        self.child = Some(self.scene.inside(|| start.spawn()).expect("start sluice"));
        eventually("the daemon answers", || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().expect("wait")) {
                panic!("it ended with {status}\n{}", self.log());
            }
            self.ask(&["sandbox", "ls"]).code == 0
        });
    }

    /// Starts it as it is configured, which must fail; what it said.
    pub(crate) fn fail_to_start(&self) -> Said {
        assert!(self.child.is_none(), "it runs");
        let mut start = Command::new(sluice());
        start.env("SLUICE_HARDENING", "strict");
        start.args(["serve", "--config"]).arg(&self.config).stdin(Stdio::null());
        Said::of(&self.scene.inside(|| start.output()).expect("start sluice"))
    }

    fn log_path(&self) -> PathBuf {
        self.scene.dir().join(format!("serve-{}.log", self.started))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().expect("running").id().cast_signed())
    }

    /// Sends a signal that ends it; its exit code, 128 + n for a signal.
    pub(crate) fn end(&mut self, signal: Signal) -> i32 {
        kill(self.pid(), signal).expect("signal");
        let mut child = self.child.take().expect("running");
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("wait") {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            if begun.elapsed() > PATIENCE {
                child.kill().ok();
                child.wait().ok();
                panic!("did not end within {PATIENCE:?}\n{}", self.log());
            }
            std::thread::park_timeout(super::PAUSE);
        }
    }

    /// Runs `sluice` with these arguments where the daemon is.
    pub(crate) fn ask<S: AsRef<str>>(&self, args: &[S]) -> Said {
        let mut command = Command::new(sluice());
        command.args(args.iter().map(AsRef::as_ref)).current_dir(self.scene.dir()).stdin(Stdio::null());
        Said::of(&self.scene.inside(|| command.output()).expect("run sluice"))
    }

    /// The same with `--json`, which must go well.
    #[track_caller]
    pub(crate) fn ask_json<S: AsRef<str>>(&self, args: &[S]) -> Value {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).chain(["--json"]).collect();
        self.ask(&args).ended_with(0).json()
    }

    /// Starts `sluice` with these arguments; its output is the caller's.
    pub(crate) fn begin<S: AsRef<str>>(&self, args: &[S]) -> Child {
        let mut command = Command::new(sluice());
        command.args(args.iter().map(AsRef::as_ref)).current_dir(self.scene.dir());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.scene.inside(|| command.spawn()).expect("run sluice")
    }

    /// Runs a program in the namespace of a sandbox, unconfined.
    pub(crate) fn within<S: AsRef<str>>(&self, sandbox: &str, command: &[S]) -> Said {
        Said::of(&self.within_command(sandbox, command).output().expect("run a program inside"))
    }

    /// The same, to be started by the caller.
    pub(crate) fn within_command<S: AsRef<str>>(&self, sandbox: &str, command: &[S]) -> Command {
        let netns = format!("--net={}/sandboxes/{sandbox}/netns", super::STATE_DIR);
        let netns =
            self.scene.inside(|| File::open(netns.trim_start_matches("--net="))).expect("its namespace");
        let mut start = Command::new("nsenter");
        // By the descriptor of this process: the path is only known in the scene.
        let path =
            format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&netns.as_fd()));
        start.arg(format!("--net={path}")).args(command.iter().map(AsRef::as_ref)).stdin(Stdio::null());
        std::mem::forget(netns); // for as long as the command may start
        start
    }

    /// `curl` through the proxy of a sandbox: status and body, or curl's complaint.
    pub(crate) fn curl(&self, sandbox: &str, url: &str) -> Said {
        let code = "%{http_code}";
        self.within(sandbox, &["curl", "-sS", "-m", "20", "-w", code, "-x", "http://10.200.0.1:3128", url])
    }

    /// What it has told so far.
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.scene.dir().join("served.ndjson")).unwrap_or_default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        assert_contract(&text[..whole])
    }

    /// The events of one kind about one sandbox.
    pub(crate) fn events_of(&self, kind: &str, sandbox: &str) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["event"] == kind && event["sandbox"] == sandbox);
        events
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon\n{}", self.log());
        }
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        // Whatever it kept would outlive the test: sandboxes are made to.
        let names: Vec<String> = self.scene.inside(|| {
            let entries = std::fs::read_dir(format!("{}/sandboxes", super::STATE_DIR)).into_iter().flatten();
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
        });
        if !names.is_empty() {
            self.configure("");
            self.started += 1;
            let mut start = Command::new(sluice());
            start.args(["serve", "--config"]).arg(&self.config).stdin(Stdio::null());
            start.stdout(Stdio::null()).stderr(Stdio::null());
            if let Ok(mut child) = self.scene.inside(|| start.spawn()) {
                let begun = Instant::now();
                while self.ask(&["sandbox", "ls"]).code != 0 && begun.elapsed() < PATIENCE {
                    std::thread::park_timeout(super::PAUSE);
                }
                for name in names {
                    self.ask(&["sandbox", "rm", &name]);
                }
                kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).ok();
                child.wait().ok();
            }
        }
    }
}
