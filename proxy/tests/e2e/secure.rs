//! An HTTPS origin under an authority of the test's own, and the policies that lead to it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Exec, Scene, make_certificates, python};

/// Files by GET, an answer to POST, and a WebSocket that echoes.
const SERVER: &str = r"
import base64, functools, hashlib, http.server, ssl, struct, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *words): pass
    def do_POST(self):
        self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers()
    def do_GET(self):
        key = self.headers.get('Sec-WebSocket-Key')
        if not key: return super().do_GET()
        digest = hashlib.sha1(key.encode() + b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest()
        self.send_response(101); self.send_header('Upgrade', 'websocket'); self.send_header('Connection', 'Upgrade')
        self.send_header('Sec-WebSocket-Accept', base64.b64encode(digest).decode()); self.end_headers()
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2: return
            mask = self.rfile.read(4)
            text = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))
            self.wfile.write(bytes([head[0], len(text)]) + text); self.wfile.flush()
            if head[0] & 15 == 8: return
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=sys.argv[3]))
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
";

/// An HTTPS origin `origin.test` under a root of the test's own; it ends when this is dropped.
pub(crate) struct Secure {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Secure {
    /// Serves what is in `files` of the scene.
    pub(crate) fn start(scene: &Scene) -> Self {
        let dir = scene.dir().to_owned();
        let path = |name: &str| dir.join(name);
        make_certificates(&dir);
        fs::create_dir_all(path("files")).expect("make the folder");
        fs::write(path("files/hello"), "hello from inside\n").expect("write a file");
        let mut child = Command::new(python())
            .args(["-c", SERVER])
            .args([path("leaf.pem"), path("leaf.key"), path("files")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a port");
        Self { child, port: line.trim().parse().expect("a port"), dir }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://origin.test:{}{path}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its certificates and its files are in here.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A policy of this endpoint.
    pub(crate) fn policy(&self, endpoint: &str) -> String {
        format!(
            "version: 1\nnetwork_policies:\n  test:\n    endpoints:\n      - {{host: origin.test, port: {}, {endpoint}}}\n",
            self.port
        )
    }

    /// The configuration of a daemon that trusts its authority.
    pub(crate) fn trusted(&self) -> String {
        format!("tls: {{ upstream_ca: [{}] }}\n", self.dir.join("root.pem").display())
    }

    /// A run under a policy with this endpoint, the root being one of the operator's.
    pub(crate) fn exec<'a>(&self, scene: &'a Scene, endpoint: &str) -> Exec<'a> {
        let root = self.dir.join("root.pem");
        scene
            .exec()
            .policy(&self.policy(endpoint))
            .permit_loopback()
            .option("--upstream-ca")
            .option(root.to_str().expect("UTF-8"))
    }

    pub(crate) fn read_only<'a>(&self, scene: &'a Scene) -> Exec<'a> {
        self.exec(scene, "protocol: rest, access: read-only")
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
