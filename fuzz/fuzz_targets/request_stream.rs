#![no_main]

#[path = "../../proxy/tests/entry_points/http.rs"]
mod http;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| http::request_stream(bytes));
