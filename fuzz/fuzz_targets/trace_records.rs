#![no_main]

#[path = "../../proxy/tests/entry_points/trace_records.rs"]
mod trace_records;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| trace_records::trace_records(bytes));
