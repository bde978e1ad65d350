//! A workload in the terminal's foreground: Ctrl-C reaches it and not the launcher, Ctrl-Z stops both,
//! and the terminal comes back.
#![allow(clippy::unwrap_used, reason = "also in the functions the tests share")]

mod sandbox;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork};
use sandbox::{PATIENCE, command, eventually};
use sluice_seccomp::{Terminal, launch};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// A process with the terminal as its own, as a login shell has it, that launches `words` in the
/// foreground and ends as they end.
#[allow(unsafe_code)]
fn launcher(terminal: &OwnedFd, words: &[&str]) -> Pid {
    let mut wanted = command(words);
    wanted.terminal = Terminal::Foreground;
    // SAFETY: the child runs one thread; glibc keeps the allocator usable over fork.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let status = || -> std::io::Result<i32> {
                nix::unistd::setsid()?;
                dup2_stdin(terminal)?;
                dup2_stdout(terminal)?;
                dup2_stderr(terminal)?;
                // SAFETY: takes numbers; standard input is the terminal.
                if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(launch(&wanted).map_err(std::io::Error::other)?.wait()?.code())
            };
            let code = status().unwrap_or_else(|error| {
                eprintln!("{error}");
                99
            });
            // SAFETY: ends without the test harness's exit handlers.
            unsafe { libc::_exit(code) }
        }
    }
}

/// The user's side of a terminal.
struct Keyboard {
    master: std::fs::File,
    screen: String,
}

impl Keyboard {
    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn wait_for(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        let deadline = Instant::now() + PATIENCE;
        while !self.screen.contains(text) {
            match self.master.read(&mut bytes) {
                Ok(count) => self.screen.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "the screen: {}", self.screen),
            }
            assert!(Instant::now() < deadline, "{text} does not come; the screen: {}", self.screen);
            std::thread::yield_now();
        }
        self.screen.clear();
    }
}

#[test]
fn ctrl_c_and_ctrl_z_reach_the_workload_and_the_terminal_comes_back() {
    // Waited for with the signal blocked: a handler could run just before the read it is to interrupt.
    let script = "
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print('ready', flush=True)
signal.sigwait([signal.SIGINT])
print('interrupted', flush=True)
print('got', input(), flush=True)
sys.exit(3)";
    let pty = openpty(None, None).unwrap();
    let pid = launcher(&pty.slave, &["/usr/bin/python3", "-c", script]);
    fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut keyboard = Keyboard { master: pty.master.into(), screen: String::new() };
    keyboard.wait_for("ready");
    keyboard.press("\x03");
    keyboard.wait_for("interrupted");
    keyboard.press("\x1a");
    eventually("the launcher stops with its workload", || {
        let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG;
        waitpid(pid, Some(flags)).unwrap() == WaitStatus::Stopped(pid, Signal::SIGSTOP)
    });
    let foreground = nix::unistd::tcgetpgrp(&keyboard.master).unwrap();
    assert_eq!(foreground, pid, "the launcher has the terminal while all is stopped");
    kill(pid, Signal::SIGCONT).unwrap();
    eventually("the workload has the terminal again", || {
        nix::unistd::tcgetpgrp(&keyboard.master).unwrap() != pid
    });
    keyboard.press("line\n");
    keyboard.wait_for("got line");
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 3));
}
