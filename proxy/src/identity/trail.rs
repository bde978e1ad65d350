//! The account of a lookup: what every source said, for people and for events.
//!
//! A trail is a few words per source, in the order they are asked, always complete: a source that was not needed says
//! so. It is rendered at the default log level with every denial, because "identity unknown" alone helps nobody.

use std::fmt;

/// Where the answer came from, in the order they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The connect witness: exact, and as of the connect.
    Witness,
    /// The kernel's trace of connects: exact, and as of the connect.
    Trace,
    /// The kernel's socket lookup (sock_diag) in the sandbox's namespace.
    Diag,
    /// `/proc/<pid>/net/tcp{,6}` of a living process of the sandbox.
    PidTable,
    /// The daemon's own `/proc/net/tcp{,6}`.
    GlobalTable,
    /// Nobody could be named.
    None,
}

impl Source {
    /// The name used in events (`identity`) and metric labels (`source`).
    pub const fn label(self) -> &'static str {
        match self {
            Self::Witness => "witness",
            Self::Trace => "trace",
            Self::Diag => "diag",
            Self::PidTable => "pid-table",
            Self::GlobalTable => "global-table",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What one source said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Answer {
    /// It was not asked: an earlier source had answered, or it does not apply.
    #[default]
    NotTried,
    /// This sandbox has no such source (no witness, identity switched off, no living process to read a table of).
    Absent,
    /// It knows the connection.
    Found,
    /// It knows the connection, but its socket no longer belongs to a process (closed, or its process is gone).
    Orphan,
    /// It knows the connection, but the process that made it had ended before it could be looked at.
    Gone,
    /// It knows the connection, but the process that made it executes another program since.
    Changed,
    /// It knows more than one such connection, and can not tell which is meant.
    Several,
    /// It does not know the connection.
    NotFound,
    /// The kernel refused to be asked.
    NotPermitted,
    /// Asking failed with this errno.
    Failed(i32),
    /// Too many lookups were waiting.
    Busy,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotTried => "not tried",
            Self::Absent => "not available",
            Self::Found => "found",
            Self::Orphan => "found without an owner",
            Self::Gone => "found, but its process has ended",
            Self::Changed => "found, but its process has executed another program since",
            Self::Several => "found more than once",
            Self::NotFound => "not found",
            Self::NotPermitted => "not permitted",
            Self::Busy => "not tried, too many lookups waiting",
            Self::Failed(errno) => {
                return write!(f, "failed: {}", nix::errno::Errno::from_raw(*errno).desc());
            }
        })
    }
}

/// What the search for the socket's holders found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Holding {
    /// No socket was known to search for, or the witness had named the process.
    #[default]
    NotTried,
    /// This many processes hold it, all running the same binary, and every process of the sandbox was accounted for.
    Proven {
        /// Holders.
        holders: u32,
    },
    /// A process holds it; others were not ruled out, because nobody asked for [`Need::Proof`](super::Need::Proof).
    Named,
    /// This many processes hold it, and they run different binaries.
    Different {
        /// Holders.
        holders: u32,
    },
    /// A process holds it, but some processes of the sandbox could not be read, and might hold it too.
    Unsure {
        /// Processes whose descriptors could not be read.
        unreadable: u32,
    },
    /// None of the sandbox's processes holds it.
    Nobody {
        /// Processes of the sandbox that were looked at.
        processes: u32,
        /// Processes whose descriptors could not be read.
        unreadable: u32,
    },
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTried => f.write_str("not sought"),
            Self::Proven { holders: 1 } => f.write_str("one process, no other"),
            Self::Proven { holders } => write!(f, "{holders} processes of one binary, no other"),
            Self::Named => f.write_str("one process, others not ruled out"),
            Self::Different { holders } => write!(f, "{holders} processes with different binaries"),
            Self::Unsure { unreadable } => write!(f, "one process, but {unreadable} could not be read"),
            Self::Nobody { processes, unreadable: 0 } => write!(f, "none of {processes} processes"),
            Self::Nobody { processes, unreadable } => {
                write!(f, "none of {processes} processes, {unreadable} of which could not be read")
            }
        }
    }
}

/// How a name was found: what every source said, and who was found to hold the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trail {
    /// The connect witness.
    pub witness: Answer,
    /// The kernel's trace of connects.
    pub trace: Answer,
    /// sock_diag in the sandbox's namespace.
    pub diag: Answer,
    /// `/proc/<pid>/net/tcp{,6}`.
    pub pid_table: Answer,
    /// `/proc/net/tcp{,6}`.
    pub global_table: Answer,
    /// Who holds the socket.
    pub holding: Holding,
    /// Rows of the tables that could not be understood; more than zero hints at an unknown kernel.
    pub malformed_rows: u32,
    /// The client had reset the connection before all this was known.
    pub reset: bool,
}

/// One line of a [`Trail`]: a source's name and what it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// The source.
    pub source: Source,
    /// Its answer.
    pub answer: Answer,
}

impl Trail {
    /// The sources in the order they are asked.
    pub const fn accounts(&self) -> [Account; 5] {
        [
            Account { source: Source::Witness, answer: self.witness },
            Account { source: Source::Trace, answer: self.trace },
            Account { source: Source::Diag, answer: self.diag },
            Account { source: Source::PidTable, answer: self.pid_table },
            Account { source: Source::GlobalTable, answer: self.global_table },
        ]
    }

    /// The first source that knew the connection.
    pub fn found_by(&self) -> Option<Source> {
        self.accounts()
            .into_iter()
            .find(|account| account.answer == Answer::Found)
            .map(|account| account.source)
    }
}

/// `witness: not available; trace: not available; diag: found; pid-table: not tried; global-table: not tried; held by: one process, no other`
impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for account in self.accounts() {
            write!(f, "{}: {}; ", account.source, account.answer)?;
        }
        write!(f, "held by: {}", self.holding)?;
        if self.reset {
            f.write_str("; the connection was reset meanwhile")?;
        }
        if self.malformed_rows > 0 {
            write!(f, "; {} table rows not understood", self.malformed_rows)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_reads_as_one_line_with_every_source() {
        let trail = Trail {
            witness: Answer::Absent,
            trace: Answer::Gone,
            diag: Answer::NotFound,
            pid_table: Answer::Failed(nix::libc::EACCES),
            global_table: Answer::Found,
            holding: Holding::Nobody { processes: 12, unreadable: 2 },
            malformed_rows: 3,
            reset: true,
        };
        assert_eq!(
            trail.to_string(),
            "witness: not available; trace: found, but its process has ended; diag: not found; pid-table: failed: Permission denied; global-table: found; \
             held by: none of 12 processes, 2 of which could not be read; the connection was reset \
             meanwhile; 3 table rows not understood"
        );
        assert_eq!(trail.found_by(), Some(Source::GlobalTable));
    }

    #[test]
    fn labels_are_the_contract_of_events_and_metrics() {
        let labels = [
            Source::Witness,
            Source::Trace,
            Source::Diag,
            Source::PidTable,
            Source::GlobalTable,
            Source::None,
        ];
        assert_eq!(
            labels.map(Source::label),
            ["witness", "trace", "diag", "pid-table", "global-table", "none"]
        );
    }
}
