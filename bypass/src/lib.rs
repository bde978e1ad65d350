//! What the fence refused, told while it happens.
//!
//! **Owns** the reading of the kernel's packet log (`/dev/kmsg`, or NFLOG netlink messages), the parsers of its
//! lines, the account of what was lost on the way, the folding of repetitions, and the hint that tells a person
//! or an agent what to change. **Never** knows who a process is (it is told), decides nothing, writes no event.
//!
//! The life of a refused connect:
//!
//! 1. The fence's log rule makes the kernel print one record; [`monitor`] wakes on its own pinned thread and
//!    reads it ([`kmsg::Reader`], or [`nflog::Socket`] on hosts that keep their dmesg clean).
//! 2. [`kmsg::Record`] splits the record's head from its text; [`loss::Sequence`] sees whether records are
//!    missing before it.
//! 3. [`kmsg::parse_text`] checks the facility and the fence's [`Tag`] and yields an [`Attempt`]
//!    (or says: foreign, forged, malformed).
//! 4. The owner's [`Sink`] gets it, finds the process (by the witness's note, or by identity's other means), and asks
//!    [`fold::Fold`] whether it is news or a repetition, and [`hint::hint`] what to advise.
//! 5. [`probe`] tells `doctor` beforehand whether all this works on a host.
//!
//! Everything but `monitor`, `kmsg::Reader`, `nflog::Socket` and `probe` is pure: bytes and times in, values out.

pub mod attempt;
pub mod clock;
pub mod fold;
pub mod hint;
pub mod kmsg;
pub mod limits;
pub mod loss;
pub mod monitor;
pub mod nflog;
pub mod probe;
pub mod tag;

pub use attempt::{Attempt, Icmp, Interface, Line, Malformed, Proto, TcpFlags};
pub use fold::{Emission, Fold, Key};
pub use hint::{Context, Hint, HintCode, ProxyEnv, hint};
pub use loss::Loss;
pub use monitor::{Handle, Moment, Monitor, MonitorError, Settings, Sink, Totals};
pub use tag::{Fence, Tag};
