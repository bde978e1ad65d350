//! What runs inside the sandbox: a few attempts, each by a real program where there is one.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::internet::API_ADDRESS;
use super::{API, ECHO, FORBIDDEN};
use crate::cli::say;

/// Messages that go through the WebSocket and back.
const FRAMES: u32 = 1_000;
/// No step may keep the audience waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shows everything. Fails if a step did not end as it should.
pub fn run() -> anyhow::Result<()> {
    let mut tour = Tour { step: 0, failed: 0, colour: io::stdout().is_terminal() };
    let api = format!("http://{API}/");
    tour.chapter("What the policy allows goes through the proxy");
    tour.program("a request", "curl", &["-sS", "-m", "5", &api], |said| said.contains("Hello"));
    tour.program("a CONNECT tunnel", "curl", &["-sS", "-m", "5", "-p", &api], |said| said.contains("Hello"));
    tour.show("a WebSocket in a tunnel", &format!("{FRAMES} messages to ws://{ECHO}/ and back"), websocket);

    tour.chapter("What it does not allow is refused, with the reason and a remedy");
    let forbidden = format!("http://{FORBIDDEN}/");
    let denied = |said: &str| said.contains("policy_denied");
    tour.program("a host nobody allowed", "curl", &["-sS", "-m", "5", &forbidden], denied);

    tour.chapter("What goes around the proxy is refused by the kernel at once, and named");
    let direct = format!("http://{API_ADDRESS}/");
    let refused = |said: &str| said.contains("refused") || said.contains("connect");
    tour.program("a direct connect", "curl", &["-sS", "-m", "5", "--noproxy", "*", &direct], refused);
    tour.program("a DNS query", "getent", &["ahosts", "example.org"], str::is_empty);

    tour.chapter("What programs need to start still works");
    tour.show("getifaddrs(3), by netlink", "os.networkInterfaces() and the like", interfaces);
    anyhow::ensure!(tour.failed == 0, "{} of {} steps did not end as they should", tour.failed, tour.step);
    Ok(())
}

struct Tour {
    step: u32,
    failed: u32,
    colour: bool,
}

impl Tour {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn chapter(&self, title: &str) {
        say(&format!("\n{}", self.paint("1", title)));
    }

    /// Runs a program and shows what it said; `expected` judges that.
    fn program(&mut self, title: &str, program: &str, args: &[&str], expected: impl Fn(&str) -> bool) {
        let line = args.iter().fold(format!("$ {program}"), |line, arg| {
            format!("{line} {}", if *arg == "*" { "'*'" } else { arg })
        });
        self.show(title, &line, || {
            let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
            anyhow::ensure!(expected(&said), "{said}");
            Ok(if said.is_empty() { format!("nothing ({})", output.status) } else { said })
        });
    }

    fn show(&mut self, title: &str, what: &str, step: impl FnOnce() -> anyhow::Result<String>) {
        self.step += 1;
        let began = Instant::now();
        let outcome = step();
        let took = format!("{:.1} ms", began.elapsed().as_secs_f64() * 1e3);
        say(&format!(
            "  {} {title}  {}",
            self.paint("36", &format!("{}.", self.step)),
            self.paint("2", what)
        ));
        say(&match outcome {
            Ok(said) => {
                format!("     {} {}  {}", self.paint("32", "→"), brief(&said), self.paint("2", &took))
            }
            Err(error) => {
                self.failed += 1;
                let failed = self.paint("31", "✗ not as expected:");
                format!("     {failed} {error}  {}", self.paint("2", &took))
            }
        });
        let _ = io::stdout().flush();
    }
}

/// One line: of a refusal's JSON what a person reads, of anything else the first line.
fn brief(said: &str) -> String {
    let json: Option<serde_json::Value> = serde_json::from_str(said).ok();
    let field = |name: &str| json.as_ref().and_then(|json| json.get(name)?.as_str().map(str::to_owned));
    match (field("message"), field("hint")) {
        (Some(message), Some(hint)) => format!("403 {message}\n       {hint}"),
        _ => said.lines().next().unwrap_or_default().to_owned(),
    }
}

/// Frames through CONNECT, the upgrade and the relay.
fn websocket() -> anyhow::Result<String> {
    let proxy = std::env::var("http_proxy")?;
    let mut stream = TcpStream::connect(proxy.trim_start_matches("http://"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "CONNECT {ECHO}:80 HTTP/1.1\r\nHost: {ECHO}:80\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        stream.read_exact(&mut octet)?;
        head.extend_from_slice(&octet);
    }
    anyhow::ensure!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    let (mut socket, response) = tungstenite::client(format!("ws://{ECHO}/"), stream)?;
    let began = Instant::now();
    for number in 0..FRAMES {
        let sent = format!("frame {number}");
        socket.send(sent.as_str().into())?;
        let received = socket.read()?.into_text()?;
        anyhow::ensure!(received.as_str() == sent, "sent {sent:?}, received {:?}", received.as_str());
    }
    let each = began.elapsed() / FRAMES;
    Ok(format!("{}, {FRAMES} echoes, {} µs each", response.status(), each.as_micros()))
}

fn interfaces() -> anyhow::Result<String> {
    let mut names: Vec<String> = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| Some((interface.interface_name, interface.address?)))
        .filter_map(|(name, address)| {
            let v4 = address.as_sockaddr_in().map(|v4| v4.ip().to_string());
            let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().to_string()))?;
            Some(format!("{name} {ip}"))
        })
        .collect();
    names.dedup();
    anyhow::ensure!(!names.is_empty(), "no interface");
    Ok(names.join(", "))
}
