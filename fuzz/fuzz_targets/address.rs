#![no_main]

#[path = "../../proxy/tests/entry_points/address.rs"]
mod address;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| address::address(bytes));
