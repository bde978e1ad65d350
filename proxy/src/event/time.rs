//! Wall-clock time as events carry it.

use std::cell::Cell;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

const MICROS_PER_S: i64 = 1_000_000;
/// Octets of `2023-11-14T22:13:20`.
const SECOND_OCTETS: usize = 19;

/// A moment in UTC, to the microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(i64);

impl Time {
    /// This moment.
    pub fn now() -> Self {
        Self::of(SystemTime::now())
    }

    /// That moment; none before 1970.
    pub fn of(moment: SystemTime) -> Self {
        let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
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

    /// Appends it as RFC 3339 with six digits of the second. The calendar is asked once a second and thread.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        thread_local! {
            static LAST: Cell<(i64, [u8; SECOND_OCTETS])> = const { Cell::new((i64::MIN, [0; SECOND_OCTETS])) };
        }
        let second = self.0.div_euclid(MICROS_PER_S);
        let mut last = LAST.get();
        if last.0 != second {
            let text = format!("{:.0}", self.stamp());
            let Ok(octets) = text.as_bytes()[..text.len().saturating_sub(1)].try_into() else {
                // A year that four digits do not hold.
                return drop(write!(out, "{:.6}", self.stamp()));
            };
            last = (second, octets);
            LAST.set(last);
        }
        out.extend_from_slice(&last.1);
        let mut fraction = *b".000000Z";
        let mut micros = self.0.rem_euclid(MICROS_PER_S);
        for digit in fraction[1..7].iter_mut().rev() {
            *digit += (micros % 10) as u8;
            micros /= 10;
        }
        out.extend_from_slice(&fraction);
    }

    fn stamp(self) -> Timestamp {
        Timestamp::from_microsecond(self.0).unwrap_or(Timestamp::MAX)
    }
}

impl Serialize for Time {
    /// RFC 3339 with six digits of the second.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.stamp()))
    }
}
