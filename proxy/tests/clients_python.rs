//! Python's clients through the proxy: the standard library, and requests, aiohttp and websockets in an environment of
//! the test's own. The packages come from whatever index pip is set up for; without one these tests fail and say so.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use conformance::file::Files;
use conformance::tls::{TLS_HOST, TlsFiles};
use conformance::{Origin, Proxy, Setup};

/// Fixed, so that a test says today what it said yesterday.
const PACKAGES: [&str; 3] = ["requests==2.32.3", "aiohttp==3.11.11", "websockets==15.0.1"];

/// The folder the packages were installed into, once, by whoever comes first.
fn packages() -> &'static PathBuf {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("python-clients");
        let done = folder.join("installed");
        if std::fs::read_to_string(&done).is_ok_and(|what| what == PACKAGES.join(" ")) {
            return folder;
        }
        let target = folder.to_str().unwrap();
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--root-user-action=ignore",
        ]);
        let output =
            pip.args(["--upgrade", "--target", target]).args(PACKAGES).output().expect("python3 is needed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pip cannot fetch {PACKAGES:?}, which this test needs: {said}");
        std::fs::write(done, PACKAGES.join(" ")).unwrap();
        folder
    })
}

/// Runs a script with the proxy in its environment; what it prints.
#[track_caller]
fn python(proxy: &Proxy, script: &str, words: &[&str], with_packages: bool) -> String {
    let mut command = Command::new("python3");
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env(name, proxy.url());
    }
    command.env("no_proxy", "").env("NO_PROXY", "");
    if with_packages {
        command.env("PYTHONPATH", packages());
    }
    let output = command.args(["-c", script]).args(words).output().expect("python3 is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn urllib_gets_and_posts() {
    let origin = Files::one("/file", "contents");
    let script = "import sys, urllib.request as u\n\
                  print(u.urlopen(sys.argv[1]).read().decode(), u.urlopen(sys.argv[2], data=b'abc').read().decode())";
    let words = [&*origin.url("/file"), &*origin.url("/post")];
    assert_eq!(python(Proxy::shared(), script, &words, false), "contents 3\n");
    assert_eq!(origin.seen().requests[1].1, b"abc");
}

/// `set_tunnel` and then keep-alive requests inside the tunnel.
#[test]
fn http_client_asks_twice_through_a_tunnel() {
    let origin = Files::one("/file", "contents");
    let script = "import sys, http.client as h\n\
                  at, host, port = sys.argv[1:]\n\
                  c = h.HTTPConnection(at); c.set_tunnel(host, int(port))\n\
                  for _ in range(2): c.request('GET', '/file'); print(c.getresponse().read().decode())";
    let (at, port) = (Proxy::shared().address().to_string(), origin.address().port().to_string());
    assert_eq!(python(Proxy::shared(), script, &[&at, "127.0.0.1", &port], false), "contents\ncontents\n");
    assert_eq!(origin.seen().connections, 1);
}

/// The reason is in the status phrase: client libraries never show the body of a refused CONNECT.
#[test]
fn http_client_says_why_a_tunnel_was_refused() {
    let proxy = Setup::default().policy("version: 1\n").start();
    let script = "import sys, http.client as h\n\
                  c = h.HTTPConnection(sys.argv[1]); c.set_tunnel('api.example', 443)\n\
                  try: c.request('GET', '/')\n\
                  except OSError as e: print(e)";
    let said = python(&proxy, script, &[&proxy.address().to_string()], false);
    assert_eq!(said, "Tunnel connection failed: 403 Denied by policy: host not allowed\n");
}

#[test]
fn requests_gets_posts_and_streams_over_one_connection() {
    let origin = Files::one("/file", "contents");
    let script = "import sys, requests\n\
                  s = requests.Session()\n\
                  print(s.get(sys.argv[1]).text, s.post(sys.argv[2], data=b'abc').text)\n\
                  print(s.post(sys.argv[2], data=(c for c in [b'one', b'two'])).text)";
    let words = [&*origin.url("/file"), &*origin.url("/post")];
    assert_eq!(python(Proxy::shared(), script, &words, true), "contents 3\n6\n");
    let seen = origin.seen();
    assert_eq!((seen.connections, &*seen.requests[2].1), (1, &b"onetwo"[..]));
}

#[test]
fn aiohttp_gets_with_trust_env() {
    let origin = Files::one("/file", "contents");
    let script = "import sys, asyncio, aiohttp\n\
                  async def main():\n\
                  \x20   async with aiohttp.ClientSession(trust_env=True) as s:\n\
                  \x20       bodies = await asyncio.gather(*(text(s) for _ in range(10)))\n\
                  \x20       print(set(bodies), (await (await s.post(sys.argv[2], data=b'abc')).text()))\n\
                  async def text(s):\n\
                  \x20   async with s.get(sys.argv[1]) as r: return await r.text()\n\
                  asyncio.run(main())";
    let words = [&*origin.url("/file"), &*origin.url("/post")];
    assert_eq!(python(Proxy::shared(), script, &words, true), "{'contents'} 3\n");
}

/// CONNECT, and the upgrade inside: the handshake and the frames against a server of the same library.
#[test]
fn websockets_talk_through_a_tunnel_that_is_judged() {
    let origin = Origin::new();
    let port = origin.port();
    // The port is taken over by the server: nobody else may be given it meanwhile.
    drop(origin);
    let rules = "protocol: http, rules: [{allow: {method: GET, path: /chat}}]";
    let proxy = Setup::default().endpoints(&[format!("host: 127.0.0.1, port: {port}, {rules}")]).start();
    let script = "import sys, asyncio, websockets\n\
                  from websockets.asyncio.client import connect\n\
                  from websockets.asyncio.server import serve\n\
                  async def echo(ws):\n\
                  \x20   await ws.send('hello first')\n\
                  \x20   async for m in ws: await ws.send(m)\n\
                  async def main():\n\
                  \x20   url = f'ws://127.0.0.1:{sys.argv[1]}'\n\
                  \x20   async with serve(echo, '127.0.0.1', int(sys.argv[1])):\n\
                  \x20       async with connect(url + '/chat', proxy=sys.argv[2]) as ws:\n\
                  \x20           print(await ws.recv())\n\
                  \x20           for n in (1, 1000, 200000):\n\
                  \x20               await ws.send('x' * n); print(len(await ws.recv()))\n\
                  \x20       try: await connect(url + '/other', proxy=sys.argv[2])\n\
                  \x20       except websockets.InvalidStatus as e: print(e.response.status_code)\n\
                  asyncio.run(main())";
    let said = python(&proxy, script, &[&port.to_string(), &proxy.url()], true);
    assert_eq!(said, "hello first\n1\n1000\n200000\n403\n");
}

/// requests and aiohttp over HTTPS, and a WebSocket over TLS with either library: raw tunnels that must name their host.
#[test]
fn requests_and_aiohttp_and_websockets_speak_tls_in_a_tunnel() {
    let files = std::collections::HashMap::from([("/file".to_owned(), b"contents".to_vec())]);
    let origin = TlsFiles::serve(&files);
    let chat = Origin::new();
    let chat_port = chat.port();
    // The port is taken over by the server: nobody else may be given it meanwhile.
    drop(chat);
    let chat = format!("host: {TLS_HOST}, port: {chat_port}, sni: verify");
    let proxy = Setup::default().endpoints(&[origin.endpoint(), chat]).start();
    let script = "import sys, asyncio, ssl, requests, aiohttp, websockets\n\
                  from websockets.asyncio.client import connect\n\
                  from websockets.asyncio.server import serve\n\
                  proxy, ca, key, url, post, port, chat = sys.argv[1:]\n\
                  s = requests.Session()\n\
                  print(s.get(url, verify=ca).text, s.post(post, data=b'abc', verify=ca).text)\n\
                  trust = ssl.create_default_context(cafile=ca)\n\
                  own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); own.load_cert_chain(ca, key)\n\
                  async def echo(ws):\n\
                  \x20   async for m in ws: await ws.send(m)\n\
                  async def main():\n\
                  \x20   async with aiohttp.ClientSession(trust_env=True) as s:\n\
                  \x20       async with s.get(url, ssl=trust) as r: print(await r.text())\n\
                  \x20       async with serve(echo, '127.0.0.1', int(port), ssl=own):\n\
                  \x20           async with s.ws_connect(chat, ssl=trust, proxy=proxy) as ws:\n\
                  \x20               await ws.send_str('one'); print((await ws.receive()).data)\n\
                  \x20           async with connect(chat, proxy=proxy, ssl=trust) as ws:\n\
                  \x20               await ws.send('x' * 200000); print(len(await ws.recv()))\n\
                  asyncio.run(main())";
    let (ca, key) = (origin.certificate(), origin.key());
    let said = python(
        &proxy,
        script,
        &[
            &proxy.url(),
            ca.to_str().unwrap(),
            key.to_str().unwrap(),
            &origin.url("/file"),
            &origin.url("/post"),
            &chat_port.to_string(),
            &format!("wss://{TLS_HOST}:{chat_port}/"),
        ],
        true,
    );
    assert_eq!(said, "contents 3\ncontents\none\n200000\n");
}

/// pip against an index of one package, served as files.
#[test]
fn pip_installs_from_an_index_behind_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let script = "import sys, zipfile\n\
                  z = zipfile.ZipFile(sys.argv[1], 'w'); d = 'behind-1.0.dist-info/'\n\
                  z.writestr('behind.py', 'said = \"through the proxy\"')\n\
                  z.writestr(d + 'METADATA', 'Metadata-Version: 2.1\\nName: behind\\nVersion: 1.0\\n')\n\
                  z.writestr(d + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
                  z.writestr(d + 'RECORD', '')";
    let wheel = dir.path().join("behind-1.0-py3-none-any.whl");
    python(Proxy::shared(), script, &[wheel.to_str().unwrap()], false);
    let page = "<!DOCTYPE html><a href=\"/behind-1.0-py3-none-any.whl\">behind-1.0-py3-none-any.whl</a>";
    let origin = Files::serve(std::collections::HashMap::from([
        ("/simple/behind/".to_owned(), page.into()),
        ("/behind-1.0-py3-none-any.whl".to_owned(), std::fs::read(wheel).unwrap()),
    ]));
    let target = dir.path().join("target");
    let words = format!(
        "install --quiet --isolated --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
         --proxy {} --index-url {} --trusted-host 127.0.0.1 --target {} behind",
        Proxy::shared().url(),
        origin.url("/simple"),
        target.display()
    );
    let output = Command::new("python3").args(["-m", "pip"]).args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(target.join("behind.py").exists());
    assert!(origin.seen().requests.iter().all(|(head, _)| head.to_ascii_lowercase().contains("\r\nvia: ")));
}
