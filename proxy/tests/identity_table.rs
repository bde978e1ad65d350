//! Replays the fuzz targets `proc_table` and `trace_records` on their corpora, and on what a little shuffling makes of
//! the first.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use std::fs;
use std::path::Path;

use proptest::prelude::*;

#[path = "entry_points/proc_table.rs"]
mod proc_table;
#[path = "entry_points/trace_records.rs"]
mod trace_records;

fn corpus(of: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(of);
    let files: Vec<_> =
        fs::read_dir(&corpus).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(!files.is_empty(), "{} is empty", corpus.display());
    files
}

#[test]
fn the_corpora_hold() {
    for bytes in corpus("proc_table") {
        proc_table::proc_table(&bytes);
    }
    for bytes in corpus("trace_records") {
        trace_records::trace_records(&bytes);
        for end in 0..bytes.len() {
            trace_records::trace_records(&bytes[..end]);
        }
    }
}

proptest! {
    #[test]
    fn mutations_of_the_corpus_hold(
        file: prop::sample::Index,
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(b'\n'), Just(b' '), Just(b':'), Just(b'0'), Just(b'F'), any::<u8>()]), 0..8),
        cut: prop::sample::Index,
    ) {
        let files = corpus("proc_table");
        let mut bytes = file.get(&files).clone();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        proc_table::proc_table(&bytes);
    }
}
