//! Wall-clock time as events carry it.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// A moment in UTC, to the microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(i64);

impl Time {
    /// This moment.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// A moment given in microseconds since 1970-01-01T00:00:00Z.
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    pub const fn unix_micros(self) -> i64 {
        self.0
    }

    /// This many microseconds before.
    #[must_use]
    pub fn earlier(self, micros: u64) -> Self {
        Self(self.0.saturating_sub_unsigned(micros))
    }
}

impl Serialize for Time {
    /// RFC 3339 with six digits of the second.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let stamp = Timestamp::from_microsecond(self.0).unwrap_or(Timestamp::MAX);
        serializer.collect_str(&format_args!("{stamp:.6}"))
    }
}
