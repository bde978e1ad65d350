//! Replays what fuzzing found through the checks the fuzz targets run, on the stable compiler and without libFuzzer.

use std::fs;
use std::path::Path;

#[path = "entry_points/address.rs"]
mod address;
#[path = "entry_points/http.rs"]
mod http;
#[path = "entry_points/tls.rs"]
mod tls;

/// Runs `check` on every file of the target's corpus, of which there must be some.
fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let mut replayed = 0;
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", corpus.display())).path();
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        println!("{}", path.display());
        check(&bytes);
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", corpus.display());
}

#[test]
fn request_heads() {
    replay("request_head", http::request_head);
}

#[test]
fn response_heads() {
    replay("response_head", http::response_head);
}

#[test]
fn chunked_bodies() {
    replay("chunked_body", http::chunked_body);
}

#[test]
fn forward_targets() {
    replay("forward_target", http::forward_target);
}

#[test]
fn request_streams() {
    replay("request_stream", http::request_stream);
}

#[test]
fn tls_records() {
    replay("tls_records", tls::records);
}

#[test]
fn client_hellos() {
    replay("client_hello", tls::client_hello);
}

#[test]
fn addresses() {
    replay("address", address::address);
}
