//! What makes a workload trust its sandbox' authority without its author doing anything: files with the platform's
//! authorities and the sandbox' own, and the variables by which the common runtimes find them.
//!
//! Inside, the files have the same paths in every sandbox ([`DIRECTORY`]); what a workload reads there is laid over them
//! for it alone, and also over the platform's own bundle, for programs that ask no variable. Only certificates: no key is
//! ever in a file.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use sluice_seccomp::{Launch, ReplacedFile};

use crate::tls::{roots, truststore};

/// Where a workload finds them. The files here are empty; each workload sees its own in their place.
pub const DIRECTORY: &str = "/run/sluice-ca";
/// The platform's authorities and the sandbox' own.
pub const BUNDLE: &str = "ca-bundle.pem";
/// The sandbox' own alone, for what is asked for in addition.
pub const OWN: &str = "ca.pem";
/// The same as the bundle, for Java.
pub const TRUSTSTORE: &str = "truststore.jks";

/// Variables that name a file in place of the platform's.
const INSTEAD: [&str; 12] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "NIX_SSL_CERT_FILE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "BUNDLE_SSL_CA_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
];
/// Variables that name a file in addition to what is built in.
const IN_ADDITION: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// A directory; programs that read one read it beside the file.
const DIRECTORY_VARIABLE: &str = "SSL_CERT_DIR";
/// Options that every Java virtual machine picks up.
const JAVA_OPTIONS: &str = "JAVA_TOOL_OPTIONS";

/// Where distributions keep the bundle that programs use unasked.
const PLATFORM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
];

/// The contents of the files, which hold certificates alone.
pub struct Files {
    bundle: Vec<u8>,
    own: Vec<u8>,
    truststore: Vec<u8>,
}

impl Files {
    /// For the authority of a sandbox; `platform` is what programs trust anyway.
    pub fn new(authority: &CertificateDer<'static>, platform: &[CertificateDer<'static>]) -> Self {
        Self::with(authority, platform, Vec::new())
    }

    /// The same; `added` is what the workload's author trusts besides.
    fn with(
        authority: &CertificateDer<'static>,
        platform: &[CertificateDer<'static>],
        added: Vec<CertificateDer<'static>>,
    ) -> Self {
        let mut known: HashSet<_> = platform.iter().cloned().collect();
        let own: Vec<_> =
            std::iter::once(authority.clone()).chain(added).filter(|new| known.insert(new.clone())).collect();
        let all: Vec<_> = platform.iter().chain(&own).collect();
        let made = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let made_ms = u64::try_from(made.as_millis()).unwrap_or(0);
        Self {
            bundle: roots::bundle(all.iter().copied()).into_bytes(),
            own: roots::bundle(&own).into_bytes(),
            truststore: truststore::write(all.iter().map(AsRef::as_ref), made_ms),
        }
    }

    fn named(&self) -> [(&'static str, &[u8]); 3] {
        [(BUNDLE, &self.bundle), (OWN, &self.own), (TRUSTSTORE, &self.truststore)]
    }

    /// Lays them over empty files in `directory`, and over the platform's own bundle, for one workload.
    fn lay_over(&self, directory: &Path, launch: &mut Launch<'_>) -> io::Result<()> {
        make_directory(directory)?;
        for (name, contents) in self.named() {
            let path = directory.join(name);
            if !path.exists() {
                std::fs::write(&path, b"")?;
            }
            launch.replaced.push(ReplacedFile { path, contents: contents.to_vec() });
        }
        let bundles = platform_bundles().into_iter();
        launch.replaced.extend(bundles.map(|path| ReplacedFile { path, contents: self.bundle.clone() }));
        Ok(())
    }

    /// Writes them to `directory`, for sandboxes whose processes somebody else starts. Readers see the old files or the
    /// new ones.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        make_directory(directory)?;
        for (name, contents) in self.named() {
            let fresh = directory.join(format!(".{name}.{}", std::process::id()));
            std::fs::write(&fresh, contents)?;
            std::fs::rename(&fresh, directory.join(name))?;
        }
        Ok(())
    }
}

/// Where the files of the sandbox `name` are on the host, for sandboxes whose processes somebody else starts.
pub fn host_directory(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join("ca").join(name)
}

/// Makes a workload of the sandbox `name` trust `authority` too. Certificates that its environment names already stay
/// trusted. Without mounts of its own it reads files that stay in a directory of the sandbox' until [`clear`].
pub fn equip(
    launch: &mut Launch<'_>,
    name: &str,
    authority: &CertificateDer<'static>,
    platform: &[CertificateDer<'static>],
) -> io::Result<()> {
    let added = named_by_environment(&launch.env);
    let files = Files::with(authority, platform, added);
    let directory = if launch.namespaces.pids {
        let directory = PathBuf::from(DIRECTORY);
        files.lay_over(&directory, launch)?;
        directory
    } else {
        let directory = Path::new(DIRECTORY).join(name);
        files.write(&directory)?;
        directory
    };
    for (name, value) in variables(&directory, &launch.env) {
        launch.env.retain(|(known, _)| known != name);
        launch.env.push((name.into(), value));
    }
    if let Some(files) = launch.landlock.as_mut().and_then(|landlock| landlock.files.as_mut()) {
        files.read_only.push(directory);
    }
    Ok(())
}

/// The same, for a sandbox of a daemon's: its authority is in the files that [`Files::write`] left. A sandbox without one
/// is not looked into.
pub fn equip_from(launch: &mut Launch<'_>, state_dir: &Path, name: &str) -> io::Result<()> {
    let own = host_directory(state_dir, name).join(OWN);
    if !own.exists() {
        return Ok(());
    }
    let certificates = roots::read(&own).map_err(io::Error::other)?;
    let Some(authority) = certificates.first() else { return Ok(()) };
    equip(launch, name, authority, roots::Roots::platform().of_platform())
}

/// Removes what [`equip`] left for the sandbox `name`, if it left anything.
pub fn clear(name: &str) {
    let _ = std::fs::remove_dir_all(Path::new(DIRECTORY).join(name));
}

fn make_directory(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(directory)?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
}

/// The platform's bundles, links followed, each once.
fn platform_bundles() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        PLATFORM_BUNDLES.iter().filter_map(|path| std::fs::canonicalize(path).ok()).collect();
    found.sort();
    found.dedup();
    found
}

/// What the variables are set to, over an environment that may hold options for Java already.
fn variables(directory: &Path, environment: &[(OsString, OsString)]) -> Vec<(&'static str, OsString)> {
    let path = |name: &str| directory.join(name).into_os_string();
    let mut java = environment
        .iter()
        .find(|(name, _)| name == JAVA_OPTIONS)
        .map_or_else(OsString::new, |(_, options)| options.clone());
    if !java.is_empty() {
        java.push(" ");
    }
    let truststore = directory.join(TRUSTSTORE);
    java.push(format!(
        "-Djavax.net.ssl.trustStore={} -Djavax.net.ssl.trustStoreType=JKS \
         -Djavax.net.ssl.trustStorePassword={}",
        truststore.display(),
        truststore::PASSWORD
    ));
    let instead = INSTEAD.iter().map(|&name| (name, path(BUNDLE)));
    let in_addition = IN_ADDITION.iter().map(|&name| (name, path(OWN)));
    let others = [(DIRECTORY_VARIABLE, directory.into()), (JAVA_OPTIONS, java)];
    instead.chain(in_addition).chain(others).collect()
}

/// The certificates in the files that the environment names; what cannot be read is the workload's affair.
fn named_by_environment(environment: &[(OsString, OsString)]) -> Vec<CertificateDer<'static>> {
    let mut paths: Vec<&OsStr> = environment
        .iter()
        .filter(|(name, _)| {
            name.to_str().is_some_and(|name| INSTEAD.contains(&name) || IN_ADDITION.contains(&name))
        })
        .map(|(_, path)| path.as_os_str())
        .collect();
    paths.sort();
    paths.dedup();
    paths.into_iter().filter_map(|path| roots::read(Path::new(path)).ok()).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::authority::Authority;

    fn certificate() -> CertificateDer<'static> {
        Authority::new("a", None, SystemTime::now()).unwrap().certificate().clone()
    }

    #[test]
    fn the_bundle_holds_the_platform_and_the_authority_and_its_own_file_no_more_than_that() {
        let (own, platform) = (certificate(), [certificate(), certificate()]);
        let files = Files::new(&own, &platform);
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("ca/a");
        files.write(&directory).unwrap();
        assert_eq!(roots::read(&directory.join(BUNDLE)).unwrap().len(), 3);
        assert_eq!(roots::read(&directory.join(OWN)).unwrap(), [own]);
        assert!(!String::from_utf8_lossy(&files.bundle).contains("PRIVATE"));
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 3);
    }

    #[test]
    fn what_the_environment_trusts_stays_trusted() {
        let (own, named) = (certificate(), certificate());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("corporate.pem");
        std::fs::write(&path, roots::bundle([&named])).unwrap();
        let environment = [("REQUESTS_CA_BUNDLE".into(), path.into_os_string()), ("X".into(), "/etc".into())];
        let added = named_by_environment(&environment);
        assert_eq!(added, [named]);
        let files = Files::with(&own, &[], added);
        assert_eq!(files.bundle.windows(5).filter(|part| part == b"BEGIN").count(), 2);
    }

    #[test]
    fn options_for_java_are_added_to_those_there_are() {
        let set = variables(Path::new(DIRECTORY), &[(JAVA_OPTIONS.into(), "-Xmx1g".into())]);
        let (_, java) = set.iter().find(|(name, _)| *name == JAVA_OPTIONS).unwrap();
        assert!(java.to_str().unwrap().starts_with("-Xmx1g -Djavax.net.ssl.trustStore=/run/sluice-ca/"));
        assert_eq!(set.len(), INSTEAD.len() + IN_ADDITION.len() + 2);
    }
}
