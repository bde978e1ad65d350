//! Noticing that a file was replaced or rewritten, by looking at it now and then.
//!
//! Looking beats being told here: it works on every file system and overlay, and it sees what an inotify watch on the
//! file or on its folder does not: a ConfigMap's files are links into `..data/`, itself a link that is swapped. What is
//! compared is what the path leads to now: device, inode, size and both times.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What a path leads to; none if nothing can be seen there.
type Seen = Option<(u64, u64, u64, [i64; 4])>;

/// Files whose changes matter.
#[derive(Debug, Default)]
pub struct Changes {
    files: Vec<(PathBuf, Seen)>,
    /// Something has changed, and may be changing still.
    stirred: bool,
}

impl Changes {
    /// From now on these, as they are now. What was not told of those that stay is not forgotten.
    pub fn watch<P: AsRef<Path>>(&mut self, paths: impl IntoIterator<Item = P>) {
        let before = std::mem::take(&mut self.files);
        for path in paths {
            let path = path.as_ref();
            if self.files.iter().all(|(known, _)| known != path) {
                let known = before.iter().find(|(known, _)| known == path).map(|(_, seen)| *seen);
                self.files.push((path.to_owned(), known.unwrap_or_else(|| look(path))));
            }
        }
    }

    /// The files are about to be read whatever they are: only what changes from here on is news.
    pub fn look_again(&mut self) {
        for (path, seen) in &mut self.files {
            *seen = look(path);
        }
        self.stirred = false;
    }

    /// Looks. True once for a change that is over: at this look everything was as at the last one. So a file that is
    /// being written is not read half way, as long as its writer does not pause.
    pub fn settled(&mut self) -> bool {
        let mut stirs = false;
        for (path, seen) in &mut self.files {
            let now = look(path);
            stirs |= now != *seen;
            *seen = now;
        }
        let settled = self.stirred && !stirs;
        self.stirred = stirs;
        settled
    }
}

fn look(path: &Path) -> Seen {
    let data = fs::metadata(path).ok()?;
    Some((
        data.dev(),
        data.ino(),
        data.size(),
        [data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()],
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn told(changes: &mut Changes) -> bool {
        // One look sees the change, the next that it is over.
        let early = changes.settled();
        assert!(!early, "told while it may still be changing");
        changes.settled()
    }

    #[test]
    fn every_way_of_replacing_a_file_is_noticed_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("one")).unwrap();
        fs::create_dir(at("two")).unwrap();
        fs::write(at("one/p.yaml"), "1").unwrap();
        fs::write(at("two/p.yaml"), "2").unwrap();
        symlink("one", at("..data")).unwrap();
        symlink("..data/p.yaml", at("p.yaml")).unwrap();
        let mut changes = Changes::default();
        changes.watch([at("p.yaml"), at("p.yaml")]);
        assert!(!told(&mut changes) && !changes.settled(), "nothing has changed");
        // As a kubelet swaps a ConfigMap.
        symlink("two", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert!(told(&mut changes));
        assert!(!changes.settled() && !changes.settled(), "told once");
        // In place, and by renaming over it.
        fs::write(at("two/p.yaml"), "three").unwrap();
        assert!(told(&mut changes));
        fs::write(at("new"), "4").unwrap();
        fs::rename(at("new"), at("two/p.yaml")).unwrap();
        assert!(told(&mut changes));
        fs::remove_file(at("two/p.yaml")).unwrap();
        assert!(told(&mut changes));
        fs::write(at("two/p.yaml"), "5").unwrap();
        assert!(told(&mut changes));
    }

    #[test]
    fn a_change_between_loading_and_watching_anew_is_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.yaml");
        fs::write(&path, "1").unwrap();
        let mut changes = Changes::default();
        changes.watch([&path]);
        fs::write(&path, "two").unwrap();
        changes.watch([&path]);
        assert!(told(&mut changes));
        fs::write(&path, "three").unwrap();
        changes.look_again();
        assert!(!told(&mut changes), "somebody read it meanwhile");
    }
}
