//! Real clients in a sandbox whose policy judges their HTTPS: they trust the sandbox' authority without being told, and
//! what they are refused they can read.

mod e2e;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use e2e::*;

/// Python packages that the tests need, from whatever index pip is set up for.
fn packages() -> &'static str {
    static TARGET: OnceLock<String> = OnceLock::new();
    TARGET.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e-tls-python");
        let target = target.to_str().expect("UTF-8").to_owned();
        let install =
            ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"];
        let wanted = ["requests", "aiohttp", "websockets"];
        let output = Command::new(python()).args(install).arg(&target).args(wanted).output().expect("pip");
        assert!(output.status.success(), "pip: {}", String::from_utf8_lossy(&output.stderr));
        target
    })
}

#[test]
fn curl_and_wget_get_and_are_told_why_they_may_not_post() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let url = origin.url("/hello");
    let outcome = origin.read_only(&scene).run(&["curl", "-sS", &url, &url]).ended_with(0);
    assert_eq!(outcome.text(), "hello from inside\n".repeat(2));
    let event = &outcome.events_of("request.allowed")[0];
    assert_eq!(
        (&event["method"], &event["path"], &event["status"]),
        (&"GET".into(), &"/hello".into(), &200.into())
    );
    let outcome = origin.read_only(&scene).run(&["curl", "-sS", "-d", "x=1", &url]).ended_with(0);
    assert!(outcome.text().contains(r#""reason":"method_not_allowed""#), "{outcome}");
    let outcome = origin.read_only(&scene).run(&["wget", "-qO-", &url]).ended_with(0);
    assert_eq!(outcome.text(), "hello from inside\n");
}

#[test]
fn a_client_that_pins_is_hinted_and_tls_skip_shows_it_the_origins_own_certificate() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let root = origin.dir().join("root.pem");
    // Trusts the origin's authority alone, as a client that pins does.
    let pinned = ["curl", "-sS", "--cacert", root.to_str().expect("UTF-8"), &origin.url("/hello")];
    let outcome = origin.read_only(&scene).run(&pinned).ended_with(60);
    let event = outcome.the("tls.failed");
    assert_eq!(event["reason"], "client_refused_certificate");
    assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("tls: skip")), "{outcome}");
    assert!(outcome.stderr.contains("tls: skip"), "the summary says so too: {outcome}");
    let outcome = origin.exec(&scene, "tls: skip").run(&pinned).ended_with(0);
    assert_eq!(outcome.text(), "hello from inside\n");
    assert!(outcome.events_of("request.allowed").is_empty(), "nobody looked inside");
}

#[test]
fn another_name_inside_tls_is_refused() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let fronted = format!("https://other.test:{}/hello", origin.port());
    let to = format!("other.test:{0}:origin.test:{0}", origin.port());
    let outcome = origin.read_only(&scene).run(&["curl", "-sS", "-k", "--connect-to", &to, &fronted]);
    assert_ne!(outcome.code, 0, "{outcome}");
    assert_eq!(outcome.the("connect.denied")["reason"], "sni_mismatch");
}

#[test]
fn requests_aiohttp_and_websockets_work_inside() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let script = format!(
        r#"
import asyncio, requests, aiohttp, websockets
url = "{0}"
assert requests.get(url).text == "hello from inside\n"
refused = requests.post(url, data="x")
assert refused.status_code == 403 and refused.json()["reason"] == "method_not_allowed", refused.text
async def main():
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(url) as answer: assert await answer.text() == "hello from inside\n"
        async with session.post(url, data="x") as answer: assert answer.status == 403
    async with websockets.connect(url.replace("https", "wss")) as socket:
        await socket.send("echo this")
        assert await socket.recv() == "echo this"
asyncio.run(main())
print("done")
"#,
        origin.url("/hello")
    );
    let run = origin.read_only(&scene).env("PYTHONPATH", packages());
    let outcome = run.run(&[python(), "-c", &script]).ended_with(0);
    assert_eq!(outcome.text(), "done\n", "{outcome}");
    assert!(outcome.events_of("request.allowed").iter().any(|event| event["status"] == 101), "{outcome}");
}

#[test]
fn node_works_inside_a_tunnel_of_its_own() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let script = format!(
        r"
const http = require('http'), https = require('https'), url = new URL('{}');
const proxy = new URL(process.env.https_proxy);
class Tunnel extends https.Agent {{
  createConnection(options, done) {{
    http.request({{ host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: url.host }})
      .on('connect', (_, socket) => done(null, require('tls').connect({{ socket, servername: url.hostname }}))).end();
  }}
}}
const agent = new Tunnel({{ keepAlive: true }});
const ask = (method, then) => https.request(url, {{ agent, method }}, answer => {{
  let text = ''; answer.on('data', part => text += part).on('end', () => then(answer.statusCode, text));
}}).end();
ask('GET', (status, text) => {{ console.log(status, text.trim());
  ask('POST', (status, text) => {{ console.log(status, JSON.parse(text).reason); process.exit(); }}); }});
",
        origin.url("/hello")
    );
    let outcome = origin.read_only(&scene).run(&[node(), "-e", &script]).ended_with(0);
    assert_eq!(outcome.text(), "200 hello from inside\n403 method_not_allowed\n", "{outcome}");
}

#[test]
fn git_clones_from_a_server_of_files() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let script = "cd files && git init -q work && cd work && git -c user.name=a -c user.email=a@b commit -q --allow-empty \
                  -m first && cd .. && git clone -q --bare work repo.git && cd repo.git && git update-server-info";
    let made = Command::new("sh").args(["-c", script]).current_dir(origin.dir()).status().expect("sh");
    assert!(made.success());
    let outcome = origin.read_only(&scene).run(&["git", "clone", "-q", &origin.url("/repo.git"), "clone"]);
    let outcome = outcome.ended_with(0);
    assert!(origin.dir().join("clone/.git").is_dir(), "{outcome}");
    assert!(outcome.events_of("request.allowed").len() > 2, "{outcome}");
}

#[test]
fn pip_and_npm_ask_mirrors() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let files = origin.dir().join("files");
    let wheel = "demo_pkg-1.0-py3-none-any.whl";
    let index = files.join("simple/demo-pkg");
    fs::create_dir_all(&index).expect("make the index");
    fs::write(index.join("index.html"), format!("<a href=\"/{wheel}\">{wheel}</a>"))
        .expect("write the index");
    let pack = format!(
        "import zipfile\nz = zipfile.ZipFile({:?}, 'w')\nz.writestr('demo_pkg.py', '')\n\
         z.writestr('demo_pkg-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: demo-pkg\\nVersion: 1.0\\n')\n\
         z.writestr('demo_pkg-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
         z.writestr('demo_pkg-1.0.dist-info/RECORD', '')\nz.close()\n",
        files.join(wheel)
    );
    assert!(Command::new(python()).args(["-c", &pack]).status().expect("python3").success());
    let (simple, cache) = (origin.url("/simple/"), "--no-cache-dir");
    let pip = [python(), "-m", "pip", "--isolated", "download", "-q", cache, "--no-deps", "-d", "got"];
    let line: Vec<&str> =
        pip.into_iter().chain(["--disable-pip-version-check", "-i", &simple, "demo-pkg"]).collect();
    let outcome = origin.read_only(&scene).run(&line).ended_with(0);
    assert!(origin.dir().join("got").join(wheel).is_file(), "{outcome}");

    let package = r#"{"name":"demo-pkg","dist-tags":{"latest":"1.2.3"},"versions":{"1.2.3":{"name":"demo-pkg","version":"1.2.3"}}}"#;
    fs::write(files.join("demo-pkg"), package).expect("write the package");
    let registry = format!("--registry={}", origin.url("/"));
    let npm = ["npm", "view", "demo-pkg", "version", &registry, "--cache=npm-cache"];
    let outcome = origin.read_only(&scene).run(&npm).ended_with(0);
    assert_eq!(outcome.text().trim(), "1.2.3", "{outcome}");
}

#[test]
fn java_trusts_the_authority_too() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let source = "import java.net.*; class Get { public static void main(String[] words) throws Exception { \
                  System.out.print(new String(new URL(words[0]).openStream().readAllBytes())); } }";
    scene.file("Get.java", source);
    let url = origin.url("/hello");
    let java = ["java", "-Dhttps.proxyHost=10.200.0.1", "-Dhttps.proxyPort=3128", "Get.java", &url];
    let outcome = origin.read_only(&scene).run(&java).ended_with(0);
    assert_eq!(outcome.text(), "hello from inside\n", "{outcome}");
}

#[test]
fn a_renegotiation_is_not_taken_part_in() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let at = format!("origin.test:{}", origin.port());
    let openssl = format!(
        "(printf 'R\\n'; sleep 1; printf 'GET /hello HTTP/1.0\\r\\n\\r\\n'; sleep 1) | \
         openssl s_client -tls1_2 -proxy 10.200.0.1:3128 -connect {at} -servername origin.test 2>&1"
    );
    let outcome = origin.read_only(&scene).run(&["sh", "-c", &openssl]);
    assert!(outcome.text().contains("Verify return code: 0"), "{outcome}");
    assert!(
        outcome.text().contains("no renegotiation") || !outcome.text().contains("hello from"),
        "{outcome}"
    );
}

#[test]
fn a_workload_that_is_not_looked_into_has_its_environment_to_itself() {
    let scene = Scene::new();
    let set = "env | grep -c /run/sluice-ca";
    let outcome = scene.exec().open().run(&["sh", "-c", set]);
    assert_eq!(outcome.text(), "0\n", "{outcome}");
}

#[test]
fn a_command_in_a_sandbox_of_the_daemons_is_looked_into_and_its_authority_is_shown() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let daemon = Daemon::start(&scene, &origin.trusted());
    let judged = scene.file("p.yaml", &origin.policy("protocol: rest, access: read-only"));
    daemon.ask(&["sandbox", "create", "a", "--policy", judged.to_str().unwrap()]).ended_with(0);
    let url = origin.url("/hello");
    let curl = ["sandbox", "exec", "a", "--", "curl", "-sS", "-m", "20", &url];
    assert_eq!(daemon.ask(&curl).ended_with(0).stdout, "hello from inside\n");
    let said = daemon.ask(&[&curl[..], &["-d", "x=1"]].concat()).ended_with(0);
    assert!(said.stdout.contains(r#""reason":"method_not_allowed""#), "{}", said.stdout);
    let event = &daemon.events_of("request.denied", "a")[0];
    assert_eq!((&event["method"], &event["path"]), (&"POST".into(), &"/hello".into()), "{event}");

    let tls = daemon.ask_json(&["sandbox", "show", "a"])["tls"].clone();
    assert_eq!(tls["used"], true, "{tls}");
    let (fingerprint, ca) = (tls["fingerprint"].as_str().unwrap(), tls["ca"].as_str().unwrap());
    let openssl = ["x509", "-noout", "-fingerprint", "-sha256", "-enddate", "-in", ca];
    let said = scene.inside(|| Command::new("openssl").args(openssl).output()).expect("openssl");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains(fingerprint), "{fingerprint} is not in {said}");
    let year = &tls["expires"].as_str().unwrap()[..4];
    assert!(said.contains(year), "{tls}: {said}");
    let file = scene.inside(|| fs::read_to_string(ca)).expect("the certificate");
    assert_eq!(tls["certificate"].as_str().unwrap().trim(), file.trim());
    for file in ["bundle", "truststore"] {
        let path = tls[file].as_str().unwrap();
        assert!(scene.inside(|| fs::metadata(path)).is_ok_and(|file| file.len() > 500), "{path}");
    }
    let said = daemon.ask(&["sandbox", "show", "a"]).ended_with(0);
    assert!(said.stdout.contains(fingerprint) && said.stdout.contains(ca), "{}", said.stdout);

    let raw = scene.file("raw.yaml", &origin.policy("tls: skip"));
    daemon.ask(&["policy", "set", "a", raw.to_str().unwrap()]).ended_with(0);
    assert_eq!(daemon.ask_json(&["sandbox", "show", "a"])["tls"]["used"], false);
    // The origin's own certificate, of an authority that the sandbox does not know.
    daemon.ask(&curl).ended_with(60);
}
