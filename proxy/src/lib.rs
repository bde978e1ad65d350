//! The egress proxy of Sluice: the command, the configuration and the policy, who asks, HTTP, the workers that carry
//! bytes, and the control plane around them.
//!
//! It owns the wiring of the whole appliance. Raw nft and netlink are in `sluice-netns`, seccomp and Landlock in
//! `sluice-seccomp`, the kernel log in `sluice-bypass`; nothing of theirs is repeated here.
//!
//! The life of a connection: [`made`] or [`cli::serve`] gives the [`appliance`] a [`sandbox`] with its listeners;
//! a [`worker`] accepts, reads a head ([`http`]), asks who ([`identity`]) and whether ([`policy`]), resolves
//! ([`control::names`]), holds the addresses against the guard ([`address`]), dials and relays. The life of a bypass
//! attempt: the kernel refuses and logs it, the bypass core hands it to [`watch`], which names the process. Both end as
//! an [`event`].
//!
//! Pure, tested and fuzzed without a socket: [`address`], [`destination`], [`diagnostic`], [`http`], [`pace`], [`policy`],
//! [`tls`], [`yaml`], [`identity::table`]. Drivers own the descriptors: [`worker`], [`control`], [`made`], [`watch`].

pub mod address;
pub mod admin;
pub mod appliance;
pub mod cli;
pub mod config;
pub mod confine;
pub mod confined;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod destination;
pub mod diagnostic;
pub mod event;
pub mod http;
pub mod identity;
pub mod limits;
pub mod made;
pub mod measures;
pub mod pace;
pub mod policy;
pub mod preflight;
pub mod reload;
pub mod resolv_conf;
pub mod running;
pub mod sandbox;
pub mod signals;
pub mod tls;
pub mod trusted;
pub mod watch;
pub mod worker;
pub mod yaml;
