//! The functions behind the commands: they print and return an exit code; parsing the command line is not theirs.

pub mod check;
pub mod explain;
