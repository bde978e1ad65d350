//! `sluice serve`.
use super::ServeArgs;
/// Runs.
pub fn run(_args: &ServeArgs) -> u8 { 0 }
