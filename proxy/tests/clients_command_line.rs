//! curl, wget and git through the proxy, as people run them: with `http_proxy` in the environment or `--proxy`.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use conformance::file::{Files, gather};
use conformance::{Origin, Proxy, pattern};

/// Runs a client with the proxy in its environment and nothing exempt from it.
fn run(program: &str, words: &[&str]) -> Output {
    let proxy = Proxy::shared().url();
    let mut command = Command::new(program);
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env(name, &proxy);
    }
    command.env("no_proxy", "").env("NO_PROXY", "").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.args(words).output().unwrap_or_else(|error| panic!("{program} is needed: {error}"))
}

/// What a client that must succeed writes to its stdout.
#[track_caller]
fn output(program: &str, words: &[&str]) -> Vec<u8> {
    let output = run(program, words);
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[track_caller]
fn curl(words: &[&str]) -> Vec<u8> {
    let mut all = vec!["--silent", "--show-error", "--fail", "--max-time", "20"];
    all.extend(words);
    output("curl", &all)
}

/// The start line of the origin's only request was this.
#[track_caller]
fn was_asked(origin: &Files, line: &str) {
    let seen = origin.seen();
    let lines: Vec<_> = seen.requests.iter().map(|(head, _)| head.lines().next().unwrap()).collect();
    assert_eq!(lines, [line]);
}

#[test]
fn curl_gets_a_file() {
    let body = pattern(1 << 20);
    let origin = Files::one("/file", body.clone());
    assert!(curl(&[&origin.url("/file")]) == body);
    was_asked(&origin, "GET /file HTTP/1.1");
}

#[test]
fn curl_gets_a_file_with_http_1_0() {
    let origin = Files::one("/file", "contents");
    assert_eq!(curl(&["--http1.0", &origin.url("/file")]), b"contents");
}

#[test]
fn curl_asks_for_a_head_only() {
    let origin = Files::one("/file", "contents");
    let head = String::from_utf8(curl(&["--head", &origin.url("/file")])).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Length: 8\r\n"), "{head}");
}

#[test]
fn curl_gets_two_files_over_one_connection() {
    let origin = Files::serve(HashMap::from([("/a".into(), "one".into()), ("/b".into(), "two".into())]));
    let words = ["--write-out", "%{num_connects}", &origin.url("/a"), &origin.url("/b")];
    assert_eq!(String::from_utf8(curl(&words)).unwrap(), "one1two0");
    assert_eq!(origin.seen().connections, 1);
}

/// `curl -T` sends `Expect: 100-continue` even for three bytes.
#[test]
fn curl_uploads_files_of_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("upload");
    for octets in [0, 3, 5 << 20] {
        let origin = Files::one("/", "");
        fs::write(&path, pattern(octets)).unwrap();
        let answer = curl(&["-T", path.to_str().unwrap(), &origin.url("/up")]);
        assert_eq!(String::from_utf8(answer).unwrap(), octets.to_string());
        assert!(origin.seen().requests[0].1 == pattern(octets));
    }
}

#[test]
fn curl_uploads_what_it_does_not_know_the_length_of() {
    let origin = Files::one("/", "");
    let script = format!(
        "printf 'one,two' | curl --silent --show-error --fail --max-time 20 --proxy {} --noproxy '' -T - {}",
        Proxy::shared().url(),
        origin.url("/up")
    );
    assert_eq!(output("sh", &["-c", &script]), b"7");
    assert_eq!(origin.seen().requests[0].1, b"one,two");
}

#[test]
fn curl_posts_a_form() {
    let origin = Files::one("/", "");
    assert_eq!(curl(&["--data", "a=1&b=2", &origin.url("/form")]), b"7");
    assert_eq!(origin.seen().requests[0].1, b"a=1&b=2");
}

/// `-N`: each part is there before the next is sent.
#[test]
fn curl_streams_a_body_as_it_comes() {
    let origin = Origin::new();
    let url = format!("http://{}/stream", origin.address());
    let mut child = Command::new("curl")
        .args([
            "--silent",
            "-N",
            "--max-time",
            "20",
            "--noproxy",
            "",
            "--proxy",
            &Proxy::shared().url(),
            &url,
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("curl is needed");
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut out = child.stdout.take().unwrap();
    for part in ["one", "two"] {
        upstream.send(format!("3\r\n{part}\r\n"));
        let mut heard = [0; 3];
        std::io::Read::read_exact(&mut out, &mut heard).unwrap();
        assert_eq!(heard, part.as_bytes());
    }
    upstream.send("0\r\n\r\n");
    assert!(child.wait().unwrap().success());
}

/// `-p`: a tunnel to a plaintext port.
#[test]
fn curl_gets_a_file_through_a_tunnel() {
    let origin = Files::one("/file", "contents");
    assert_eq!(curl(&["--proxytunnel", &origin.url("/file")]), b"contents");
    assert!(!origin.seen().requests[0].0.contains("Via:"), "{:?}", origin.seen().requests);
}

#[test]
fn curl_shows_why_a_tunnel_was_refused() {
    let closed = conformance::Refusing::new();
    let url = format!("http://{}/", closed.address());
    let output = run("curl", &["--silent", "--show-error", "--verbose", "--proxytunnel", &url]);
    assert_eq!(output.status.code(), Some(56));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("502 the origin refused the connection"), "{said}");
}

#[test]
fn wget_gets_a_file() {
    let origin = Files::one("/file", "contents");
    assert_eq!(output("wget", &["--quiet", "--output-document=-", &origin.url("/file")]), b"contents");
}

/// cargo offers h2c with every request over http; a proxy that refuses the offer breaks it.
#[test]
fn cargo_searches_a_registry() {
    let crates = r#"{"crates":[{"name":"behind","max_version":"1.0.0","description":"the proxy"}],"meta":{"total":1}}"#;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let index = format!("http://{}", listener.local_addr().unwrap());
    let config = format!(r#"{{"dl":"{index}/dl","api":"{index}"}}"#);
    let files = [("/config.json", config.as_str()), ("/api/v1/crates", crates)];
    let files = files.map(|(path, body)| (path.to_owned(), body.as_bytes().to_vec()));
    let origin = Files::serve_on(listener, HashMap::from(files));
    let home = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {0} && CARGO_HOME={0} exec cargo search --quiet --index sparse+{index}/ behind",
        home.path().display()
    );
    let said = String::from_utf8(output("sh", &["-c", &script])).unwrap();
    assert!(said.starts_with("behind = \"1.0.0\""), "{said}");
    let seen = origin.seen().requests;
    assert!(!seen.is_empty());
    for (head, _) in seen {
        let head = head.to_ascii_lowercase();
        assert!(
            head.contains("\r\nvia: 1.1 sluice-")
                && !head.contains("h2c")
                && !head.contains("http2-settings"),
            "{head}"
        );
    }
}

/// A repository served as plain files, which is all `git update-server-info` takes.
#[test]
fn git_clones_a_repository() {
    let dir = tempfile::tempdir().unwrap();
    let (work, bare, clone) = (dir.path().join("work"), dir.path().join("bare"), dir.path().join("clone"));
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    output("git", &["init", "--quiet", "--initial-branch=main", &path(&work)]);
    fs::write(work.join("README"), "through the proxy\n").unwrap();
    output("git", &["-C", &path(&work), "add", "README"]);
    let author = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
    output("git", &[&["-C", &path(&work)], &author[..], &["commit", "--quiet", "-m", "one"]].concat());
    output("git", &["clone", "--quiet", "--bare", &path(&work), &path(&bare)]);
    output("git", &["-C", &path(&bare), "update-server-info"]);
    let mut files = HashMap::new();
    gather(&bare, "/repo.git", &mut files);
    let origin = Files::serve(files);
    output("git", &["clone", "--quiet", &origin.url("/repo.git"), &path(&clone)]);
    assert_eq!(fs::read_to_string(clone.join("README")).unwrap(), "through the proxy\n");
    assert!(
        origin
            .seen()
            .requests
            .iter()
            .all(|(head, _)| head.to_ascii_lowercase().contains("\r\nvia: 1.1 sluice-"))
    );
}
