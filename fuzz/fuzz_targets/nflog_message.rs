//! A datagram of NFLOG netlink messages: nothing panics, every message is inside the datagram, and an attempt's
//! addresses are of one family.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_bypass::{Line, nflog};

fuzz_target!(|datagram: &[u8]| {
    let mut bytes = 0;
    for message in nflog::messages(datagram) {
        bytes += message.len();
        if let (_, Line::Attempt(attempt)) = nflog::parse(message, 0) {
            assert_eq!(attempt.src.is_ipv4(), attempt.dst.is_ipv4());
        }
    }
    assert!(bytes <= datagram.len());
});
