//! docs/conformance.md names tests: each of them exists.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use std::collections::HashSet;
use std::fs;
use std::path::Path;

#[test]
fn every_test_the_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("../docs/conformance.md")).unwrap();
    let mut sources = String::new();
    gather(&root.join("src"), &mut sources);
    let units = functions(&sources);
    let mut named = 0;
    // Between back quotes, every other piece.
    for name in table.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once("::").filter(|(file, _)| !file.contains(':')) else {
            continue;
        };
        let found = if file == "unit" {
            units.contains(test)
        } else {
            let path = root.join("tests").join(file).with_extension("rs");
            fs::read_to_string(path).is_ok_and(|source| functions(&source).contains(test))
        };
        assert!(found, "docs/conformance.md names {name}, which does not exist");
        named += 1;
    }
    assert!(named > 100, "{named} tests named");
}

fn functions(source: &str) -> HashSet<&str> {
    source
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("fn ")?.split_once('('))
        .map(|(name, _)| name)
        .collect()
}

fn gather(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}
