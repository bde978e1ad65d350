//! Node's clients through the proxy: `http.get` with an absolute URL and by CONNECT, and undici's `ProxyAgent`, which
//! npm fetches from whatever registry it is set up for; without one that test fails and says so.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use conformance::file::Files;
use conformance::tls::TlsFiles;
use conformance::{Proxy, Setup};

/// The newest that Node 20 runs.
const UNDICI: &str = "undici@6.21.1";

/// Runs a script; what it prints.
#[track_caller]
fn node(script: &str, words: &[&str], modules: Option<&PathBuf>) -> String {
    let mut command = Command::new("node");
    if let Some(modules) = modules {
        command.env("NODE_PATH", modules.join("node_modules"));
    }
    let output = command.args(["-e", script]).args(words).output().expect("node is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn http_get_asks_for_whole_urls_over_one_connection() {
    let origin = Files::one("/file", "contents");
    let script = "const http = require('http'); const [host, port, url] = process.argv.slice(1);\n\
                  const agent = new http.Agent({keepAlive: true});\n\
                  const get = () => new Promise((done, fail) => http.get({host, port, path: url, agent}, r => {\n\
                  \x20 let body = ''; r.on('data', d => body += d); r.on('end', () => done(body)); }).on('error', fail));\n\
                  (async () => { for (let i = 0; i < 3; i++) console.log(await get()); agent.destroy(); })();";
    let at = Proxy::shared().address();
    let words = [&*at.ip().to_string(), &*at.port().to_string(), &*origin.url("/file")];
    assert_eq!(node(script, &words, None), "contents\ncontents\ncontents\n");
    assert_eq!(origin.seen().connections, 1);
}

#[test]
fn http_request_opens_a_tunnel() {
    let origin = Files::one("/file", "contents");
    let script = "const http = require('http'); const [host, port, at] = process.argv.slice(1);\n\
                  http.request({host, port, method: 'CONNECT', path: at}).on('connect', (res, socket) => {\n\
                  \x20 http.get({createConnection: () => socket, path: '/file', headers: {host: at}}, r => {\n\
                  \x20   r.on('data', d => process.stdout.write(d)); r.on('end', () => socket.destroy()); });\n\
                  }).end();";
    let at = Proxy::shared().address();
    let words = [&*at.ip().to_string(), &*at.port().to_string(), &*origin.address().to_string()];
    assert_eq!(node(script, &words, None), "contents");
}

/// The folder undici was installed into, once, by whoever comes first.
fn undici() -> &'static PathBuf {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("node-clients");
        if !folder.join("node_modules/undici/package.json").exists() {
            std::fs::create_dir_all(&folder).unwrap();
            let mut npm = Command::new("npm");
            npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&folder).arg(UNDICI);
            let output = npm.output().expect("npm is needed");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "npm cannot fetch {UNDICI}, which this test needs: {said}");
        }
        folder
    })
}

/// CONNECT even for http://, with `connection: close` on the request for the tunnel.
#[test]
fn undici_fetches_through_its_proxy_agent() {
    let origin = Files::one("/file", "contents");
    let script = "const {ProxyAgent, fetch} = require('undici'); const [proxy, url] = process.argv.slice(1);\n\
                  const dispatcher = new ProxyAgent(proxy);\n\
                  (async () => { for (let i = 0; i < 2; i++) console.log(await (await fetch(url, {dispatcher})).text());\n\
                  \x20 console.log(await (await fetch(url, {dispatcher, method: 'POST', body: 'abc'})).text());\n\
                  \x20 await dispatcher.close(); })();";
    let said = node(script, &[&Proxy::shared().url(), &origin.url("/file")], Some(undici()));
    assert_eq!(said, "contents\ncontents\n3\n");
}

#[test]
fn undici_fetches_over_https() {
    let origin = TlsFiles::serve(&std::collections::HashMap::from([("/file".into(), "contents".into())]));
    let proxy = Setup::default().endpoints(&[origin.endpoint()]).start();
    let script = "const {ProxyAgent, fetch} = require('undici'); const [uri, ca, url] = process.argv.slice(1);\n\
                  const requestTls = {ca: require('fs').readFileSync(ca)};\n\
                  const dispatcher = new ProxyAgent({uri, requestTls});\n\
                  (async () => { for (let i = 0; i < 2; i++) console.log(await (await fetch(url, {dispatcher})).text());\n\
                  \x20 await dispatcher.close(); })();";
    let ca = origin.certificate();
    let words = [&*proxy.url(), ca.to_str().unwrap(), &origin.url("/file")];
    assert_eq!(node(script, &words, Some(undici())), "contents\ncontents\n");
}
