//! What holds for any octets handed to the HTTP modules. Fuzz targets and the replay of their corpora share these.
#![allow(dead_code)] // each fuzz target takes one of them

use sluice::destination::{Authority, Destination, Host};
use sluice::http::chunked::{ChunkedBody, Keep, Then};
use sluice::http::date::HttpDate;
use sluice::http::fault::Fault;
use sluice::http::framing::Framing;
use sluice::http::head::{Method, Nominated, RequestHead, RequestReader, Version};
use sluice::http::limits::HeadLimits;
use sluice::http::response::{ResponseHead, ResponseReader};
use sluice::http::rewrite::{self, Downstream, Pseudonym, Stop, Upstream};
use sluice::http::target::{self, HTTP_PORT, Path, Scheme, Target};

/// Bounds small enough to be met by chance.
const LIMITS: HeadLimits = HeadLimits { line_octets_max: 128, head_octets_max: 512, fields_max: 12 };

/// A request head: read the same however it arrives, as `httparse` reads it, and written so that it reads the same.
pub(crate) fn request_head(bytes: &[u8]) {
    let whole = RequestReader::new(LIMITS).read(bytes);
    let mut reader = RequestReader::new(LIMITS);
    let in_pieces = first_verdict(bytes, |start| reader.read(start));
    assert_eq!(in_pieces, whole);
    let Ok(Some(head)) = whole else { return };
    assert!(head.len <= bytes.len() && head.len <= LIMITS.head_octets_max);
    assert_ne!(head.framing, Framing::UntilClose);
    assert_same_as_httparse(&head, bytes);
    if let Ok(Target::Forward(authority, path)) = target::on_proxy(&head, bytes) {
        assert_written_as_read(&head, bytes, &authority.to_destination(HTTP_PORT), path);
    }
}

fn assert_same_as_httparse(head: &RequestHead, bytes: &[u8]) {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut theirs = httparse::Request::new(&mut fields);
    assert_eq!(theirs.parse(bytes), Ok(httparse::Status::Complete(head.len)));
    assert_eq!(theirs.method.map(str::as_bytes), Some(head.method_name(bytes)));
    assert_eq!(theirs.path.map(str::as_bytes), Some(head.target(bytes)));
    assert_eq!(theirs.version, Some(u8::from(head.version == Version::Http11)));
    let theirs: Vec<_> = theirs.headers.iter().map(|field| (field.name.as_bytes(), field.value)).collect();
    let ours: Vec<_> = head.fields(bytes).map(|field| (field.name, field.value)).collect();
    assert_eq!(ours, theirs);
}

fn assert_written_as_read(head: &RequestHead, bytes: &[u8], destination: &Destination, path: Path<'_>) {
    let via = Pseudonym::new(7);
    let how =
        Upstream { destination, default_port: HTTP_PORT, path, via: Some(&via), upgrade: true, close: false };
    let mut out = Vec::new();
    match rewrite::request(&mut out, head, bytes, &how) {
        Ok(()) => {}
        Err(Stop::Loop | Stop::LastHop) => return assert!(out.is_empty()),
    }
    let unbounded = HeadLimits { line_octets_max: 4096, head_octets_max: 8192, fields_max: 64 };
    let read = RequestReader::new(unbounded).read(&out);
    let Ok(Some(written)) = read else { panic!("{read:?}: {}", out.escape_ascii()) };
    assert_eq!(written.len, out.len());
    assert_eq!((written.method, written.framing), (head.method, head.framing));
    assert_eq!(written.upgrade, head.upgrade);
    assert_eq!(written.te_trailers, head.te_trailers);
    assert!(via.is_in(written.fields(&out)));
    let host = written.host(&out).map(Authority::parse);
    assert!(matches!(host, Some(Ok(host)) if host.is(destination, HTTP_PORT)));
    for field in written.fields(&out) {
        let name = field.name.to_ascii_lowercase();
        assert!(!name.starts_with(b"proxy-") && name != b"keep-alive" && name != b"http2-settings");
    }
    // What the origin sees inside a tunnel to the same place is what was asked for here.
    let inside = target::in_tunnel(&written, &out, destination, Scheme::Http);
    assert_eq!(inside, Ok(path), "{}", out.escape_ascii());
}

/// A response head: read the same however it arrives, and written so that it reads the same.
pub(crate) fn response_head(bytes: &[u8]) {
    let whole = ResponseReader::new(LIMITS).read(bytes);
    let mut reader = ResponseReader::new(LIMITS);
    assert_eq!(first_verdict(bytes, |start| reader.read(start)), whole);
    let Ok(Some(head)) = whole else { return };
    assert!(head.len <= bytes.len() && (100..=599).contains(&head.status));
    for method in [Method::Get, Method::Head, Method::Connect] {
        for client in [Version::Http11, Version::Http10] {
            assert_answer_written_as_read(&head, bytes, method, client);
        }
    }
}

fn assert_answer_written_as_read(head: &ResponseHead, bytes: &[u8], method: Method, client: Version) {
    let via = Pseudonym::new(7);
    let framing = rewrite::towards_client(head.framing(method), client);
    let close = client == Version::Http10;
    let how = Downstream { framing, close, via: Some(&via), date: HttpDate::from_unix(0) };
    let mut out = Vec::new();
    rewrite::response(&mut out, head, bytes, &how);
    let unbounded = HeadLimits { line_octets_max: 4096, head_octets_max: 8192, fields_max: 64 };
    let read = ResponseReader::new(unbounded).read(&out);
    let Ok(Some(written)) = read else { panic!("{read:?}: {}", out.escape_ascii()) };
    assert_eq!((written.len, written.status), (out.len(), head.status));
    assert_eq!(written.framing(method), framing);
    assert!(client == Version::Http11 || written.framing(Method::Get) != Framing::Chunked);
    assert!(written.is_interim() || written.status == 101 || written.connection.close || !close);
}

/// A chunked body: judged the same however it arrives, and forwarded so that any reader finds the same data.
pub(crate) fn chunked_body(bytes: &[u8]) {
    let chunks = pass(Keep::Chunks, bytes, bytes.len().max(1));
    let data = pass(Keep::Data, bytes, bytes.len().max(1));
    for octets in [1, 2, 7] {
        assert_eq!(pass(Keep::Chunks, bytes, octets), chunks);
        assert_eq!(pass(Keep::Data, bytes, octets), data);
    }
    assert_eq!((chunks.1, chunks.2), (data.1, data.2));
    if chunks.2 == Then::End {
        assert_eq!(read_naively(&chunks.0).as_ref(), Some(&data.0));
    }
}

/// What is forwarded, how much is used up, how it went.
fn pass(keep: Keep, bytes: &[u8], piece_octets: usize) -> (Vec<u8>, usize, Then) {
    let mut body = ChunkedBody::new(keep, Nominated::default());
    let (mut out, mut used, mut buf) = (Vec::new(), 0, Vec::new());
    for piece in bytes.chunks(piece_octets) {
        buf.extend_from_slice(piece);
        let passed = body.pass(&mut buf);
        assert!(passed.kept <= passed.consumed && passed.consumed <= buf.len());
        out.extend_from_slice(&buf[..passed.kept]);
        buf.drain(..passed.consumed);
        used += passed.consumed;
        if passed.then != Then::More {
            return (out, used, passed.then);
        }
        assert!(buf.len() <= 4096 + 2, "held back {} octets", buf.len());
    }
    (out, used, Then::More)
}

/// The plainest reader there is: it knows no extension, trusts every line and must still find the same.
fn read_naively(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).ok()?, 16).ok()?;
        body = body.get(end + 2..)?;
        if size == 0 {
            let ends = body == b"\r\n" || body.ends_with(b"\r\n\r\n");
            return ends.then_some(data);
        }
        data.extend_from_slice(body.get(..size)?);
        body = body.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

/// A request target: whatever is accepted has one spelling, which is accepted too and means the same.
pub(crate) fn forward_target(bytes: &[u8]) {
    for method in [Method::Get, Method::Options, Method::Connect] {
        match target::parse(method, bytes) {
            Err(_) => {}
            Ok(Target::Tunnel(authority)) => {
                assert_eq!(method, Method::Connect);
                let destination = authority.to_destination(0);
                assert_ne!(destination.port, 0);
                let spelt = destination.to_string();
                let again = target::parse(method, spelt.as_bytes());
                assert!(matches!(again, Ok(Target::Tunnel(a)) if a.is(&destination, 0)), "{spelt}");
            }
            Ok(Target::Forward(authority, path)) => {
                let destination = authority.to_destination(HTTP_PORT);
                assert!(authority.is(&destination, HTTP_PORT));
                if let Host::Name(name) = &destination.host {
                    assert!(name.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()));
                }
                let mut spelt = format!("http://{destination}").into_bytes();
                if !path.is_asterisk() {
                    path.write(&mut spelt);
                }
                let again = target::parse(method, &spelt);
                assert!(
                    matches!(again, Ok(Target::Forward(a, p)) if a.is(&destination, HTTP_PORT) && p == path)
                );
            }
        }
    }
}

/// What a client sends, request after request: the same goes upstream, and the same verdict ends it, however it
/// arrives.
pub(crate) fn request_stream(bytes: &[u8]) {
    let whole = Stream::fed(bytes, std::iter::repeat(bytes.len()));
    for octets in [1, 3, 61] {
        assert_eq!(Stream::fed(bytes, std::iter::repeat(octets)), whole);
    }
    for most in [4, 200] {
        assert_eq!(Stream::fed(bytes, random_pieces(bytes, most)), whole);
    }
}

/// Sizes from 1 to `most` that look random and are the same for the same bytes.
fn random_pieces(bytes: &[u8], most: u64) -> impl Iterator<Item = usize> {
    let seed = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
    });
    std::iter::successors(Some(seed | 1), |state| {
        let mut next = *state;
        next ^= next << 13;
        next ^= next >> 7;
        next ^= next << 17;
        Some(next)
    })
    .map(move |state| usize::try_from(state % most).unwrap_or(0) + 1)
}

/// The data path without its sockets.
struct Stream {
    buf: Vec<u8>,
    reader: RequestReader,
    body: Body,
    upstream: Vec<u8>,
    /// Whether no request follows the current one.
    is_last: bool,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fault(Fault),
    Stop(Stop),
    /// CONNECT, or `close`: nothing behind it is looked at.
    Last,
}

enum Body {
    None,
    Length(u64),
    Chunked(ChunkedBody),
}

impl Stream {
    fn fed(bytes: &[u8], mut pieces: impl Iterator<Item = usize>) -> (Vec<u8>, Option<End>) {
        let mut stream = Self {
            buf: Vec::new(),
            reader: RequestReader::new(LIMITS),
            body: Body::None,
            upstream: Vec::new(),
            is_last: false,
            end: None,
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(pieces.next().unwrap_or(1).min(rest.len()));
            rest = behind;
            stream.buf.extend_from_slice(piece);
            while stream.end.is_none() && stream.advance() {}
        }
        (stream.upstream, stream.end)
    }

    /// Whether more can be done with what is there.
    fn advance(&mut self) -> bool {
        match &mut self.body {
            Body::None if self.is_last => {
                self.end = Some(End::Last);
                true
            }
            Body::None => self.head(),
            Body::Length(left) => {
                let here = self.buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                self.upstream.extend(self.buf.drain(..here));
                *left -= here as u64;
                if *left == 0 {
                    self.body = Body::None;
                }
                here > 0 || matches!(self.body, Body::None)
            }
            Body::Chunked(body) => {
                let passed = body.pass(&mut self.buf);
                self.upstream.extend_from_slice(&self.buf[..passed.kept]);
                self.buf.drain(..passed.consumed);
                match passed.then {
                    Then::More => return false,
                    Then::End => self.body = Body::None,
                    Then::Fault(fault) => self.end = Some(End::Fault(fault)),
                }
                true
            }
        }
    }

    fn head(&mut self) -> bool {
        match self.reader.read(&self.buf) {
            Ok(None) => false,
            Ok(Some(head)) => {
                let forwarded = self.forward(&head);
                self.buf.drain(..head.len);
                self.end = forwarded.err();
                true
            }
            Err(fault) => {
                self.end = Some(End::Fault(fault));
                true
            }
        }
    }

    fn forward(&mut self, head: &RequestHead) -> Result<(), End> {
        let buf = &self.buf;
        let (authority, path) = match target::on_proxy(head, buf).map_err(End::Fault)? {
            Target::Tunnel(_) => return Err(End::Last),
            Target::Forward(authority, path) => (authority, path),
        };
        let destination = &authority.to_destination(HTTP_PORT);
        let how =
            Upstream { destination, default_port: HTTP_PORT, path, via: None, upgrade: true, close: false };
        rewrite::request(&mut self.upstream, head, buf, &how).map_err(End::Stop)?;
        self.body = match head.framing {
            Framing::None | Framing::UntilClose => Body::None,
            Framing::Length(octets) => Body::Length(octets),
            Framing::Chunked => {
                let nominated = Nominated::of(head.connection, head.fields(buf));
                Body::Chunked(ChunkedBody::new(Keep::Chunks, nominated))
            }
        };
        self.is_last = !head.is_persistent();
        Ok(())
    }
}

/// The first thing said about `bytes` as they arrive octet by octet.
fn first_verdict<T>(
    bytes: &[u8],
    mut read: impl FnMut(&[u8]) -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    for end in 0..=bytes.len() {
        match read(&bytes[..end]) {
            Ok(None) => {}
            verdict => return verdict,
        }
    }
    Ok(None)
}
