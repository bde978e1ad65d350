//! The real programs, where this machine has them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{Outcome, Scene};

/// The file that runs when `name` is called, links resolved.
pub(crate) fn program(name: &str) -> String {
    let path = std::env::var_os("PATH").expect("PATH");
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file());
    resolved(&found.unwrap_or_else(|| panic!("{name} is not installed: `make test` installs what is needed")))
}

/// The Python interpreter itself: what stands in `PATH` may be a script that looks for one.
pub(crate) fn python() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| itself("python3", &["-c", "import sys; print(sys.executable)"]))
}

/// Node.js itself.
pub(crate) fn node() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| itself("node", &["-p", "process.execPath"]))
}

fn itself(name: &str, question: &[&str]) -> String {
    let answer = Command::new(name).args(question).output();
    let answer =
        answer.unwrap_or_else(|error| panic!("{name}: {error}; `make test` installs what is needed"));
    assert!(answer.status.success(), "{name}: {answer:?}");
    resolved(&PathBuf::from(String::from_utf8(answer.stdout).expect("UTF-8").trim()))
}

fn resolved(path: &Path) -> String {
    path.canonicalize().expect("a program").into_os_string().into_string().expect("UTF-8")
}

/// Runs any command line in a scene, Sluice's own or another.
pub(crate) fn run<S: AsRef<str>>(scene: &Scene, line: &[S]) -> Outcome {
    let line: Vec<String> = line.iter().map(|word| word.as_ref().into()).collect();
    scene.exec().without_events_file().stdin("").start_line(&line).finish()
}
