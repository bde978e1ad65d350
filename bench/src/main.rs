//! Load and yardsticks.
fn main() {}
