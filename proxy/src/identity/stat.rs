//! Reads `/proc/<pid>/stat`. Pure.

/// The fields that identity needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat<'a> {
    /// The main thread's name, any bytes: spaces, parentheses and newlines too.
    pub comm: &'a [u8],
    /// The parent; 0 if it is outside the reader's pid namespace, or there is none.
    pub ppid: u32,
    /// Clock ticks after boot at which the process started: with the pid, its name for as long as the machine is up.
    pub start_time: u64,
    /// Where the program's code is in its memory; 0 in the midst of an exec, 1 if we may not know.
    pub start_code: u64,
}

/// Reads the one line of the file. The name is in parentheses and may itself contain any: it ends at the last one.
pub(super) fn parse(stat: &[u8]) -> Option<Stat<'_>> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let comm = stat.get(open.checked_add(1)?..close)?;
    let rest = std::str::from_utf8(stat.get(close.checked_add(1)?..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace(); // the first is field 3, the state
    let ppid = fields.nth(1)?.parse().ok()?;
    let start_time = fields.nth(17)?.parse().ok()?;
    let start_code = fields.nth(3)?.parse().ok()?; // field 26
    Some(Stat { comm, ppid, start_time, start_code })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAIL: &str =
        "S 41 4242 41 34816 4242 4194304 100 0 0 0 1 2 0 0 20 0 1 0 987654321 2000 10 99 4198400 0";

    #[test]
    fn the_parent_and_the_start_are_fields_4_and_22() {
        let line = format!("4242 (curl) {TAIL}\n");
        assert_eq!(
            parse(line.as_bytes()),
            Some(Stat { comm: b"curl", ppid: 41, start_time: 987_654_321, start_code: 4_198_400 })
        );
    }

    #[test]
    fn a_name_made_to_look_like_fields_does_not_shift_them() {
        for comm in
            ["a b", "a) S 1 (b", ")))", "", "x) R 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "new\nline"]
        {
            let line = format!("4242 ({comm}) {TAIL}\n");
            assert_eq!(
                parse(line.as_bytes()),
                Some(Stat {
                    comm: comm.as_bytes(),
                    ppid: 41,
                    start_time: 987_654_321,
                    start_code: 4_198_400
                }),
                "{comm:?}"
            );
        }
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        for line in ["", "4242", "4242 (curl", "4242 (curl) S", "4242 (curl) S 41 4242", ") ("] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse(&bytes);
        }
    }
}
