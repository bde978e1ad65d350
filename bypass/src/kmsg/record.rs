//! A record of `/dev/kmsg`: `prio,seq,time,flags[,more];text`, then continuation lines ` KEY=value`.

/// One record; `text` still has the kernel's escapes (`\x..` for control bytes, backslash and bytes ≥ 127).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Syslog facility. 0 is the kernel; what user space writes to the device never has 0.
    pub facility: u32,
    /// Syslog level, 0 (emergency) to 7 (debug).
    pub level: u8,
    /// Number of the record since boot. It is consecutive: a gap is a loss.
    pub seq: u64,
    /// µs since boot on the kernel's log clock, which is not CLOCK_MONOTONIC.
    pub time_us: u64,
    /// The message, without its newline and without continuation lines.
    pub text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Splits one record as read(2) gives it. `None` if it has not the form of a record.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (prio, rest) = number(bytes)?;
        let (seq, rest) = number(rest.strip_prefix(b",")?)?;
        let (time_us, rest) = number(rest.strip_prefix(b",")?)?;
        let rest = rest.strip_prefix(b",")?;
        // Flags, and whatever later kernels put behind them (`caller=T123`).
        let semicolon = rest.iter().position(|&byte| byte == b';')?;
        let text = rest.get(semicolon + 1..)?;
        let end = text.iter().position(|&byte| byte == b'\n').unwrap_or(text.len());
        Some(Self {
            facility: u32::try_from(prio >> 3).ok()?,
            level: (prio & 7) as u8,
            seq,
            time_us,
            text: text.get(..end)?,
        })
    }
}

/// Decimal digits off the front; `None` for none at all and for more than 64 bits.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    let mut rest = bytes;
    while let Some((digit @ b'0'..=b'9', after)) = rest.split_first() {
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        rest = after;
    }
    if rest.len() == bytes.len() { None } else { Some((value, rest)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_split_with_and_without_further_fields_and_continuation_lines() {
        let plain = Record::parse(b"4,345,1036056335,-;hello\n").unwrap();
        assert_eq!(plain, Record { facility: 0, level: 4, seq: 345, time_us: 1_036_056_335, text: b"hello" });
        let full = Record::parse(b"30,7,1,c,caller=T12;a;b,c\n SUBSYSTEM=x\n DEVICE=y\n").unwrap();
        assert_eq!((full.facility, full.level, full.text), (3, 6, &b"a;b,c"[..]));
        assert_eq!(Record::parse(b"0,0,0,-;").unwrap().text, b"");
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bytes in [
            &b""[..],
            b"x",
            b"4",
            b"4,",
            b"4,5,6;text",
            b"4,5,6,-",
            b"-4,5,6,-;t",
            b"4,99999999999999999999,6,-;t",
            b"99999999999999,5,6,-;t",
        ] {
            assert_eq!(Record::parse(bytes), None, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
