//! From a policy file to a [`PolicyFile`], or to every error in it at once.
//!
//! This file reads the top level and what confines the workload; `load_rules.rs` reads `network_policies`.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use super::host::HostPattern;
use super::load_rules;
use super::model::{
    Account, Binaries, Confinement, Endpoint, Enforcement, FilesystemPolicy, LandlockLevel, Netlink,
    PolicyFile, Ports, Rule, RuleHead, Sni,
};
use crate::diagnostic::{Diagnostics, Place};
use crate::yaml::{self, Fields, Node, Reader};

/// Paths of `filesystem_policy`, both lists together; each becomes a rule in the kernel.
pub const FILESYSTEM_PATHS_MAX: usize = 256;
/// Octets of one such path (PATH_MAX).
pub const PATH_OCTETS_MAX: usize = 4096;

const TOP: &[&str] = &["version", "filesystem_policy", "landlock", "process", "network_policies"];
const TOP_REFUSED: &[(&str, &str)] = &[("network_middlewares", "Sluice runs no middleware")];

/// Where a policy comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Everything that the address guard lets through, for any program.
    Open,
    /// Nothing.
    Deny,
    /// A file.
    File(PathBuf),
}

impl Source {
    /// `open`, `deny`, or a path. A file of that name is written `./open`.
    pub fn parse(text: &str) -> Self {
        match text {
            "open" => Self::Open,
            "deny" => Self::Deny,
            path => Self::File(path.into()),
        }
    }
}

/// A policy that can be used, and what its author should know about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The policy.
    pub file: PolicyFile,
    /// Only notes.
    pub notes: Diagnostics,
}

/// Reads a policy.
pub fn load(source: &Source) -> Result<Loaded, Diagnostics> {
    let mut notes = Diagnostics::default();
    let file = match source {
        Source::Open | Source::Deny => Some(builtin(source)),
        Source::File(path) => {
            let name: Arc<str> = path.to_string_lossy().into();
            match read(path) {
                Ok(text) => parse(&text, &name, &mut notes),
                Err(error) => {
                    notes.error(Place::whole(&name), format!("cannot read the policy: {error}"));
                    None
                }
            }
        }
    };
    match file {
        Some(file) if !notes.has_errors() => Ok(Loaded { file, notes }),
        _ => Err(notes),
    }
}

/// Reads a text file that is not larger than the parser takes.
pub fn read(path: &Path) -> io::Result<String> {
    let octets_max = yaml::FILE_OCTETS_MAX as u64;
    let mut text = String::new();
    let read =
        io::Read::read_to_string(&mut io::Read::take(fs::File::open(path)?, octets_max + 1), &mut text)?;
    if read as u64 > octets_max {
        return Err(io::Error::other(format!("the file is larger than {octets_max} octets")));
    }
    Ok(text)
}

/// What a binary's path resolves to on this host, for [`compile_with`](super::Policy::compile_with): right for
/// sandboxes that share the host's file system.
pub fn host_links(path: &str) -> Option<String> {
    fs::canonicalize(path).ok()?.into_os_string().into_string().ok()
}

/// The same inside another root, such as `/proc/PID/root` of a container: links are followed as they lead there, also
/// absolute ones and `..`, and never out of it.
pub fn links_in(root: &Path) -> io::Result<impl Fn(&str) -> Option<String> + use<>> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2, readlink};
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let shown = |file: &OwnedFd| {
        let shown = readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new()).ok()?;
        shown.into_string().ok()
    };
    let root = openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty())?;
    // A folder of this file system shows with its own path before that of the file; a root elsewhere shows as "/".
    let before = shown(&root).filter(|path| path != "/").unwrap_or_default();
    Ok(move |path: &str| {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let found = openat2(&root, path, flags, Mode::empty(), within).ok()?;
        let found = shown(&found)?;
        found.strip_prefix(&before).filter(|inside| inside.starts_with('/')).map(ToOwned::to_owned)
    })
}

/// The built-in policies; a file source gives `deny`.
pub fn builtin(source: &Source) -> PolicyFile {
    let name: Arc<str> = if *source == Source::Open { "open".into() } else { "deny".into() };
    let place = Place::whole(&name);
    let head = Arc::new(RuleHead { name: Arc::clone(&name), place: place.clone(), binaries: Binaries::Any });
    let everything = Endpoint {
        rule: Arc::clone(&head),
        place,
        host: HostPattern::Any,
        ports: Ports::Any,
        allowed_ips: [].into(),
        requests: None,
        enforcement: Enforcement::Enforce,
        // Any name is allowed, so there is nothing a wrong one could evade.
        sni: Sni::Ignore,
    };
    let rules = match source {
        Source::Open => vec![Rule { head, endpoints: vec![Arc::new(everything)] }],
        Source::Deny | Source::File(_) => Vec::new(),
    };
    PolicyFile { source: name, rules, confinement: Confinement::default() }
}

/// Parses a policy's text. Pure; errors and notes go to `out`. The result is for reading on: it is incomplete when
/// `out` has errors.
pub fn parse(text: &str, file: &Arc<str>, out: &mut Diagnostics) -> Option<PolicyFile> {
    out.add_source(file, text);
    let root = yaml::parse(text, file, out)?;
    from_tree(&root, file, out)
}

/// The same from a tree.
pub(crate) fn from_tree(root: &Node, file: &Arc<str>, out: &mut Diagnostics) -> Option<PolicyFile> {
    let mut reader = Reader::new(file, out);
    let top = reader.mapping_refusing(root, TOP, TOP_REFUSED)?;
    match top.get("version") {
        Some(version) if version.text() == Some("1") => {}
        Some(version) => reader.error(version, format!("expected version 1, found {}", version.describe())),
        None if top.lacks("version") => {
            reader.error_with_help(root, "the key \"version\" is missing", "write \"version: 1\"");
        }
        None => {}
    }
    let rules = if let Some(node) = top.get("network_policies") {
        load_rules::rules(&mut reader, node)
    } else {
        if top.lacks("network_policies") {
            reader.note(root, "no network_policies: every destination is denied");
        }
        Vec::new()
    };
    let confinement = confinement(&mut reader, &top);
    Some(PolicyFile { source: Arc::clone(file), rules, confinement })
}

fn confinement(reader: &mut Reader<'_>, top: &Fields<'_>) -> Confinement {
    let mut confinement = Confinement::default();
    if let Some(node) = top.get("filesystem_policy") {
        confinement.filesystem = filesystem(reader, node);
    }
    let keys = &["compatibility", "tcp_connect"];
    if let Some(fields) = top.get("landlock").and_then(|node| reader.mapping(node, keys)) {
        let levels = &[
            ("best_effort", LandlockLevel::BestEffort),
            ("hard_requirement", LandlockLevel::HardRequirement),
            ("required", LandlockLevel::HardRequirement),
        ];
        let level = fields.get("compatibility").and_then(|node| reader.choice(node, levels));
        confinement.landlock = level.unwrap_or_default();
        let connects = &[("any", false), ("proxy", true)];
        let only = fields.get("tcp_connect").and_then(|node| reader.choice(node, connects));
        confinement.connect_only_to_proxy = only.unwrap_or(false);
    }
    let keys = &["run_as_user", "run_as_group", "netlink", "memfd_exec", "private_tmp", "pid_namespace"];
    if let Some(fields) = top.get("process").and_then(|node| reader.mapping(node, keys)) {
        confinement.run_as_user = fields.get("run_as_user").and_then(|node| account(reader, node));
        confinement.run_as_group = fields.get("run_as_group").and_then(|node| account(reader, node));
        let kinds = &[("route", Netlink::Route), ("deny", Netlink::Deny), ("all", Netlink::All)];
        let netlink = fields.get("netlink").and_then(|node| reader.choice(node, kinds));
        confinement.netlink = netlink.unwrap_or_default();
        let verdicts = &[("allow", true), ("deny", false)];
        let memfd_exec = fields.get("memfd_exec").and_then(|node| reader.choice(node, verdicts));
        confinement.memfd_exec = memfd_exec.unwrap_or(true);
        let mut flag = |key, usual| fields.get(key).and_then(|node| reader.bool(node)).unwrap_or(usual);
        confinement.private_tmp = flag("private_tmp", false);
        confinement.pid_namespace = flag("pid_namespace", true);
        if let Some(node) = fields.get("private_tmp").filter(|_| confinement.private_tmp)
            && !confinement.pid_namespace
        {
            reader.error(node, "a private /tmp needs the mounts that come with pid_namespace: true");
        }
    }
    confinement
}

fn filesystem(reader: &mut Reader<'_>, node: &Node) -> Option<FilesystemPolicy> {
    let fields = reader.mapping(node, &["include_workdir", "read_only", "read_write"])?;
    let include_workdir = fields.get("include_workdir").and_then(|node| reader.bool(node)).unwrap_or(false);
    let mut paths = |key| fields.get(key).map(|node| absolute_paths(reader, node)).unwrap_or_default();
    let (read_only, read_write) = (paths("read_only"), paths("read_write"));
    let count = read_only.len() + read_write.len();
    if count > FILESYSTEM_PATHS_MAX {
        reader.error(node, format!("{count} paths, more than the {FILESYSTEM_PATHS_MAX} allowed"));
    }
    if read_write.iter().any(|path| path.components().count() == 1) {
        let node = fields.get("read_write").unwrap_or(node);
        reader.error(node, "\"/\" in read_write would leave nothing confined; name the folders");
    }
    Some(FilesystemPolicy { include_workdir, read_only, read_write })
}

fn absolute_paths(reader: &mut Reader<'_>, node: &Node) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for item in reader.list(node).unwrap_or_default() {
        let Some(path) = reader.path(item) else { continue };
        if !path.is_absolute() {
            reader.error(item, format!("the path {} is not absolute", item.describe()));
        } else if path.components().any(|part| part.as_os_str() == "..") {
            reader.error(item, format!("the path {} holds \"..\"", item.describe()));
        } else if path.as_os_str().len() > PATH_OCTETS_MAX {
            reader.error(item, format!("the path is longer than {PATH_OCTETS_MAX} octets"));
        } else {
            paths.push(path);
        }
    }
    paths
}

fn account(reader: &mut Reader<'_>, node: &Node) -> Option<Account> {
    let text = reader.string(node)?;
    if text == "root" || text == "0" {
        reader.error(node, "the workload must not run as root; name another account");
        return None;
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        // The highest number means "no change" to the kernel.
        let id = text.parse::<u32>().ok().filter(|&id| id != 0 && id != u32::MAX);
        if id.is_none() {
            reader.error(node, format!("{text} is not an account number from 1 to {}", u32::MAX - 1));
        }
        return id.map(Account::Id);
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$');
    if text.len() > 32 || text.starts_with('-') || !text.bytes().all(plain) {
        reader.error(node, format!("{} is not the name of an account", node.describe()));
        return None;
    }
    Some(Account::Name(text.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_as_a_sandbox_sees_them() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("usr/bin")).unwrap();
        fs::create_dir_all(at("etc/alternatives")).unwrap();
        fs::write(at("usr/bin/python3.11"), "").unwrap();
        symlink("usr/bin", at("bin")).unwrap();
        symlink("/etc/alternatives/python", at("usr/bin/python")).unwrap();
        symlink("/usr/bin/python3.11", at("etc/alternatives/python")).unwrap();
        symlink("../../../../../../usr/bin/python3.11", at("usr/bin/up")).unwrap();
        symlink("/proc/self/exe", at("usr/bin/out")).unwrap();
        let links = links_in(root.path()).unwrap();
        for path in ["/usr/bin/python", "/bin/python", "/usr/bin/up", "/usr/bin/python3.11"] {
            assert_eq!(links(path).as_deref(), Some("/usr/bin/python3.11"), "{path}");
        }
        assert_eq!(links("/usr/bin/out"), None, "there is no /proc in there");
        assert_eq!(links("/usr/bin/none"), None);
        assert!(links_in(&at("none")).is_err());
        // This process' own root, as a sandbox that shares the host's file system has it.
        let own = links_in(Path::new("/proc/self/root")).unwrap();
        assert_eq!(own("/bin/sh"), host_links("/bin/sh"));
    }
}
