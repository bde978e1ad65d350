//! TLS: the first message of a tunnel, read in passing, and the inside of those that a policy wants to judge.
//!
//! Pure but for [`signer`], which is a thread, and [`roots`], which reads files: the sockets are the workers'.
//!
//! The life of a look inside: a worker reads the client's first octets ([`client_hello`]) and holds the name in them
//! against the host that was judged. If the policy judges requests there, it asks the sandbox' [`interception`] for a
//! leaf of the sandbox' own [`authority`], signed on the [`signer`]'s thread the first time, and shakes hands with the
//! client, then with the origin, whose certificate is held against [`roots`] (once a
//! minute and chain: `verified`); [`problem`] says in words what is wrong
//! with it. From there on [`records`] turns sealed octets into plain ones, and the HTTP engine does not know the
//! difference. [`truststore`] and [`roots::bundle`] are what the workload trusts.

mod asked;
pub mod authority;
pub mod client_hello;
pub mod interception;
mod lending;
pub mod names;
pub mod problem;
pub mod records;
pub mod roots;
pub mod signer;
pub mod truststore;
mod verified;

pub use interception::{Interception, Oldest, Trust};
pub use names::Names;
pub use problem::Problem;
pub use records::Records;
pub use roots::Roots;
