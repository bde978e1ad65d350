//! Confinement of one workload: what it may ask of the kernel, which files it may touch, which
//! privileges it holds, and a witness that says who tried to connect where.
//!
//! Owns: the seccomp filter and its table, the connect witness and its notes, the Landlock plan,
//! the privilege drop, and the launch that applies them in one visible order.
//! Never: namespaces' networking, policy, HTTP. It is handed a network namespace and enters it.
//!
//! The life of a workload:
//! 1. [`Launch`] describes it; [`launch()`] prepares everything that can fail or allocate
//!    (`launch/mod.rs`): BPF programs (`filter/`, `witness/program.rs`), the Landlock rule set
//!    (`filesystem.rs`), the capability sets (`privileges.rs`), its own mounts (`launch/mounts.rs`), every
//!    C string.
//! 2. A child is cloned, and `launch/child.rs` walks one ordered list of system calls up to execve.
//!    A step that fails names itself through a socket; nothing is executed.
//! 3. [`Child`] (`launch/process.rs`) is waited for, signalled, and given the terminal.
//! 4. Meanwhile [`Witness`] (`witness/`) answers each `connect`: it names the socket by giving it a
//!    source port, writes a [`Note`] into a ring that [`Notes`] reads, and lets the call continue. The fence's log
//!    line and the proxy's accepted connection carry the same port, so they join with the note exactly.
//!
//! [`harden`] confines Sluice's own threads. [`Enforcement`] says what holds, at what level, and what does not; [`probe::all`] says what this
//! kernel offers.

mod enforcement;
mod filesystem;
pub mod filter;
pub mod harden;
mod launch;
pub mod limits;
mod privileges;
pub mod probe;
mod syscalls;
pub mod witness;

pub use enforcement::{Enforcement, Level, Measure};
pub use filesystem::{FileLists, FilesystemError, LandlockPlan, Requirement};
pub use filter::{FilterOptions, Netlink};
pub use launch::{
    Child, ExitStatus, Launch, LaunchError, Namespaces, ReplacedFile, Signaller, Stdio, Step, Terminal,
    launch,
};
pub use privileges::{KEPT_BY_ROOT, User};
pub use probe::Probe;
pub use witness::{
    Call, Found, HowStarted, Join, Note, NoteWriter, Notes, Process, Proto, ProxyVariable, Refused, RingId,
    Untold, Witness, WitnessError, how_started, note_ring,
};
