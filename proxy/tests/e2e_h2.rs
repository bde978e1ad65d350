//! Real clients of HTTP/2 in a sandbox whose policy judges their requests, against real servers of it.

mod e2e;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use e2e::*;

/// Node's own server of HTTP/2, and of HTTP/1.1 for who wants that.
const NODE_SERVER: &str = r"
const fs = require('fs'), http2 = require('http2');
const [cert, key] = process.argv.slice(-2).map((path) => fs.readFileSync(path));
let next = () => {};
const server = http2.createSecureServer({ cert, key, allowHTTP1: true }, (request, response) => {
  if (request.url === '/events') {
    response.setHeader('content-type', 'text/event-stream');
    response.write('data: 1\n\n');
    next = () => response.end('data: 2\n\n');
  } else if (request.url === '/next') {
    next(); response.end('sent');
  } else if (request.method === 'PUT') {
    let octets = 0;
    request.on('data', (data) => { octets += data.length; });
    request.on('end', () => response.end(`${octets}`));
  } else if (request.url === '/big') {
    response.end(Buffer.alloc(8 << 20, 'x'));
  } else {
    response.end(`hello over ${request.httpVersion}\n`);
  }
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
";

/// gRPC without generated code: octets are messages.
const GRPC_SERVER: &str = r"
import concurrent.futures, sys, grpc
def chat(messages, context):
    for message in messages: yield b'echo ' + message
class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method.endswith('/Chat'): return grpc.stream_stream_rpc_method_handler(chat)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b'echo ' + request)
cert, key = (open(path, 'rb').read() for path in sys.argv[1:3])
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Handler(),))
port = server.add_secure_port('127.0.0.1:0', grpc.ssl_server_credentials(((key, cert),)))
server.start()
print(port, flush=True)
server.wait_for_termination()
";

/// An origin `origin.test`; it ends when this is dropped.
struct Served {
    child: Child,
    port: u16,
}

impl Served {
    fn node(scene: &Scene) -> Self {
        Self::start(scene, Command::new(node()).args(["-e", NODE_SERVER, "--"]))
    }

    fn grpc(scene: &Scene) -> Self {
        Self::start(scene, Command::new(python()).args(["-c", GRPC_SERVER]).env("PYTHONPATH", packages()))
    }

    fn start(scene: &Scene, command: &mut Command) -> Self {
        make_certificates(scene.dir());
        let paths = ["leaf.pem", "leaf.key"].map(|name| scene.dir().join(name));
        let mut child = command
            .args(paths)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server's program");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a port");
        Self { child, port: line.trim().parse().expect("a port") }
    }

    fn url(&self, path: &str) -> String {
        format!("https://origin.test:{}{path}", self.port)
    }

    /// A run under a policy with this endpoint, the root being one of the operator's.
    fn exec<'a>(&self, scene: &'a Scene, endpoint: &str) -> Exec<'a> {
        let policy = format!(
            "version: 1\nnetwork_policies:\n  test:\n    endpoints:\n      - {{host: origin.test, port: {}, {endpoint}}}\n",
            self.port
        );
        let root = scene.dir().join("root.pem");
        let exec = scene.exec().policy(&policy).permit_loopback();
        exec.option("--upstream-ca").option(root.to_str().expect("UTF-8"))
    }

    fn read_only<'a>(&self, scene: &'a Scene) -> Exec<'a> {
        self.exec(scene, "protocol: rest, access: read-only")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Python packages that the tests need, from whatever index pip is set up for.
fn packages() -> &'static str {
    static TARGET: OnceLock<String> = OnceLock::new();
    TARGET.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e-h2-python");
        let target = target.to_str().expect("UTF-8").to_owned();
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"];
        if !Path::new(&target).join("grpc").exists() {
            let wanted = ["grpcio", "httpx[http2]"];
            let output =
                Command::new(python()).args(install).arg(&target).args(wanted).output().expect("pip");
            assert!(output.status.success(), "pip: {}", String::from_utf8_lossy(&output.stderr));
        }
        target
    })
}

#[test]
fn curl_speaks_http2_and_is_told_why_it_may_not_post() {
    let scene = Scene::new();
    let origin = Served::node(&scene);
    let url = origin.url("/hello");
    let outcome = origin.read_only(&scene).run(&["curl", "-sS", "--http2", &url, &url]).ended_with(0);
    assert_eq!(outcome.text(), "hello over 2.0\n".repeat(2));
    let outcome = origin.read_only(&scene).run(&["curl", "-sS", "-d", "x=1", &url]).ended_with(0);
    assert!(outcome.text().contains(r#""reason":"method_not_allowed""#), "{outcome}");
    let event = &outcome.events_of("request.denied")[0];
    assert_eq!((&event["method"], &event["path"]), (&"POST".into(), &"/hello".into()));
    let outcome = origin.read_only(&scene).run(&["curl", "-sS", "--http1.1", &url]).ended_with(0);
    assert_eq!(outcome.text(), "hello over 1.1\n");
}

#[test]
fn curl_moves_large_bodies_over_http2() {
    let scene = Scene::new();
    let origin = Served::node(&scene);
    let upload = scene.dir().join("upload");
    std::fs::write(&upload, vec![b'y'; 5 << 20]).expect("write a file");
    let writes = || origin.exec(&scene, "protocol: rest, access: read-write");
    let (url, upload) = (origin.url("/up"), upload.display().to_string());
    let outcome = writes().run(&["curl", "-sS", "--http2", "-T", &upload, &url]).ended_with(0);
    assert_eq!(outcome.text(), (5 << 20).to_string());
    // What is refused is told while the upload is still under way.
    let refused =
        origin.read_only(&scene).run(&["curl", "-sS", "--http2", "-T", &upload, &url]).ended_with(0);
    assert!(refused.text().contains(r#""reason":"method_not_allowed""#), "{refused}");
    let size = "%{size_download} %{http_version}";
    let outcome = writes().run(&["curl", "-sS", "-o", "/dev/null", "-w", size, &origin.url("/big")]);
    assert_eq!(outcome.ended_with(0).text(), format!("{} 2", 8 << 20));
}

#[test]
fn nodes_client_hears_each_event_when_it_is_sent_and_reads_refusals() {
    const CLIENT: &str = r"
const http = require('http'), http2 = require('http2'), tls = require('tls');
const origin = new URL(process.argv.at(-1)), proxy = new URL(process.env.https_proxy);
const connect = http.request({ host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: origin.host });
connect.end().on('connect', (answer, socket) => {
  const secured = tls.connect({ socket, servername: origin.hostname, ALPNProtocols: ['h2'] });
  const session = http2.connect(origin, { createConnection: () => secured });
  const ask = (method, path, each) => new Promise((resolve, reject) => {
    const stream = session.request({ ':method': method, ':path': path });
    let status, text = '';
    stream.on('response', (head) => { status = head[':status']; });
    stream.on('data', (data) => { text += data; if (each) each(`${data}`); });
    stream.on('end', () => resolve([status, text])).on('error', reject);
    stream.end();
  });
  (async () => {
    const events = await ask('GET', '/events', (data) => { if (data.includes('1')) ask('GET', '/next'); });
    console.log(JSON.stringify(events));
    const many = await Promise.all(Array.from({ length: 150 }, (_, n) => ask('GET', `/${n}`)));
    console.log(many.every(([status]) => status === 200));
    const [status, refusal] = await ask('DELETE', '/hello');
    console.log(status, JSON.parse(refusal).reason);
    session.close();
  })();
});
";
    let scene = Scene::new();
    let origin = Served::node(&scene);
    let outcome = origin.read_only(&scene).run(&[node(), "-e", CLIENT, "--", &origin.url("/")]);
    let said = "[200,\"data: 1\\n\\ndata: 2\\n\\n\"]\ntrue\n403 method_not_allowed\n";
    assert_eq!(outcome.ended_with(0).text(), said);
}

#[test]
fn httpx_asks_over_one_connection() {
    const CLIENT: &str = r"
import os, sys, httpx
with httpx.Client(http2=True) as client:
    for _ in range(3):
        answer = client.get(sys.argv[1])
        print(answer.http_version, answer.status_code, answer.text.strip())
    answer = client.post(sys.argv[1], json={'x': 1})
    print(answer.http_version, answer.status_code, answer.json()['reason'])
";
    let scene = Scene::new();
    let origin = Served::node(&scene);
    let exec = origin.read_only(&scene).env("PYTHONPATH", packages());
    let outcome = exec.run(&[python(), "-c", CLIENT, &origin.url("/")]);
    let said = "HTTP/2 200 hello over 2.0\n".repeat(3) + "HTTP/2 403 method_not_allowed\n";
    assert_eq!(outcome.ended_with(0).text(), said);
}

#[test]
fn grpc_calls_are_judged_by_method_and_stream_both_ways() {
    const CLIENT: &str = r"
import queue, sys, grpc
channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials())
print(channel.unary_unary('/test.Echo/Say')(b'hello', timeout=20))
messages = queue.Queue()
call = channel.stream_stream('/test.Echo/Chat')(iter(messages.get, None), timeout=20)
for word in b'one', b'two', b'three':
    messages.put(word)
    print(next(call))
messages.put(None)
print(list(call), call.code())
try:
    channel.unary_unary('/test.Admin/Drop')(b'', timeout=20)
except grpc.RpcError as error:
    print(error.code())
";
    let scene = Scene::new();
    let origin = Served::grpc(&scene);
    let rules = "protocol: http, rules: [{allow: {method: POST, path: \"/test.Echo/*\"}}]";
    let exec = origin.exec(&scene, rules).env("PYTHONPATH", packages());
    let target = format!("origin.test:{}", origin.port);
    let outcome = exec.run(&[python(), "-c", CLIENT, &target]).ended_with(0);
    let said = "b'echo hello'\nb'echo one'\nb'echo two'\nb'echo three'\n[] StatusCode.OK\nStatusCode.PERMISSION_DENIED\n";
    assert_eq!(outcome.text(), said, "{outcome}");
    let event = &outcome.events_of("request.denied")[0];
    assert_eq!(event["path"], "/test.Admin/Drop");
}
