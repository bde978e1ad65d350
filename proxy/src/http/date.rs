//! `Date` (RFC 9110 section 5.6.7) from a number of seconds.

/// An IMF-fixdate: `Sun, 06 Nov 1994 08:49:37 GMT`. Cheap to copy; make one a second, not one a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpDate([u8; 29]);

impl HttpDate {
    /// Of this many seconds since 1970 in UTC. Years beyond 9999 are not told apart.
    pub fn from_unix(seconds: u64) -> Self {
        let seconds = seconds.min(LAST_SECOND);
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
        put(&mut text, 0, name(WEEKDAYS, (days + 4) % 7));
        put(&mut text, 5, &two(day));
        put(&mut text, 8, name(MONTHS, month - 1));
        put(&mut text, 12, &two(year / 100));
        put(&mut text, 14, &two(year % 100));
        put(&mut text, 17, &two(of_day / 3600));
        put(&mut text, 20, &two(of_day / 60 % 60));
        put(&mut text, 23, &two(of_day % 60));
        Self(text)
    }

    /// The 29 octets.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// 9999-12-31 23:59:59.
const LAST_SECOND: u64 = 253_402_300_799;
const WEEKDAYS: &[u8] = b"SunMonTueWedThuFriSat";
const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

/// Year, month and day of a number of days since 1970-01-01, by counting eras of 400 years that start on 1 March, so
/// that the leap day comes last (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn name(names: &'static [u8], index: u64) -> &'static [u8] {
    names.chunks(3).nth(index as usize).unwrap_or_default()
}

fn two(number: u64) -> [u8; 2] {
    [b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]
}

fn put(text: &mut [u8], at: usize, part: &[u8]) {
    text.iter_mut().skip(at).zip(part).for_each(|(to, from)| *to = *from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_imf_fixdates() {
        let rows = [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (LAST_SECOND, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ];
        for (seconds, text) in rows {
            assert_eq!(HttpDate::from_unix(seconds).as_bytes(), text.as_bytes(), "{seconds}");
        }
    }
}
