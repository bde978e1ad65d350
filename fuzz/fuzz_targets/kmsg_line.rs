//! A record of /dev/kmsg: nothing panics, and only the kernel's lines with a whole tag are attempts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_bypass::{Line, Tag, kmsg};

fuzz_target!(|bytes: &[u8]| {
    let Some((record, line)) = kmsg::parse(bytes) else { return };
    match line {
        Line::Attempt(attempt) => {
            assert_eq!(record.facility, 0);
            assert_eq!(attempt.src.is_ipv4(), attempt.dst.is_ipv4());
            assert!(record.text.starts_with(attempt.tag.to_string().as_bytes()));
        }
        Line::Forged => assert_ne!(record.facility, 0),
        Line::Foreign => assert!(Tag::strip(record.text).is_none()),
        Line::Malformed(_) => assert_eq!(record.facility, 0),
    }
});
