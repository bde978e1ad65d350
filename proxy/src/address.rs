//! Address classes and the guard in front of every dial.
