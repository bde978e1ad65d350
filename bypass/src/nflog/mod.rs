//! NFLOG: the packet log as netlink messages (`log group N` in a rule), for hosts that keep dmesg clean or where
//! CAP_SYSLOG is not to be had. One socket per network namespace; nothing of it passes through printk, so
//! neither `nf_log_all_netns` nor the ring's size matters, and readers are woken at once.
//!
//! [`message`] reads the netlink messages, [`packet`] the packet headers in them, [`socket`] owns the socket.

pub mod message;
pub mod packet;
pub mod socket;

pub use message::{messages, parse};
pub use socket::{Outcome, Socket};
