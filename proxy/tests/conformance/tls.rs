//! An HTTPS origin for real clients: Python's server behind a certificate that `openssl` makes for the test.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The name in the certificate. It is loopback without any server being asked (RFC 6761 section 6.3).
pub(crate) const TLS_HOST: &str = "origin.localhost";

/// Serves the files of a folder by GET over keep-alive HTTP/1.1, and answers PUT and POST with the length of their body.
const SERVER: &str = "
import functools, http.server, ssl, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *words): pass
    def do_POST(self):
        if self.headers.get('Expect'): self.send_response_only(100); self.end_headers()
        length = str(len(self.rfile.read(int(self.headers['Content-Length'])))).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(length))); self.end_headers()
        self.wfile.write(length)
    do_PUT = do_POST
    def handle_expect_100(self): return True
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=sys.argv[3]))
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
";

/// A running HTTPS origin; it ends when this is dropped.
pub(crate) struct TlsFiles {
    dir: TempDir,
    port: u16,
    child: Child,
}

impl TlsFiles {
    /// Serves these bodies by path.
    pub(crate) fn serve(files: &HashMap<String, Vec<u8>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_certificate(dir.path());
        let folder = dir.path().join("files");
        std::fs::create_dir(&folder).unwrap();
        for (path, body) in files {
            let path = folder.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, body).unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "python3", "-c", SERVER]);
        command.args([dir.path().join("cert.pem"), dir.path().join("key.pem"), folder]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("python3 is needed");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { dir, port: line.trim().parse().expect("the origin's port"), child }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{TLS_HOST}:{}{path}", self.port)
    }

    /// What a client must trust.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    /// Serves another body by this path from now on.
    pub(crate) fn replace(&self, path: &str, body: impl AsRef<[u8]>) {
        std::fs::write(self.dir.path().join("files").join(path), body).unwrap();
    }

    /// Its key.
    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }

    /// An endpoint of a policy: a raw tunnel to this origin that must name it.
    pub(crate) fn endpoint(&self) -> String {
        format!("host: {TLS_HOST}, port: {}, sni: verify", self.port)
    }
}

impl Drop for TlsFiles {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_certificate(dir: &Path) {
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=origin.localhost \
                 -addext subjectAltName=DNS:origin.localhost -keyout key.pem -out cert.pem";
    let output = Command::new("openssl").args(words.split_whitespace()).current_dir(dir).output();
    let output = output.expect("openssl is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
