//! A sandbox's network: its namespace, the addresses and routes in it, sockets made inside it, the fences
//! around it, its counters, and the removal of all of that.
//!
//! This crate never decides what a workload may reach (that is policy), never speaks HTTP, and never starts a
//! workload: it makes the place where one runs and guarantees that nothing leaves it except through sockets the
//! host put there.
//!
//! # The life of a sandbox
//!
//! 1. [`Sandbox::create`] (`sandbox.rs`) claims a directory under the state directory and locks it for as long as
//!    its owner lives (`state/`), and makes sure the kernel logs from namespaces at all (`nf_log.rs`).
//!    [`Sandbox::attach`] (`attach.rs`) takes a namespace that exists instead of making one.
//! 2. A short-lived thread makes the namespace and pins it with a bind mount (`namespace.rs`, `enter.rs`), brings
//!    up `lo` with the proxy's address and default routes that end there (`links.rs`), and loads the inner fence,
//!    reading it back before anything may run (`fence/`).
//! 3. [`Sandbox::listeners`] makes the proxy's listening sockets inside (`listeners.rs`). The host accepts on them;
//!    that is the one way out.
//! 4. [`Sandbox::counters`] tells what was refused (`fence/counters.rs`).
//! 5. [`Sandbox::destroy`] kills what still runs inside (`processes.rs`), unmounts, removes and unlocks. If the
//!    owner dies first, the lock is free and [`sweep`] (`sweep.rs`) does the same later, and only for the dead.
//!
//! A daemon's sandboxes are kept: no sweep removes them, and its successor takes each over as it is
//! ([`Sandbox::adopt`], `adopt.rs`).
//!
//! Sandboxes that have links of their own also need [`HostFence`] (`fence/host.rs`), one table for all of them.
//!
//! [`probe`] answers beforehand whether a host can do all this. Every bound is named in [`limits`].
//!
//! ```no_run
//! use sluice_netns::{Sandbox, Spec};
//!
//! let sandbox = Sandbox::create(&Spec::new("agent-7".parse()?))?;
//! let listeners = sandbox.listeners(2)?; // hand them to the proxy's workers
//! // … run a workload in `sandbox.netns()` …
//! println!("{} direct attempts refused", sandbox.counters()?.refused_packets());
//! sandbox.destroy()?;
//! # drop(listeners);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adopt;
mod attach;
mod enter;
mod error;
pub mod fence;
mod island;
mod kernel;
pub mod limits;
mod links;
mod listeners;
mod name;
mod namespace;
mod nf_log;
pub mod probe;
mod processes;
mod removal;
mod sandbox;
mod state;
mod sweep;
mod token;

pub use attach::Target;
pub use enter::inside;
pub use error::Error;
pub use fence::{
    Admit, CounterReader, Counters, GuardedLink, HostCounterReader, HostFence, HostFenceOwner, LinkName,
    LogInto, LogLimit, LogPrefix, Traffic,
};
pub use island::island;
pub use name::SandboxName;
pub use namespace::NamespaceId;
pub use sandbox::{Kind, Sandbox, Spec};
pub use sweep::{Outcome, Swept, discard, discard_empty, kept, sweep};
pub use token::LogToken;
