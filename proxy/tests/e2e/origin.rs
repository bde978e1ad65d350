//! What is at the other end: small servers on loopback addresses that remember what they were sent.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{PATIENCE, eventually};

/// A TCP server that serves each connection on a thread of its own.
pub(crate) struct Service {
    address: SocketAddr,
    accepted: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Serves on a free port of `ip`.
    pub(crate) fn start(ip: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap_or_else(|error| panic!("listen on {ip}: {error}"));
        let address = listener.local_addr().expect("address");
        let (accepted, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, stopped, serve) = (Arc::clone(&accepted), Arc::clone(&stop), Arc::new(serve));
        let thread = std::thread::spawn(move || {
            while let Ok((connection, from)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                seen.lock().expect("accepted").push(from);
                connection.set_read_timeout(Some(PATIENCE)).expect("time-out");
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(connection));
            }
        });
        Self { address, accepted, stop, thread: Some(thread) }
    }

    /// Returns what it is sent, and closes when the other side has.
    pub(crate) fn echo() -> Self {
        Self::start("127.0.0.1", |mut connection| {
            let mut from = connection.try_clone().expect("clone");
            std::io::copy(&mut from, &mut connection).ok();
            connection.shutdown(Shutdown::Write).ok();
        })
    }

    /// Speaks first, as SMTP and MySQL do, then echoes.
    pub(crate) fn speaks_first(greeting: &'static str) -> Self {
        Self::start("127.0.0.1", move |mut connection| {
            let mut from = connection.try_clone().expect("clone");
            connection.write_all(greeting.as_bytes()).ok();
            std::io::copy(&mut from, &mut connection).ok();
            connection.shutdown(Shutdown::Write).ok();
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// `name:port`.
    pub(crate) fn at(&self, name: &str) -> String {
        format!("{name}:{}", self.port())
    }

    /// Connections so far. Certain: whatever has reached the kernel before this call is counted.
    pub(crate) fn connections(&self) -> usize {
        // Connections are accepted in order, so when this one is, all before it were.
        let last = TcpStream::connect(self.address).expect("connect to the own service");
        let own = last.local_addr().expect("address");
        eventually("the service accepts", || self.accepted.lock().expect("accepted").contains(&own));
        let mut accepted = self.accepted.lock().expect("accepted");
        accepted.retain(|from| *from != own);
        accepted.len()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        TcpStream::connect(self.address).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// An HTTP origin that answers every request with `200` and remembers the octets it was sent.
pub(crate) struct HttpOrigin {
    service: Service,
    received: Arc<Mutex<Vec<u8>>>,
}

/// What the origin answers with; each answer says which request of its connection it belongs to.
pub(crate) const BODY: &str = "hello from the origin";

impl HttpOrigin {
    pub(crate) fn start() -> Self {
        Self::on("127.0.0.1")
    }

    pub(crate) fn on(ip: &str) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&received);
        Self { service: Service::start(ip, move |connection| answer(connection, &record)), received }
    }

    pub(crate) fn port(&self) -> u16 {
        self.service.port()
    }

    /// `http://name:port/path`.
    pub(crate) fn url(&self, name: &str, path: &str) -> String {
        format!("http://{name}:{}{path}", self.port())
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.service.at(name)
    }

    pub(crate) fn connections(&self) -> usize {
        self.service.connections()
    }

    /// All octets so far, of all connections.
    pub(crate) fn received(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().expect("received")).into_owned()
    }
}

fn answer(mut connection: TcpStream, record: &Mutex<Vec<u8>>) {
    let mut waiting = Vec::new();
    let mut octets = vec![0; 1 << 16];
    let mut count = 0;
    while let Ok(read @ 1..) = connection.read(&mut octets) {
        record.lock().expect("record").extend_from_slice(&octets[..read]);
        waiting.extend_from_slice(&octets[..read]);
        while let Some(length) = whole_request(&waiting) {
            waiting.drain(..length);
            count += 1;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Answer: {count}\r\n\r\n{BODY}",
                BODY.len()
            );
            if connection.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// The length of the first request with its body, when all of it is there.
fn whole_request(octets: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(octets);
    let head = text.find("\r\n\r\n")? + 4;
    let lower = text[..head].to_ascii_lowercase();
    let length = lower.split("\r\ncontent-length:").nth(1).and_then(|rest| rest.lines().next());
    let whole = head + length.map_or(0, |length| length.trim().parse().expect("a length"));
    (octets.len() >= whole).then_some(whole)
}

/// A name server that remembers which names it was asked for.
pub(crate) struct Dns {
    address: Ipv4Addr,
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Answers with the IPv4 addresses of `zone`; any other name does not exist.
    pub(crate) fn start(zone: &[(&str, Ipv4Addr)]) -> Self {
        let zone: HashMap<String, Ipv4Addr> = zone.iter().map(|(name, ip)| ((*name).into(), *ip)).collect();
        // resolv.conf cannot name a port, so each server has an address.
        let (socket, address) = (1..=250)
            .map(|last| Ipv4Addr::new(127, 53, (std::process::id() % 251) as u8, last))
            .find_map(|address| Some((UdpSocket::bind((address, 53)).ok()?, address)))
            .expect("a free loopback address with port 53");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("time-out");
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (record, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
                let Some((name, reply)) = reply(&packet[..length], &zone) else { continue };
                record.lock().expect("record").push(name);
                socket.send_to(&reply, from).ok();
            }
        });
        Self { address, asked, stop, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// The names asked for so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("asked").clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// The name a query (RFC 1035) asks for, and the answer to it.
fn reply(query: &[u8], zone: &HashMap<String, Ipv4Addr>) -> Option<(String, Vec<u8>)> {
    const HEADER: usize = 12;
    let mut labels = Vec::new();
    let mut at = HEADER;
    while let length @ 1.. = usize::from(*query.get(at)?) {
        labels.push(String::from_utf8_lossy(query.get(at + 1..=at + length)?).to_lowercase());
        at += length + 1;
    }
    let question = query.get(HEADER..at + 5)?;
    let name = labels.join(".");
    let address = zone.get(&name).filter(|_| question.ends_with(&[0, 1, 0, 1]));
    let code = if zone.contains_key(&name) { 0 } else { 3 };
    let mut reply = query.get(..2)?.to_vec();
    reply.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    reply.extend_from_slice(question);
    if let Some(address) = address {
        // A pointer to the name, type A, class IN, 60 s, four octets.
        reply.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address.octets());
    }
    Some((name, reply))
}
