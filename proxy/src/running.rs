//! What the threads of the Sluices that run on this machine hold, for `doctor`.

use std::fs;

use serde::Serialize;
use sluice_seccomp::harden::held::{self, Held};

use crate::preflight::{Finding, Need};

/// One thread.
#[derive(Clone, Debug, Serialize)]
pub struct ThreadView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub tid: u32,
    /// Its effective capabilities, without `CAP_`.
    pub capabilities: Vec<String>,
    /// Whether execve can give it anything.
    pub no_new_privs: bool,
    /// Seccomp programs on it.
    pub seccomp_filters: u32,
    /// The user id it opens files as.
    pub files_as: u32,
    /// Whether its kind confines itself. The others make and remove sandboxes, and start programs that would inherit
    /// what they give up.
    pub confines_itself: bool,
    /// Whether it holds no more than its kind may.
    pub as_intended: bool,
}

impl From<&Held> for ThreadView {
    fn from(held: &Held) -> Self {
        Self {
            name: held.name.clone(),
            tid: held.tid,
            capabilities: held.capability_names(),
            no_new_privs: held.no_new_privileges,
            seccomp_filters: held.filters,
            files_as: held.files_as,
            confines_itself: held.role().is_some(),
            as_intended: held.is_as_intended(),
        }
    }
}

impl ThreadView {
    /// What it holds, in words.
    fn text(&self) -> String {
        let capabilities = match self.capabilities.len() {
            0 => "no capability".to_owned(),
            1..=8 => self.capabilities.join(" "),
            count => format!("{count} capabilities"),
        };
        let seccomp = if self.seccomp_filters > 0 { "seccomp" } else { "no seccomp" };
        let privileges = if self.no_new_privs { "no_new_privs" } else { "may gain privileges" };
        let files = if self.files_as == 65_534 { ", files as nobody" } else { "" };
        let more = if self.as_intended { "" } else { " (MORE than intended)" };
        format!("{capabilities}; {privileges}, {seccomp}{files}{more}")
    }
}

/// A finding for each running Sluice.
pub fn findings() -> Vec<Finding> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<(u32, Finding)> = pids.filter_map(|pid| Some((pid, finding(pid)?))).collect();
    found.sort_by_key(|(pid, _)| *pid);
    found.into_iter().map(|(_, finding)| finding).collect()
}

fn finding(pid: u32) -> Option<Finding> {
    let command = command(pid)?;
    let threads: Vec<ThreadView> = held::of_process(pid).ok()?.iter().map(ThreadView::from).collect();
    let ok = threads.iter().all(|thread| thread.as_intended);
    let detail = match threads.len() {
        0 => return None,
        _ => lines(&threads),
    };
    let remedy =
        "its `hardening` (or SLUICE_HARDENING) is off, or it runs an older version: let it confine itself";
    Some(Finding {
        name: format!("threads of {command}, pid {pid}"),
        need: Need::Optional,
        ok,
        detail,
        remedy: (!ok).then(|| remedy.to_owned()),
        threads,
    })
}

/// The command of a running Sluice.
fn command(pid: u32) -> Option<String> {
    if pid == std::process::id() || fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() != "sluice" {
        return None;
    }
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    words.map(std::borrow::Cow::into_owned).find(|word| matches!(&**word, "serve" | "exec" | "demo"))
}

/// One line for all threads that hold the same under the same name but for a number.
fn lines(threads: &[ThreadView]) -> String {
    let mut lines: Vec<(String, u32, String)> = Vec::new();
    for thread in threads {
        let name = thread.name.trim_end_matches(|last: char| last.is_ascii_digit()).to_owned();
        let text = thread.text();
        match lines.iter_mut().find(|(known, _, what)| *known == name && *what == text) {
            Some((_, count, _)) => *count += 1,
            None => lines.push((name, 1, text)),
        }
    }
    let line = |(name, count, text): &(String, u32, String)| {
        let times = if *count > 1 { format!(" ×{count}") } else { String::new() };
        format!("{}{times}: {text}", name.trim_end_matches('-'))
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}
