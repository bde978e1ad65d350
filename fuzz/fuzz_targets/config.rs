#![no_main]

#[path = "../../proxy/tests/entry_points/policy.rs"]
mod policy;
#[path = "../../proxy/tests/policy_naive/mod.rs"]
mod policy_naive;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| policy::config(bytes));
