//! What is noted about a sandbox for the next daemon: `served.json`, beside its pinned namespace.
//!
//! It lies in the sandbox' own directory, so it goes with the sandbox and is never told apart from it. Sandboxes of
//! the configuration have none: the configuration says what they are.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::admin::wire::NewSandbox;
use crate::yaml;

const FILE: &str = "served.json";
/// The policy's text in JSON, where a character may take six, and little else.
const OCTETS_MAX: u64 = 6 * yaml::FILE_OCTETS_MAX as u64 + 65_536;

/// A sandbox that came through the API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Noted {
    /// When it was asked for, in microseconds since 1970.
    pub(super) since_us: i64,
    /// What was asked for, with the policy that is in force.
    pub(super) sandbox: NewSandbox,
}

/// The directory of sandbox `name`.
pub(super) fn directory(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join("sandboxes").join(name)
}

/// Notes it, whole or not at all.
pub(super) fn write(directory: &Path, noted: &Noted) -> io::Result<()> {
    let unfinished = directory.join("served.json.new");
    let text = serde_json::to_vec_pretty(noted)?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?.write_all(&text)?;
    fs::rename(unfinished, directory.join(FILE))
}

/// What was noted; `None` if nothing was.
pub(super) fn read(directory: &Path) -> io::Result<Option<Noted>> {
    let file = match fs::File::open(directory.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(OCTETS_MAX).read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

/// The link that was noted, also where the rest makes no sense to this version.
pub(super) fn noted_link(directory: &Path) -> Option<String> {
    let mut text = Vec::new();
    fs::File::open(directory.join(FILE)).ok()?.take(OCTETS_MAX).read_to_end(&mut text).ok()?;
    let noted: serde_json::Value = serde_json::from_slice(&text).ok()?;
    noted["sandbox"]["link"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::wire::PolicyText;

    #[test]
    fn what_was_noted_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        let request = r#"{"name":"a","attach":{"pid":7},"policy":{"file":"/p.yaml","text":"version: 1\n"},"limits":{"connections":9}}"#;
        let noted = Noted { since_us: 5, sandbox: serde_json::from_str(request).unwrap() };
        write(dir.path(), &noted).unwrap();
        let again = read(dir.path()).unwrap().unwrap();
        assert_eq!((again.since_us, &*again.sandbox.name, again.sandbox.limits.connections), (5, "a", 9));
        assert!(matches!(&again.sandbox.policy, PolicyText::Text { file, .. } if file == "/p.yaml"));
        assert_eq!(noted_link(dir.path()), None);
        let newer = br#"{"sandbox":{"name":"a","link":"veth7","policy":{"unheard":"of"}}}"#;
        fs::write(dir.path().join(FILE), newer).unwrap();
        read(dir.path()).unwrap_err();
        assert_eq!(noted_link(dir.path()).as_deref(), Some("veth7"), "its link can be fenced all the same");
        fs::write(dir.path().join(FILE), b"{").unwrap();
        read(dir.path()).unwrap_err();
    }
}
