//! An origin for real clients: serves what it is given over keep-alive HTTP/1.1, and says what it was asked.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A running origin; its thread ends with the test process.
pub(crate) struct Files {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// What the origin was asked.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    /// Connections taken.
    pub(crate) connections: usize,
    /// Request heads, as they came, and their bodies.
    pub(crate) requests: Vec<(String, Vec<u8>)>,
}

impl Files {
    /// Serves these bodies by path; anything else is 404. A PUT or POST is answered with the length of its body.
    pub(crate) fn serve(files: HashMap<String, Vec<u8>>) -> Self {
        Self::serve_on(TcpListener::bind("127.0.0.1:0").unwrap(), files)
    }

    /// The same where the files name the origin's own address.
    pub(crate) fn serve_on(listener: TcpListener, files: HashMap<String, Vec<u8>>) -> Self {
        let address = listener.local_addr().unwrap();
        let (seen, files) = (Arc::<Mutex<Seen>>::default(), Arc::new(files));
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                shared.lock().unwrap().connections += 1;
                let (files, seen) = (Arc::clone(&files), Arc::clone(&shared));
                std::thread::spawn(move || serve(&stream, &files, &seen));
            }
        });
        Self { address, seen }
    }

    /// One file.
    pub(crate) fn one(path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::serve(HashMap::from([(path.to_owned(), body.into())]))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

/// Ends when the connection does, whichever way.
fn serve(stream: &TcpStream, files: &HashMap<String, Vec<u8>>, seen: &Mutex<Seen>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let lower = head.to_ascii_lowercase();
        if lower.contains("\r\nexpect: 100-continue\r\n") {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        let body = read_body(&mut reader, &lower)?;
        let mut words = head.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let length = body.len();
        seen.lock().unwrap().requests.push((head, body));
        let path = target.split('?').next()?;
        let (status, answer) = match (method.as_str(), files.get(path)) {
            ("PUT" | "POST", _) => ("200 OK", length.to_string().into_bytes()),
            (_, Some(file)) => ("200 OK", file.clone()),
            (_, None) => ("404 Not Found", Vec::new()),
        };
        let kind = if path.ends_with('/') { "text/html" } else { "text/plain" };
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", answer.len());
        writer.write_all(head.as_bytes()).ok()?;
        if method != "HEAD" {
            writer.write_all(&answer).ok()?;
        }
    }
}

fn read_body(reader: &mut impl std::io::BufRead, head: &str) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if let Some((_, rest)) = head.split_once("\r\ncontent-length: ") {
        let length: u64 = rest.split("\r\n").next()?.parse().ok()?;
        reader.take(length).read_to_end(&mut body).ok()?;
    } else if head.contains("\r\ntransfer-encoding: chunked\r\n") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = u64::from_str_radix(line.trim_end(), 16).ok()?;
            reader.by_ref().take(size).read_to_end(&mut body).ok()?;
            reader.read_line(&mut line).ok()?;
            if size == 0 {
                break;
            }
        }
    }
    Some(body)
}

/// All files under `folder`, by their path under `prefix`.
pub(crate) fn gather(folder: &Path, prefix: &str, files: &mut HashMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            gather(&entry.path(), &name, files);
        } else {
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
}
