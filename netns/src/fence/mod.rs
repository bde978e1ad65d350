//! The fences: what a sandbox may send, enforced by the kernel.
//!
//! The **inner fence** (`inner.rs`) is one `inet` table in the sandbox's own namespace. It accepts what stays inside
//! (the proxy, local servers) and counts, logs and refuses the rest at once. It is stateless: a single `ct`
//! expression would switch connection tracking on for the whole namespace, which costs more than everything else.
//!
//! The **host fence** (`host.rs`) is one `netdev` table in the host's namespace for all sandboxes that have links of
//! their own: whatever a workload does to its namespace, this it cannot reach.
//!
//! A fence is described as a value (pure: `rules.rs`, `inner.rs`), loaded by `nft` as one transaction and read back
//! (`nft.rs`). One daemon at a time owns the host fence (`owner.rs`). Counters are read in `counters.rs`, without `nft` through `scrape.rs`.

mod counters;
mod host;
mod inner;
mod nft;
mod owner;
mod prefix;
mod rules;
mod scrape;

pub use counters::{CounterReader, Counters, HostCounterReader, Traffic};
pub use host::{Admit, GuardedLink, HostFence, LinkName};
pub use inner::InnerFence;
pub use owner::HostFenceOwner;
pub use prefix::LogPrefix;
pub use rules::{LogInto, LogLimit};

pub(crate) use counters::read as read_counters;
pub(crate) use inner::remove_from_own as remove_inner_from_own;
pub(crate) use nft::version as nft_version;
pub(crate) use scrape::CounterSocket;
