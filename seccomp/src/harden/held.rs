//! What the threads of a running Sluice hold, read from `/proc`.

use super::table::Role;
use std::io;
use std::path::Path;

/// One thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its process.
    pub pid: u32,
    /// Its id.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Its effective capabilities, one bit each.
    pub capabilities: u64,
    /// Whether no_new_privs is set.
    pub no_new_privileges: bool,
    /// Seccomp programs on it.
    pub filters: u32,
    /// The user id it opens files as.
    pub files_as: u32,
}

impl Held {
    /// Its kind, when it is of one that confines itself.
    pub fn role(&self) -> Option<Role> {
        Role::of_thread(&self.name)
    }

    /// Whether it holds no more than its kind may; true for kinds that stay as they are.
    pub fn is_as_intended(&self) -> bool {
        let Some(role) = self.role() else { return true };
        let allowed = role.holding().capabilities.iter().fold(0u64, |set, kept| set | 1 << kept.number);
        self.capabilities & !allowed == 0 && self.no_new_privileges && self.filters > 0
    }

    /// Its capabilities by name, without `CAP_`.
    pub fn capability_names(&self) -> Vec<String> {
        (0..64).filter(|number| self.capabilities & (1 << number) != 0).map(capability_name).collect()
    }
}

/// Every thread of a process.
pub fn of_process(pid: u32) -> io::Result<Vec<Held>> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        // A thread that has just ended is none.
        threads.extend(read(pid, &path));
    }
    threads.sort_by_key(|held| held.tid);
    Ok(threads)
}

fn read(pid: u32, task: &Path) -> Option<Held> {
    let tid = task.file_name()?.to_str()?.parse().ok()?;
    parse(pid, tid, &std::fs::read_to_string(task.join("status")).ok()?)
}

pub(super) fn parse(pid: u32, tid: u32, status: &str) -> Option<Held> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some(Held {
        pid,
        tid,
        name: field("Name:")?.to_owned(),
        capabilities: u64::from_str_radix(field("CapEff:")?, 16).ok()?,
        no_new_privileges: field("NoNewPrivs:")? == "1",
        // Linux before 5.9 tells the mode only.
        filters: field("Seccomp_filters:")
            .and_then(|count| count.parse().ok())
            .unwrap_or_else(|| u32::from(field("Seccomp:").is_some_and(|mode| mode == "2"))),
        files_as: field("Uid:")?.split_whitespace().nth(3)?.parse().ok()?,
    })
}

/// `linux/capability.h`, in order.
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn capability_name(number: usize) -> String {
    CAPABILITIES.get(number).map_or_else(|| format!("{number}"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        let status = "Name:\tworker-3\nUmask:\t0022\nUid:\t0\t0\t0\t65534\nCapEff:\t0000000000080004\n\
                      NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let held = parse(7, 9, status).unwrap();
        assert_eq!(held.capability_names(), ["DAC_READ_SEARCH", "SYS_PTRACE"]);
        assert_eq!((held.files_as, held.filters, held.role()), (65_534, 1, Some(Role::Worker)));
        assert!(held.is_as_intended());
        assert!(!Held { filters: 0, ..held.clone() }.is_as_intended());
        assert!(!Held { capabilities: 1 << 21, ..held }.is_as_intended());
        for cut in 0..status.len() {
            parse(7, 9, &status[..cut]);
        }
    }
}
