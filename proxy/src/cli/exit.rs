//! Exit codes of the command line (BSD sysexits), and the shell's for a workload.

/// Fine.
pub const OK: u8 = 0;
/// `explain`: denied.
pub const DENIED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 64;
/// A kernel feature, tool or permission is missing.
pub const UNAVAILABLE: u8 = 69;
/// Sluice failed.
pub const INTERNAL: u8 = 70;
/// Bad config or policy.
pub const CONFIG: u8 = 78;
