#![no_main]

#[path = "../../proxy/tests/entry_points/proc_table.rs"]
mod proc_table;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proc_table::proc_table(bytes));
