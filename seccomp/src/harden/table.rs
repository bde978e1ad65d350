//! Who needs what: one row for each kind of thread.

use crate::privileges::Kept;

const fn cap(number: u32, name: &'static str, why: &'static str) -> Kept {
    Kept { number, name, why }
}

/// What a kind of thread holds once it is confined.
#[derive(Clone, Copy, Debug)]
pub struct Holding {
    /// Its capabilities, and what for.
    pub capabilities: &'static [Kept],
    /// Whether it writes files. One that does not touches files as the user nobody.
    pub writes_files: bool,
    /// Whether Landlock holds it to its own files. A Landlock domain of any kind makes `/proc/<pid>/exe` and
    /// `/proc/<pid>/fd` of other processes unreadable, so whoever names processes cannot have one.
    pub landlock: bool,
}

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Carries connections: meets every byte of clients and origins.
    Worker,
    /// Reads the kernel's log, names direct attempts.
    BypassCore,
    /// Reads `/proc` for the bypass core.
    Errands,
    /// Reads `/proc` at length.
    Scanner,
    /// Hashes running programs.
    Hashing,
    /// Writes the events file.
    Events,
    /// Signs certificates.
    Signer,
    /// Answers the seccomp listener of a workload.
    Witness,
}

const NAMES_PROCESSES: [Kept; 2] = [
    cap(2, "DAC_READ_SEARCH", "descriptors of other users' processes"),
    cap(19, "SYS_PTRACE", "program and descriptors of processes in /proc"),
];

impl Role {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::Worker,
        Self::BypassCore,
        Self::Errands,
        Self::Scanner,
        Self::Hashing,
        Self::Events,
        Self::Signer,
        Self::Witness,
    ];

    /// The name of its threads; a worker's is followed by a number.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker-",
            Self::BypassCore => "sluice-bypass",
            Self::Errands => "bypass-errands",
            Self::Scanner => "identity-scan",
            Self::Hashing => "identity-hash",
            Self::Events => "events",
            Self::Signer => "tls-signer",
            Self::Witness => "witness",
        }
    }

    /// The kind of a thread by its name.
    pub fn of_thread(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| match role {
            Self::Worker => name.starts_with(role.name()),
            _ => name == role.name(),
        })
    }

    /// What it holds.
    pub fn holding(self) -> Holding {
        const WORKER: &[Kept] = &[
            NAMES_PROCESSES[0],
            NAMES_PROCESSES[1],
            cap(24, "SYS_RESOURCE", "pipes of 256 KiB beyond fs.pipe-user-pages-soft"),
        ];
        const BYPASS_CORE: &[Kept] =
            &[NAMES_PROCESSES[0], cap(12, "NET_ADMIN", "the counters of the fences"), NAMES_PROCESSES[1]];
        const EVENTS: &[Kept] = &[cap(1, "DAC_OVERRIDE", "the file anew, in a directory of another user")];
        let (capabilities, writes_files, landlock) = match self {
            Self::Worker => (WORKER, false, false),
            Self::BypassCore => (BYPASS_CORE, false, false),
            Self::Errands | Self::Scanner | Self::Hashing | Self::Witness => {
                (NAMES_PROCESSES.as_slice(), false, false)
            }
            Self::Events => (EVENTS, true, true),
            Self::Signer => ([].as_slice(), false, true),
        };
        Holding { capabilities, writes_files, landlock }
    }
}

/// What the threads that start, make and remove need between them, and the workloads they launch. All
/// else is given up for the whole process.
pub(super) const OF_PROCESS: &[Kept] = &[
    cap(0, "CHOWN", "a root workload keeps it"),
    cap(1, "DAC_OVERRIDE", "state and events in directories of other users; a root workload keeps it"),
    cap(2, "DAC_READ_SEARCH", "naming processes of other users"),
    cap(3, "FOWNER", "a root workload keeps it"),
    cap(4, "FSETID", "a root workload keeps it"),
    cap(5, "KILL", "ending what runs in a sandbox"),
    cap(6, "SETGID", "workloads as another group"),
    cap(7, "SETUID", "workloads as another user"),
    cap(8, "SETPCAP", "cutting the bounding set of workloads and of threads"),
    cap(10, "NET_BIND_SERVICE", "listeners below port 1024"),
    cap(12, "NET_ADMIN", "addresses, routes and rules inside sandboxes"),
    cap(14, "IPC_LOCK", "rings and event buffers beyond the memlock limit"),
    cap(18, "SYS_CHROOT", "entering mount namespaces; a root workload keeps it"),
    cap(19, "SYS_PTRACE", "naming processes"),
    cap(21, "SYS_ADMIN", "namespaces, mounts, seccomp listeners"),
    cap(23, "SYS_NICE", "the bypass core before other threads"),
    cap(24, "SYS_RESOURCE", "descriptors and pipes beyond the limits"),
    cap(34, "SYSLOG", "the kernel's log"),
    cap(38, "PERFMON", "the trace of connects"),
];
