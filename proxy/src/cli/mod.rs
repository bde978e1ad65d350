//! The functions behind the commands: they print and return an exit code; parsing the command line is not theirs.

/// `sluice check`.
pub mod check;
/// `sluice explain`.
pub mod explain;
