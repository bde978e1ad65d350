//! Every file under `deploy/examples` loads, and means what its comments say.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

#[allow(dead_code, reason = "shared by several test files")]
mod policy_questions;

use std::path::{Path, PathBuf};

use policy_questions::answer;
use sluice::config;
use sluice::limits::Limits;
use sluice::policy::{Policy, Reason, Source, builtin, load};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples")
}

fn example(name: &str) -> Policy {
    let loaded = load(&Source::File(folder().join(name))).unwrap_or_else(|errors| panic!("{errors}"));
    Policy::compile(&loaded.file)
}

#[test]
fn every_example_loads() {
    let mut policies = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name == "serve.yaml") {
            continue;
        }
        policies += 1;
        if let Err(errors) = load(&Source::File(path)) {
            panic!("{errors}");
        }
    }
    assert!(policies >= 5, "only {policies} example policies found");
}

#[test]
fn the_daemon_example_names_the_defaults() {
    let loaded = config::load(&folder().join("serve.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.config.limits, Limits::default());
    let [ci, agent, made] = &*loaded.config.sandboxes else { panic!("three sandboxes") };
    assert_eq!((&*ci.name, &ci.policy_source), ("ci-1", &Source::Open));
    assert!(agent.policy.names_binaries());
    assert_eq!((&*made.name, &made.policy_source), ("agent-2", &agent.policy_source));
}

#[test]
fn the_agent_reaches_its_hosts_with_its_programs_only() {
    let policy = example("agent.yaml");
    let node = Some("/usr/bin/node");
    let curl = Some("/usr/bin/curl");
    assert_eq!(answer(&policy, node, "CONNECT api.anthropic.com:443"), Ok("model".into()));
    assert_eq!(answer(&policy, curl, "CONNECT api.anthropic.com:443"), Err(Reason::BinaryNotAllowed));
    assert_eq!(answer(&policy, None, "CONNECT api.anthropic.com:443"), Err(Reason::IdentityUnknown));
    assert_eq!(answer(&policy, curl, "CONNECT api.github.com:443"), Ok("forge_api".into()));
    assert_eq!(answer(&policy, curl, "CONNECT api.github.com:22"), Err(Reason::PortNotAllowed));
    assert_eq!(answer(&policy, curl, "CONNECT evil.example:443"), Err(Reason::HostNotAllowed));
    assert_eq!(answer(&policy, curl, "GET example.com:80/"), Ok("reading".into()));
    assert_eq!(answer(&policy, curl, "POST example.com:80/"), Err(Reason::MethodNotAllowed));
    let pyenv = Some("/root/.pyenv/versions/3.12.1/bin/python3.12");
    assert_eq!(answer(&policy, pyenv, "CONNECT pypi.org:443"), Ok("packages".into()));
}

#[test]
fn the_build_reads_packages_and_may_not_overwrite_releases() {
    let policy = example("ci.yaml");
    let apt = Some("/usr/lib/apt/methods/http");
    assert_eq!(
        answer(&policy, apt, "GET deb.debian.org:80/debian/dists/stable/Release"),
        Ok("debian".into())
    );
    assert_eq!(answer(&policy, apt, "GET deb.debian.org:80/other"), Err(Reason::PathNotAllowed));
    assert_eq!(answer(&policy, None, "CONNECT pypi.org:443"), Ok("packages".into()));
    let curl = Some("/usr/bin/curl");
    let store = |request: &str| answer(&policy, curl, request);
    assert_eq!(store("PUT artefacts.corp.example:8080/releases/1.tgz"), Ok("artefacts".into()));
    assert_eq!(store("PUT artefacts.corp.example:8080/releases/1?overwrite=true"), Err(Reason::DenyRule));
    assert_eq!(store("DELETE artefacts.corp.example:8080/releases/1"), Err(Reason::MethodNotAllowed));
    assert_eq!(store("GET artefacts.corp.example:8080/x/..//admin/keys"), Err(Reason::DenyRule));
}

#[test]
fn a_scoped_package_may_come_with_its_encoded_slash() {
    let policy = example("registry.yaml");
    let npm = |request: &str| answer(&policy, Some("/usr/bin/node"), request);
    assert_eq!(npm("GET npm.corp.example:4873/@corp%2flib"), Ok("mirror".into()));
    assert_eq!(npm("GET npm.corp.example:4873/@other%2flib"), Err(Reason::PathNotAllowed));
    assert_eq!(npm("POST npm.corp.example:4873/-/npm/v1/security/audits"), Ok("mirror".into()));
    assert_eq!(npm("POST npm.corp.example:4873/@corp/lib"), Err(Reason::MethodNotAllowed));
    assert_eq!(npm("GET npm.corp.example:4873/-/v1/search?text=x&size=20"), Ok("mirror".into()));
    assert_eq!(npm("GET npm.corp.example:4873/-/v1/search?text=x&size=9"), Err(Reason::QueryNotAllowed));
}

#[test]
fn the_builtin_policies_say_yes_and_no() {
    let open = Policy::compile(&builtin(&Source::Open));
    assert_eq!(answer(&open, None, "CONNECT anything.example:1"), Ok("open".into()));
    assert_eq!(answer(&open, None, "CONNECT [2001:db8::1]:65535"), Ok("open".into()));
    assert_eq!(answer(&open, None, "BREW any.example:80/%zz"), Ok("open".into()));
    let deny = Policy::compile(&builtin(&Source::Deny));
    assert_eq!(answer(&deny, None, "CONNECT anything.example:1"), Err(Reason::HostNotAllowed));
}

/// Every kind of entry that the format's public examples use, written afresh, means what it means there.
#[test]
fn a_policy_in_the_format_that_people_have_means_the_same() {
    use policy_questions::ask;
    use sluice::address::Reach;
    use sluice::policy::Protocol;

    let policy = example("coding-agent.yaml");
    let [agent, node, git] = ["/usr/local/bin/agent", "/usr/bin/node", "/usr/bin/git"].map(Some);
    let python = Some("/opt/venv/bin/python3.12");
    for (exe, question, expected) in [
        (agent, "CONNECT api.model.example:443", Ok("model-api")),
        (node, "CONNECT telemetry.model.example:443", Ok("model-api")),
        (git, "CONNECT api.model.example:443", Err(Reason::BinaryNotAllowed)),
        (None, "CONNECT api.model.example:443", Err(Reason::IdentityUnknown)),
        (agent, "GET api.forge.example:443/repos/a/b", Ok("forge-rest-read-only")),
        (agent, "HEAD api.forge.example:443/repos/a/b", Ok("forge-rest-read-only")),
        (agent, "POST api.forge.example:443/repos/a/b", Err(Reason::MethodNotAllowed)),
        (git, "CONNECT forge.example.com:8443", Ok("forge-git")),
        (git, "CONNECT forge.example.com:22", Err(Reason::PortNotAllowed)),
        (git, "GET forge.example.com:443/a/b.git/info/refs?service=git-upload-pack", Ok("forge-git")),
        (
            git,
            "GET forge.example.com:443/a/b.git/info/refs?service=git-receive-pack",
            Err(Reason::QueryNotAllowed),
        ),
        (git, "POST forge.example.com:443/a/b.git/git-upload-pack", Ok("forge-git")),
        (git, "POST forge.example.com:443/a/b.git/git-receive-pack", Err(Reason::DenyRule)),
        (git, "POST forge.example.com:443/a/x/..//b.git/git-receive-pack", Err(Reason::DenyRule)),
        (git, "POST forge.example.com:443/a/secrets.git/git-upload-pack", Err(Reason::DenyRule)),
        (Some("/usr/lib/git-core/git-remote-http"), "CONNECT forge.example.com:443", Ok("forge-git")),
        (Some("/sandbox/.editor-server/bin/x/node"), "CONNECT a.editor.example.com:443", Ok("editor")),
        (Some("/usr/bin/curl"), "CONNECT a.b.cdn.example.com:443", Ok("editor")),
        (Some("/usr/bin/curl"), "CONNECT cdn.example.com:443", Err(Reason::HostNotAllowed)),
        (Some("/usr/bin/curl"), "CONNECT a.b.editor.example.com:443", Err(Reason::HostNotAllowed)),
        (python, "CONNECT 10.0.6.9:8080", Ok("inside")),
        (python, "CONNECT 192.168.1.7:8080", Ok("inside")),
        (python, "CONNECT 192.168.1.8:8080", Err(Reason::AddressNotAllowed)),
        (python, "CONNECT any.name.example:8080", Ok("inside")),
        (node, "GET npm.example.com:80/@corp%2flib", Ok("registry")),
        (node, "POST npm.example.com:80/@corp/lib", Err(Reason::MethodNotAllowed)),
        (node, "POST npm.example.com:80/-/npm/v1/audits", Ok("registry")),
        (node, "DELETE npm.example.com:80/-/npm/v1/audits", Ok("registry")),
        (node, "GET stream.example.com:80/ws/1", Ok("live")),
        (node, "GET stream.example.com:80/other", Err(Reason::PathNotAllowed)),
        (node, "POST stream.example.com:80/ws/1", Err(Reason::MethodNotAllowed)),
    ] {
        assert_eq!(answer(&policy, exe, question), expected.map(ToOwned::to_owned), "{exe:?} {question}");
    }
    let inside = |exe, question| ask(&policy, exe, question, |answer| answer.unwrap().protocol());
    assert_eq!(inside(agent, "CONNECT api.model.example:443"), Protocol::Raw);
    assert_eq!(inside(agent, "CONNECT api.forge.example:443"), Protocol::Http);
    ask(&policy, python, "CONNECT a.db.example.com:5432", |answer| {
        let permit = answer.unwrap();
        assert!(permit.admits("10.0.5.1".parse().unwrap(), Reach::Private));
        assert!(!permit.admits("10.0.6.1".parse().unwrap(), Reach::Private), "only where it is listed");
    });
    ask(&policy, Some("/usr/bin/curl"), "CONNECT a.cdn.example.com:443", |answer| {
        assert!(
            !answer.unwrap().admits("10.0.5.1".parse().unwrap(), Reach::Private),
            "a wildcard lists none"
        );
    });
    ask(&policy, agent, "CONNECT telemetry.model.example:443", |answer| {
        assert!(answer.unwrap().admits("10.9.9.9".parse().unwrap(), Reach::Private), "a declared name may");
    });
    ask(&policy, node, "DELETE npm.example.com:80/-/npm/v1/audits", |answer| {
        let audited = answer.unwrap().audited().map(|deny| deny.reason);
        assert_eq!(audited, Some(Reason::MethodNotAllowed), "what an audit lets pass is told");
    });
}
