//! Real clients over HTTPS: the tunnel is raw, its ClientHello is held against the host (`sni: verify`), and the rest
//! passes untouched.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::collections::HashMap;
use std::process::{Command, Output};

use conformance::file::gather;
use conformance::tls::TlsFiles;
use conformance::{Proxy, Setup, pattern};

/// A daemon that lets its clients to this origin and nowhere else.
fn proxy_to(origin: &TlsFiles) -> Proxy {
    Setup::default().endpoints(&[origin.endpoint()]).start()
}

/// Runs a client with the proxy in its environment and the origin's certificate where clients look for one.
fn run(proxy: &Proxy, origin: &TlsFiles, program: &str, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env(name, proxy.url());
    }
    for name in ["GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"] {
        command.env(name, origin.certificate());
    }
    command.env("no_proxy", "").env("NO_PROXY", "").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.args(words).output().unwrap_or_else(|error| panic!("{program} is needed: {error}"))
}

/// What a client that must succeed writes to its stdout.
#[track_caller]
fn output(proxy: &Proxy, origin: &TlsFiles, program: &str, words: &[&str]) -> Vec<u8> {
    let output = run(proxy, origin, program, words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {said}\n{}", proxy.said());
    output.stdout
}

fn one(body: &[u8]) -> TlsFiles {
    TlsFiles::serve(&HashMap::from([("/file".to_owned(), body.to_vec())]))
}

/// The daemon judged the tunnel, saw its end and counted what went through.
#[track_caller]
fn was_tunnelled(proxy: &Proxy, origin: &TlsFiles, octets: u64) {
    assert_eq!(proxy.event_about("connect.allowed", origin.port())["dst_host"], conformance::tls::TLS_HOST);
    let closed = proxy.event_about("tunnel.closed", origin.port());
    assert!(closed["bytes_down"].as_u64() >= Some(octets), "{closed}");
}

#[test]
fn curl_gets_and_uploads() {
    let body = pattern(3 << 20);
    let origin = one(&body);
    let proxy = proxy_to(&origin);
    let ca = origin.certificate();
    let common = ["--silent", "--show-error", "--fail", "--max-time", "30", "--cacert", ca.to_str().unwrap()];
    let url = origin.url("/file");
    for version in ["--http1.0", "--http1.1", "--http2"] {
        let words = [&common[..], &[version, &url]].concat();
        assert!(output(&proxy, &origin, "curl", &words) == body, "{version}");
    }
    was_tunnelled(&proxy, &origin, 3 << 20);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let up = origin.url("/up");
    let words = [&common[..], &["-T", file.path().to_str().unwrap(), &up]].concat();
    assert_eq!(output(&proxy, &origin, "curl", &words), body.len().to_string().into_bytes());
}

/// Domain fronting as curl does it: CONNECT to the allowed host, TLS for another one behind the same address.
#[test]
fn curl_that_names_another_host_in_its_tls_gets_nowhere() {
    let origin = one(b"contents");
    let proxy = proxy_to(&origin);
    let to = format!("other.localhost:443:{}:{}", conformance::tls::TLS_HOST, origin.port());
    let words = [
        "--silent",
        "--show-error",
        "--insecure",
        "--max-time",
        "30",
        "--connect-to",
        &to,
        "https://other.localhost/file",
    ];
    let output = run(&proxy, &origin, "curl", &words);
    assert_eq!(output.status.code(), Some(35), "{}", String::from_utf8_lossy(&output.stderr));
    let event = proxy.event_about("connect.denied", origin.port());
    assert_eq!(
        (&event["reason"], &event["dst_host"]),
        (&"sni_mismatch".into(), &conformance::tls::TLS_HOST.into())
    );
}

#[test]
fn wget_gets() {
    let origin = one(b"contents");
    let proxy = proxy_to(&origin);
    let ca = format!("--ca-certificate={}", origin.certificate().display());
    let words = ["--quiet", "--output-document=-", &ca, &origin.url("/file")];
    assert_eq!(output(&proxy, &origin, "wget", &words), b"contents");
    was_tunnelled(&proxy, &origin, 8);
}

#[test]
fn git_clones() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let git = |words: &[&str]| {
        let output = Command::new("git").args(words).env("GIT_CONFIG_GLOBAL", "/dev/null").output();
        assert!(output.expect("git is needed").status.success(), "{words:?}");
    };
    git(&["init", "--quiet", "--initial-branch=main", &path("work")]);
    std::fs::write(dir.path().join("work/README"), "through the proxy\n").unwrap();
    git(&["-C", &path("work"), "add", "README"]);
    let author = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
    git(&[&["-C", &path("work")], &author[..], &["commit", "--quiet", "-m", "one"]].concat());
    git(&["clone", "--quiet", "--bare", &path("work"), &path("bare")]);
    git(&["-C", &path("bare"), "update-server-info"]);
    let mut files = HashMap::new();
    gather(&dir.path().join("bare"), "/repo.git", &mut files);
    let origin = TlsFiles::serve(&files);
    let proxy = proxy_to(&origin);
    output(&proxy, &origin, "git", &["clone", "--quiet", &origin.url("/repo.git"), &path("clone")]);
    assert_eq!(std::fs::read_to_string(dir.path().join("clone/README")).unwrap(), "through the proxy\n");
    was_tunnelled(&proxy, &origin, 1);
}

/// The index says `https`, so cargo offers no h2c but the TLS in the tunnel.
#[test]
fn cargo_searches_a_registry() {
    let crates = r#"{"crates":[{"name":"behind","max_version":"1.0.0","description":"the proxy"}],"meta":{"total":1}}"#;
    let mut files = HashMap::from([("/api/v1/crates".to_owned(), crates.as_bytes().to_vec())]);
    // The configuration names the origin, whose port is known when it serves: the way the request took is relative.
    files.insert("/config.json".to_owned(), Vec::new());
    let origin = TlsFiles::serve(&files);
    let index = origin.url("");
    origin.replace("config.json", format!(r#"{{"dl":"{index}/dl","api":"{index}"}}"#));
    let proxy = proxy_to(&origin);
    let home = tempfile::tempdir().unwrap();
    let script = format!(
        "cd {0} && CARGO_HOME={0} exec cargo search --quiet --index sparse+{index}/ behind",
        home.path().display()
    );
    let said = String::from_utf8(output(&proxy, &origin, "sh", &["-c", &script])).unwrap();
    assert!(said.starts_with("behind = \"1.0.0\""), "{said}");
}

#[test]
fn urllib_gets_and_posts() {
    let origin = one(b"contents");
    let proxy = proxy_to(&origin);
    let script = "import sys, urllib.request as u\n\
                  print(u.urlopen(sys.argv[1]).read().decode(), u.urlopen(sys.argv[2], data=b'abc').read().decode())";
    let words = ["-c", script, &origin.url("/file"), &origin.url("/post")];
    assert_eq!(output(&proxy, &origin, "python3", &words), b"contents 3\n");
}

/// The tunnel is opened by hand and TLS spoken in it, as proxy agents do.
#[test]
fn node_speaks_tls_in_a_tunnel() {
    let origin = one(b"contents");
    let proxy = proxy_to(&origin);
    let script = "const http = require('http'), https = require('https'), tls = require('tls');\n\
                  const [host, port, at, name] = process.argv.slice(1);\n\
                  http.request({host, port, method: 'CONNECT', path: at}).on('connect', (res, socket) => {\n\
                  \x20 const secure = tls.connect({socket, servername: name}, () => {\n\
                  \x20   https.get({createConnection: () => secure, path: '/file', headers: {host: at}}, r => {\n\
                  \x20     r.on('data', d => process.stdout.write(d)); r.on('end', () => socket.destroy()); }); });\n\
                  }).end();";
    let at = proxy.address();
    let name = conformance::tls::TLS_HOST;
    let authority = format!("{name}:{}", origin.port());
    let words = ["-e", script, &at.ip().to_string(), &at.port().to_string(), &authority, name];
    assert_eq!(output(&proxy, &origin, "node", &words), b"contents");
}

/// `java.net.http.HttpClient` (HTTP/2 preferred, so it offers h2c over http) and `HttpURLConnection`, both schemes.
#[test]
fn javas_clients_get() {
    let plain = conformance::file::Files::one("/file", "contents");
    let origin = one(b"contents");
    let endpoints = [origin.endpoint(), format!("host: origin.localhost, port: {}", plain.address().port())];
    let proxy = Setup::default().endpoints(&endpoints).start();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("Get.java");
    std::fs::write(&source, JAVA).unwrap();
    let plain_url = format!("http://origin.localhost:{}/file", plain.address().port());
    let (at, ca) = (proxy.address(), origin.certificate());
    let words = [
        "-Xshare:auto",
        "-XX:TieredStopAtLevel=1",
        source.to_str().unwrap(),
        &at.ip().to_string(),
        &at.port().to_string(),
        ca.to_str().unwrap(),
        &plain_url,
        &origin.url("/file"),
    ];
    let said = output(&proxy, &origin, "java", &words);
    assert_eq!(String::from_utf8(said).unwrap(), "contents\n".repeat(4));
    for (head, _) in plain.seen().requests {
        let head = head.to_ascii_lowercase();
        assert!(head.contains("\r\nvia: 1.1 sluice-") && !head.contains("h2c"), "{head}");
    }
}

const JAVA: &str = r#"
import java.io.*; import java.net.*; import java.net.http.*; import java.security.KeyStore;
import java.security.cert.CertificateFactory; import javax.net.ssl.*;
class Get {
    public static void main(String[] words) throws Exception {
        var at = new InetSocketAddress(words[0], Integer.parseInt(words[1]));
        var store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (var in = new FileInputStream(words[2])) {
            store.setCertificateEntry("origin", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        var tls = SSLContext.getInstance("TLS");
        tls.init(null, trust.getTrustManagers(), null);
        HttpsURLConnection.setDefaultSSLSocketFactory(tls.getSocketFactory());
        var client = HttpClient.newBuilder().proxy(ProxySelector.of(at)).sslContext(tls).build();
        for (var url : new String[] {words[3], words[4]}) {
            var request = HttpRequest.newBuilder(URI.create(url)).build();
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
            var connection = new URL(url).openConnection(new Proxy(Proxy.Type.HTTP, at));
            System.out.println(new String(connection.getInputStream().readAllBytes()));
        }
    }
}
"#;
