//! Who may reach what: read from a file, compiled to tables, asked for every connection and request.
//!
//! Owns the policy language and every decision. Never opens a socket, resolves a name, reads a clock or keeps state:
//! the same policy and the same [`Ask`] always give the same answer. Only [`load`] touches the file system, to read
//! the policy.
//!
//! The life of a policy: [`load`] turns text into a [`PolicyFile`] or into every error at once (`load.rs`,
//! `load_rules.rs`, `load_requests.rs`, over the types of `model.rs`); [`Policy::compile`] makes the tables (`compile.rs`, with names in
//! `trie.rs` and programs in `binaries.rs`).
//!
//! The life of a decision: identity hands in [`BinaryFacts`] once per process and keeps the [`BinarySet`];
//! [`decide`](decide()) finds the endpoints for the host and port, tests the set, and, for a request, brings its path
//! into one spelling (`path.rs`) and judges it (`requests.rs`). It answers with a [`Permit`], which no one else can
//! make and every dial needs, or with a [`Deny`] that knows what was nearly allowed (`deny.rs`).
//!
//! What was seen can be turned back into a policy (`suggest.rs`), and what was denied into what is missing from one
//! (`denials.rs`).
//!
//! # How several endpoints go together
//!
//! 1. An endpoint matches a connection when its host, its port and one of its rule's binaries do. One match is
//!    enough. If nothing matches but for the binary, an endpoint with `enforcement: audit` lets it pass, flagged.
//! 2. If any matching endpoint judges requests, all requests are judged, and only such endpoints can allow one.
//! 3. Of those whose `path` selects a request, every `deny_rules` counts and the most specific `path` may allow.
//! 4. The address that a name resolves to must satisfy one of the endpoints that allowed.

mod binaries;
mod compile;
mod decide;
mod denials;
mod deny;
pub mod glob;
pub mod host;
mod load;
mod load_requests;
mod load_rules;
pub mod model;
pub mod path;
pub mod query;
mod requests;
mod suggest;
mod trie;

pub use binaries::{BinaryFacts, BinarySet, Program};
pub use compile::Policy;
pub use decide::{AddressRule, Ask, Asker, Kind, Permit, Protocol, Request, decide};
pub use denials::{Denial, Way, learn, suggest};
pub use deny::{DeniedRequest, Deny, Miss, NEAR_MISSES_MAX, NearMiss, Reason, hint};
pub(crate) use load::from_tree;
pub use load::{
    FILESYSTEM_PATHS_MAX, Loaded, PATH_OCTETS_MAX, Source, builtin, host_links, links_in, load, parse, read,
};
pub use model::{Account, Confinement, Endpoint, Enforcement, LandlockLevel, Netlink, PolicyFile, Sni};
pub use suggest::{Observed, Suggestion};
