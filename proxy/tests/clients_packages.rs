//! apt and npm through the proxy, against mirrors of one folder each.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use conformance::Proxy;
use conformance::file::Files;

#[track_caller]
fn succeeds(output: std::io::Result<Output>, program: &str) -> String {
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

/// How many packages the mirror has: as many as apt asks for before it waits for an answer, and some more.
const PACKAGES: usize = 25;

/// A flat repository of packages that hold nothing.
fn repository(dir: &Path) -> HashMap<String, Vec<u8>> {
    let (mut files, mut index) = (HashMap::new(), String::new());
    for n in 0..PACKAGES {
        let name = format!("behind-{n}");
        let control = format!(
            "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.example>\nDescription: {n}\n"
        );
        let folder = dir.join(&name);
        std::fs::create_dir_all(folder.join("DEBIAN")).unwrap();
        std::fs::write(folder.join("DEBIAN/control"), &control).unwrap();
        let deb = dir.join(format!("{name}.deb"));
        let mut build = Command::new("dpkg-deb");
        succeeds(build.args(["--build", "-Znone"]).arg(&folder).arg(&deb).output(), "dpkg-deb");
        let sum = succeeds(Command::new("sha256sum").arg(&deb).output(), "sha256sum");
        let octets = std::fs::read(&deb).unwrap();
        let (sum, _) = sum.split_once(' ').unwrap();
        write!(index, "{control}Filename: repo/{name}.deb\nSize: {}\nSHA256: {sum}\n\n", octets.len())
            .unwrap();
        files.insert(format!("/repo/{name}.deb"), octets);
    }
    files.insert("/repo/Packages".into(), index.into_bytes());
    files
}

/// apt asks for up to ten files before it waits for the first, and takes the answers in order.
#[test]
fn apt_updates_and_downloads_with_pipelined_requests() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Files::serve(repository(dir.path()));
    let state = dir.path().join("apt");
    for folder in ["state/lists/partial", "cache/archives/partial", "etc/preferences.d", "got"] {
        std::fs::create_dir_all(state.join(folder)).unwrap();
    }
    std::fs::write(state.join("sources.list"), format!("deb [trusted=yes] {} repo/\n", origin.url("")))
        .unwrap();
    std::fs::write(state.join("status"), "").unwrap();
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        let at = |key: &str, path: &str| format!("{key}={}", state.join(path).display());
        for setting in [
            at("Dir::State", "state"),
            at("Dir::State::status", "status"),
            at("Dir::Cache", "cache"),
            at("Dir::Etc", "etc"),
            at("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=-".into(),
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
            "Acquire::http::Pipeline-Depth=10".into(),
            format!("Acquire::http::Proxy={}", Proxy::shared().url()),
        ] {
            command.args(["-o", &setting]);
        }
        command.current_dir(state.join("got")).env_remove("no_proxy").env_remove("http_proxy");
        succeeds(command.args(["-q"]).args(words).output(), "apt-get")
    };
    apt(&["update"]);
    let names: Vec<String> = (0..PACKAGES).map(|n| format!("behind-{n}")).collect();
    let words: Vec<&str> = ["download"].into_iter().chain(names.iter().map(String::as_str)).collect();
    apt(&words);
    let got = std::fs::read_dir(state.join("got")).unwrap().count();
    assert_eq!(got, PACKAGES);
    let seen = origin.seen();
    assert!(seen.requests.iter().all(|(head, _)| head.to_ascii_lowercase().contains("\r\nvia: 1.1 sluice-")));
    // All of them over the few connections of one proxy: none was given up and asked for anew.
    assert!(seen.connections <= 3, "{} connections", seen.connections);
    let debs = seen.requests.iter().filter(|(head, _)| head.contains(".deb HTTP/1.1")).count();
    assert_eq!(debs, PACKAGES);
}

#[test]
fn npm_installs_from_a_registry_behind_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("package");
    std::fs::create_dir(&package).unwrap();
    std::fs::write(package.join("package.json"), r#"{"name":"behind","version":"1.0.0","main":"index.js"}"#)
        .unwrap();
    std::fs::write(package.join("index.js"), "module.exports = 'through the proxy';").unwrap();
    let archive = dir.path().join("behind.tgz");
    let mut tar = Command::new("tar");
    succeeds(tar.arg("-C").arg(dir.path()).arg("-czf").arg(&archive).arg("package").output(), "tar");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let registry = format!("http://{}", listener.local_addr().unwrap());
    let tarball = format!(r#""dist":{{"tarball":"{registry}/behind/-/behind-1.0.0.tgz"}}"#);
    let version = format!(r#"{{"name":"behind","version":"1.0.0",{tarball}}}"#);
    let about =
        format!(r#"{{"name":"behind","dist-tags":{{"latest":"1.0.0"}},"versions":{{"1.0.0":{version}}}}}"#);
    let files = HashMap::from([
        ("/behind".to_owned(), about.into_bytes()),
        ("/behind/-/behind-1.0.0.tgz".to_owned(), std::fs::read(archive).unwrap()),
    ]);
    let origin = Files::serve_on(listener, files);
    let target = dir.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--no-update-notifier", "behind"]);
    npm.args(["--noproxy", "", "--proxy", &Proxy::shared().url(), "--registry", &registry]);
    npm.arg("--cache").arg(dir.path().join("cache")).arg("--prefix").arg(&target);
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"] {
        npm.env_remove(name);
    }
    succeeds(npm.current_dir(&target).output(), "npm");
    let script = "console.log(require('behind'))";
    let said = succeeds(Command::new("node").args(["-e", script]).current_dir(&target).output(), "node");
    assert_eq!(said, "through the proxy\n");
    assert!(origin.seen().requests.iter().all(|(head, _)| head.to_ascii_lowercase().contains("\r\nvia: ")));
    assert!(!origin.seen().requests.is_empty());
}
