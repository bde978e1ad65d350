//! Which rules a program comes under, found once per process.
//!
//! Rules repeat the same few lists of binaries, so compilation gives every distinct list a number. [`Table::classify`]
//! turns a program and its ancestors into the set of lists they match; a decision then tests one bit per endpoint.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use smallvec::SmallVec;

use super::model::BinaryPattern;

/// What is known of the process that asks.
#[derive(Clone, Copy, Debug)]
pub struct BinaryFacts<'a> {
    /// The program it runs.
    pub exe: Program<'a>,
    /// The programs of its ancestors, nearest first.
    pub ancestors: &'a [Program<'a>],
}

/// A program's image.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Absolute, symlinks resolved, as `/proc/<pid>/exe` shows it in the sandbox.
    pub path: &'a Path,
    /// Of the running image; without it an entry with `sha256` does not match.
    pub sha256: Option<&'a [u8; 32]>,
}

/// The lists a process matches; good for every policy with the same lists, so it survives most reloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinarySet {
    lists: SmallVec<[u64; 2]>,
    table: u64,
    exe: Arc<Path>,
}

impl BinarySet {
    /// The program it was made for.
    pub fn exe(&self) -> &Arc<Path> {
        &self.exe
    }

    pub(super) fn holds(&self, list: u32) -> bool {
        self.lists.get(list as usize / 64).is_some_and(|word| word & (1 << (list % 64)) != 0)
    }

    pub(super) fn is_of(&self, table: &Table) -> bool {
        self.table == table.id
    }
}

/// An entry of a list with its target, if the path is a symlink in the sandbox's view.
#[derive(Clone, Debug)]
struct Entry {
    pattern: BinaryPattern,
    lists: Vec<u32>,
}

/// All lists of one policy.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// Entries with a plain path, under that path and under what it links to.
    exact: HashMap<Box<[u8]>, Vec<u32>>,
    /// Entries with a wildcard.
    globs: Vec<u32>,
    entries: Vec<Entry>,
    lists: u32,
    /// The same for tables with the same lists.
    id: u64,
}

impl Table {
    /// Builds the table; list `n` of `lists` gets the number `n`. `links` resolves a path in the sandbox's view.
    pub(super) fn new(lists: &[&[BinaryPattern]], links: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut table = Self { lists: lists.len() as u32, ..Self::default() };
        let mut known: HashMap<&BinaryPattern, usize> = HashMap::new();
        let mut hasher = DefaultHasher::new();
        lists.hash(&mut hasher);
        for (number, list) in lists.iter().enumerate() {
            for pattern in *list {
                let index = *known.entry(pattern).or_insert_with(|| table.add(pattern, links, &mut hasher));
                if let Some(entry) = table.entries.get_mut(index) {
                    entry.lists.push(number as u32);
                }
            }
        }
        table.id = hasher.finish();
        table
    }

    fn add(
        &mut self,
        pattern: &BinaryPattern,
        links: &dyn Fn(&str) -> Option<String>,
        hasher: &mut DefaultHasher,
    ) -> usize {
        let index = self.entries.len();
        self.entries.push(Entry { pattern: pattern.clone(), lists: Vec::new() });
        match pattern.path.literal() {
            None => self.globs.push(index as u32),
            Some(path) => {
                self.exact.entry(path.into()).or_default().push(index as u32);
                let target = links(pattern.path.text()).filter(|target| target.as_bytes() != path);
                target.hash(hasher);
                if let Some(target) = target {
                    self.exact.entry(target.into_bytes().into()).or_default().push(index as u32);
                }
            }
        }
        index
    }

    /// Whether an entry needs the hash of a program.
    pub(super) fn pins_hashes(&self) -> bool {
        self.entries.iter().any(|entry| entry.pattern.sha256.is_some())
    }

    /// The lists that the process or one of its ancestors is on.
    pub(super) fn classify(&self, facts: &BinaryFacts<'_>) -> BinarySet {
        let words = (self.lists as usize).div_ceil(64);
        let lists = SmallVec::from_elem(0, words);
        let mut set = BinarySet { lists, table: self.id, exe: Arc::from(facts.exe.path) };
        for program in std::iter::once(&facts.exe).chain(facts.ancestors) {
            let path = program.path.as_os_str().as_bytes();
            let exact = self.exact.get(path).map(Vec::as_slice).unwrap_or_default();
            for entry in exact.iter().filter_map(|&index| self.entries.get(index as usize)) {
                set.add(entry, program);
            }
            for entry in self.globs.iter().filter_map(|&index| self.entries.get(index as usize)) {
                if entry.pattern.path.matches(path) {
                    set.add(entry, program);
                }
            }
        }
        set
    }
}

impl BinarySet {
    fn add(&mut self, entry: &Entry, program: &Program<'_>) {
        if entry.pattern.sha256.is_some_and(|wanted| program.sha256 != Some(&wanted)) {
            return;
        }
        for &list in &entry.lists {
            if let Some(word) = self.lists.get_mut(list as usize / 64) {
                *word |= 1 << (list % 64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::glob::{Glob, Separator};
    use super::*;

    fn pattern(path: &str, sha256: Option<[u8; 32]>) -> BinaryPattern {
        BinaryPattern { path: Glob::new(path, Separator::Slash).unwrap(), sha256 }
    }

    fn program(path: &str) -> Program<'_> {
        Program { path: Path::new(path), sha256: None }
    }

    fn lists(table: &Table, facts: &BinaryFacts<'_>) -> Vec<u32> {
        let set = table.classify(facts);
        (0..table.lists).filter(|&list| set.holds(list)).collect()
    }

    #[test]
    fn a_process_is_on_the_lists_of_its_program_and_its_ancestors() {
        let curl = [pattern("/usr/bin/curl", None)];
        let shells = [pattern("/bin/*sh", None), pattern("/usr/bin/curl", None)];
        let deep = [pattern("/opt/**/node", None)];
        let table = Table::new(&[&curl, &shells, &deep], &|_| None);
        let alone = |path| lists(&table, &BinaryFacts { exe: program(path), ancestors: &[] });
        assert_eq!(alone("/usr/bin/curl"), [0, 1]);
        assert_eq!(alone("/bin/bash"), [1]);
        assert_eq!(alone("/bin/x/sh"), [0_u32; 0]);
        assert_eq!(alone("/opt/a/b/node"), [2]);
        assert_eq!(alone("/usr/bin/curl2"), [0_u32; 0]);
        let facts =
            BinaryFacts { exe: program("/usr/bin/env"), ancestors: &[program("/bin/x"), program("/bin/sh")] };
        assert_eq!(lists(&table, &facts), [1]);
    }

    #[test]
    fn an_entry_is_also_what_it_links_to() {
        let python = [pattern("/usr/bin/python3", None)];
        let links = |path: &str| (path == "/usr/bin/python3").then(|| "/usr/bin/python3.11".to_owned());
        let table = Table::new(&[&python], &links);
        let facts = BinaryFacts { exe: program("/usr/bin/python3.11"), ancestors: &[] };
        assert_eq!(lists(&table, &facts), [0]);
        let other = Table::new(&[&python], &|_| None);
        assert!(!other.classify(&facts).is_of(&table), "the tables differ in what they resolve");
    }

    #[test]
    fn a_pinned_program_needs_its_hash() {
        let pinned = [pattern("/usr/bin/curl", Some([7; 32]))];
        let table = Table::new(&[&pinned], &|_| None);
        let cases: [(_, &[u32]); 3] = [(None, &[]), (Some(&[7; 32]), &[0]), (Some(&[8; 32]), &[])];
        for (sha256, expected) in cases {
            let exe = Program { path: Path::new("/usr/bin/curl"), sha256 };
            assert_eq!(lists(&table, &BinaryFacts { exe, ancestors: &[] }), expected);
        }
    }

    #[test]
    fn many_lists_fit() {
        let lists_of: Vec<_> = (0..200).map(|n| [pattern(&format!("/bin/{n}"), None)]).collect();
        let slices: Vec<&[BinaryPattern]> = lists_of.iter().map(|l| &l[..]).collect();
        let table = Table::new(&slices, &|_| None);
        assert_eq!(lists(&table, &BinaryFacts { exe: program("/bin/199"), ancestors: &[] }), [199]);
    }
}
