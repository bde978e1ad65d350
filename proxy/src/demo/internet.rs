//! The demonstration's own internet: a namespace on this machine that nothing leads out of.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::{API, ECHO};

/// Where the origin is.
pub const API_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// Where the echo is.
const ECHO_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);

/// A running internet; its servers end with the process.
pub struct Internet {
    netns: OwnedFd,
}

impl Internet {
    /// Makes the namespace and starts the servers in it.
    pub fn start() -> anyhow::Result<Self> {
        let netns = sluice_netns::island(&[API_ADDRESS.into(), ECHO_ADDRESS.into()])?;
        let bind = |address: Ipv4Addr| {
            sluice_netns::inside(netns.as_fd(), move || TcpListener::bind(SocketAddr::from((address, 80))))
        };
        serve("demo-origin", bind(API_ADDRESS)??, answer)?;
        serve("demo-echo", bind(ECHO_ADDRESS)??, echo)?;
        Ok(Self { netns })
    }

    /// The namespace, to dial from.
    pub fn netns(&self) -> io::Result<OwnedFd> {
        self.netns.try_clone()
    }

    /// What its names mean.
    pub fn names() -> HashMap<Box<str>, Arc<[IpAddr]>> {
        let name = |host: &str, address: Ipv4Addr| (host.into(), Arc::from([IpAddr::V4(address)]));
        HashMap::from([name(API, API_ADDRESS), name(ECHO, ECHO_ADDRESS)])
    }
}

fn serve(name: &str, listener: TcpListener, each: fn(TcpStream)) -> io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || each(stream));
        }
    })?;
    Ok(())
}

/// Answers every request on the connection with a greeting.
fn answer(mut stream: TcpStream) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut lines = BufReader::new(reading).lines();
    let greeting = "Hello from api.example\n";
    loop {
        let head = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).count();
        let length = greeting.len();
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{greeting}"
        );
        if head == 0 || stream.write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}

/// Sends every WebSocket message back.
fn echo(stream: TcpStream) {
    let Ok(mut socket) = tungstenite::accept(stream) else { return };
    while let Ok(message) = socket.read() {
        if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
            return;
        }
    }
}
