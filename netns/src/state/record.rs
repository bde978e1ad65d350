//! `sandbox.json`: what an owner notes about its sandbox, for whoever has to tidy up after it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{BOOT_ID, boot_id};
use crate::links::Lacking;
use crate::{Error, Kind, LogToken, NamespaceId, limits};

/// The record. Unknown keys are accepted: an older Sluice may have to sweep after a newer one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The owner. Informative: the lock says whether it lives.
    pub(crate) pid: u32,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The boot during which pids, inodes and cookies of this record mean something.
    pub(crate) boot: String,
    /// Whether the namespace is ours. Only what is ours is killed.
    pub(crate) kind: Kind,
    pub(crate) token: LogToken,
    pub(crate) proxy_address: SocketAddr,
    /// Absent until the namespace exists.
    pub(crate) namespace: Option<RecordedNamespace>,
    /// What an attached namespace lacked and was given. Noted before it is given.
    #[serde(default)]
    pub(crate) added: Lacking,
    /// Whether it waits for its next owner when this one dies.
    #[serde(default)]
    pub(crate) kept: bool,
}

/// How to know the namespace again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordedNamespace {
    #[serde(flatten)]
    pub(crate) id: NamespaceId,
    /// Proves identity where the mount is gone and the inode may belong to another namespace.
    pub(crate) cookie: u64,
}

impl Record {
    /// A record of this process, now.
    pub(crate) fn new(kind: Kind, token: LogToken, proxy_address: SocketAddr) -> Result<Self, Error> {
        Ok(Self {
            pid: std::process::id(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            boot: boot_id().map_err(Error::io("read", BOOT_ID))?,
            kind,
            token,
            proxy_address,
            namespace: None,
            added: Lacking::default(),
            kept: false,
        })
    }

    /// Whether the sandbox still waits for its next owner: after the machine started anew there is nothing to wait for.
    pub(crate) fn is_kept(&self) -> Result<bool, Error> {
        Ok(self.kept && self.boot == boot_id().map_err(Error::io("read", BOOT_ID))?)
    }
}

/// Writes the record of the sandbox in `dir`, whole or not at all.
pub(super) fn write(dir: &Path, record: &Record) -> Result<(), Error> {
    let path = dir.join("sandbox.json");
    let unfinished = dir.join("sandbox.json.new");
    let write = || -> io::Result<()> {
        let text = serde_json::to_vec_pretty(record)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?.write_all(&text)?;
        fs::rename(&unfinished, &path)
    };
    write().map_err(Error::io("write", &path))
}

/// Reads the record of the sandbox in `dir`; `None` if there is none or it is not one.
pub(super) fn read(dir: &Path) -> Result<Option<Record>, Error> {
    let path = dir.join("sandbox.json");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", &path)(error)),
    };
    let mut text = Vec::new();
    file.take(limits::RECORD_BYTES_MAX).read_to_end(&mut text).map_err(Error::io("read", &path))?;
    Ok(serde_json::from_slice(&text)
        .map_err(|error| tracing::warn!(path = %path.display(), %error, "not a sandbox's record; ignored"))
        .ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let token = LogToken::random().expect("random");
        Record::new(Kind::Made, token, "10.200.0.1:3128".parse().expect("address")).expect("record")
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut written = record();
        written.namespace =
            Some(RecordedNamespace { id: NamespaceId { device: 4, inode: 4_026_532_000 }, cookie: 77 });
        write(dir.path(), &written).expect("write");
        assert_eq!(read(dir.path()).expect("read"), Some(written));
    }

    #[test]
    fn a_torn_record_is_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(read(dir.path()).expect("read"), None);
        fs::write(dir.path().join("sandbox.json"), b"{\"pid\": 4").expect("write");
        assert_eq!(read(dir.path()).expect("read"), None);
    }
}
