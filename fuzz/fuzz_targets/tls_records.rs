#![no_main]

#[path = "../../proxy/tests/entry_points/tls.rs"]
mod tls;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tls::records(bytes));
