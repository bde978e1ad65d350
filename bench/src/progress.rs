//! One line on stderr that says what is running; only when a person is looking.

use std::cell::Cell;
use std::io::{IsTerminal, Write, stderr};

/// The line. Silent unless stderr is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    live: bool,
    heading: String,
    shown: Cell<bool>,
}

impl Progress {
    /// A line that begins with `heading`.
    pub(crate) fn new(heading: impl Into<String>) -> Self {
        Self { live: stderr().is_terminal(), heading: heading.into(), shown: Cell::new(false) }
    }

    /// No line at all, for a run beside another.
    pub(crate) fn silent() -> Self {
        Self { live: false, heading: String::new(), shown: Cell::new(false) }
    }

    /// Replaces the line.
    pub(crate) fn show(&self, what: &str) {
        if self.live {
            self.shown.set(true);
            let _ = write!(stderr(), "\r\x1b[2K{}: {what}", self.heading);
            let _ = stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.get() {
            let _ = write!(stderr(), "\r\x1b[2K");
        }
    }
}
