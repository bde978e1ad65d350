//! Writing the head for the next hop: a request towards its origin, a response towards its client.
//!
//! Names and values pass octet by octet and in order, except for what means one hop only (RFC 9110 section 7.6.1) or
//! is Sluice's to say: `Host` comes from what was judged and dialled, framing from how the body was understood, never
//! from the field that said so.

use std::io::Write as _;

use super::date::HttpDate;
use super::fields::{Field, Fields, Known, elements, trim};
use super::framing::Framing;
use super::head::{RequestHead, Upgrade, Version, http2_or_h2c, is_nominated};
use super::response::ResponseHead;
use super::target::Path;
use crate::destination::{Destination, Host};

/// The name of one Sluice in `Via` (RFC 9110 section 7.6.3): a pseudonym that tells nothing, but by which it knows its
/// own requests when they come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pseudonym(Box<str>);

impl Pseudonym {
    /// From a number that no other instance has: random, new at each start.
    pub fn new(instance: u64) -> Self {
        Self(format!("sluice-{instance:016x}").into_boxed_str())
    }

    /// `sluice-` and 16 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a `Via` among these fields names this instance.
    pub fn is_in(&self, fields: Fields<'_>) -> bool {
        let received_by = |element: &[u8]| -> bool {
            let mut words = element.split(|&b| b == b' ' || b == b'\t').filter(|word| !word.is_empty());
            words.nth(1) == Some(self.0.as_bytes())
        };
        fields.named(b"via").any(|via| elements(via.value).any(received_by))
    }
}

/// How a request is to be forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// What was judged and dialled; becomes `Host`.
    pub destination: &'a Destination,
    /// The port that `Host` leaves out.
    pub default_port: u16,
    /// What the origin is asked for.
    pub path: Path<'a>,
    /// The name for `Via`; without one no `Via` is added and loops are found only by address.
    pub via: Option<&'a Pseudonym>,
    /// Whether an offer to switch protocols may be passed on. h2c never is.
    pub upgrade: bool,
    /// Whether the origin is told that no further request follows.
    pub close: bool,
}

/// Why a request is not forwarded although nothing is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It has been here before.
    Loop,
    /// `Max-Forwards: 0`: whoever has it answers (RFC 9110 section 7.6.2).
    LastHop,
}

/// Appends the head of a request to an origin. On [`Stop`], `out` is as it was.
pub fn request(out: &mut Vec<u8>, head: &RequestHead, buf: &[u8], how: &Upstream<'_>) -> Result<(), Stop> {
    let max_forwards = match head.max_forwards {
        Some(0) => return Err(Stop::LastHop),
        Some(hops) => Some(hops.saturating_sub(1)),
        None => None,
    };
    let fields = head.fields(buf);
    if how.via.is_some_and(|own| own.is_in(fields.clone())) {
        return Err(Stop::Loop);
    }

    out.extend_from_slice(head.method_name(buf));
    out.push(b' ');
    how.path.write(out);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    write_host(out, how.destination, how.default_port);
    for field in fields.clone() {
        let passes = match Known::of(field.name) {
            Some(Known::Via | Known::Date | Known::Trailer) | None => true,
            // From HTTP/1.0 it means nothing, and nobody there would hear the 100 (RFC 9110 section 10.1.1).
            Some(Known::Expect) => head.expect_continue,
            // For other methods it has no meaning and is no business of ours.
            Some(Known::MaxForwards) => max_forwards.is_none(),
            Some(_) => false,
        };
        if passes && !(head.connection.nominates && is_nominated(&fields, field.name)) {
            write_field(out, field);
        }
    }
    if let Some(hops) = max_forwards {
        write_number_field(out, b"Max-Forwards: ", hops);
    }
    write_framing(out, head.framing);
    write_via(out, head.version, how.via);
    let upgrade = write_upgrade(out, &fields, how.upgrade && head.upgrade != Upgrade::None);
    if head.te_trailers {
        out.extend_from_slice(b"TE: trailers\r\n");
    }
    write_connection(out, &[(how.close, "close"), (upgrade, "upgrade"), (head.te_trailers, "TE")]);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// How a response is to be passed to the client.
#[derive(Clone, Copy, Debug)]
pub struct Downstream<'a> {
    /// How its body will be delimited: [`towards_client`] of how it came.
    pub framing: Framing,
    /// Whether the client is told that the connection ends with it.
    pub close: bool,
    /// The name for `Via`.
    pub via: Option<&'a Pseudonym>,
    /// Now, for an origin that has no clock.
    pub date: HttpDate,
}

/// How a body that came as `origin` goes to a client of this version: an HTTP/1.0 client cannot read chunks, so it gets
/// the bare data until close. What comes [`Framing::UntilClose`] stays that.
pub fn towards_client(origin: Framing, client: Version) -> Framing {
    match (origin, client) {
        (Framing::Chunked, Version::Http10) => Framing::UntilClose,
        (framing, _) => framing,
    }
}

/// Appends the head of a response to a client, also of an interim one or a 101.
pub fn response(out: &mut Vec<u8>, head: &ResponseHead, buf: &[u8], how: &Downstream<'_>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    write_number(out, head.status.into());
    out.push(b' ');
    out.extend_from_slice(head.reason(buf));
    out.extend_from_slice(b"\r\n");
    let fields = head.fields(buf);
    let mut has_date = false;
    for field in fields.clone() {
        let passes = match Known::of(field.name) {
            Some(Known::Date) => {
                has_date = true;
                true
            }
            Some(Known::Trailer) => how.framing == Framing::Chunked,
            // Without meaning in a response; not ours to remove.
            Some(Known::Via | Known::Expect | Known::Host | Known::MaxForwards | Known::Disguised) | None => {
                true
            }
            Some(_) => false,
        };
        if passes && !(head.connection.nominates && is_nominated(&fields, field.name)) {
            write_field(out, field);
        }
    }
    let is_final = head.status >= 200;
    if is_final && !has_date {
        write_pair(out, b"Date", how.date.as_bytes());
    }
    match (how.framing, head.content_length()) {
        // What a GET would have got (HEAD), or what the client has (304).
        (Framing::None, Some(length)) if is_final && head.status != 204 => {
            write_framing(out, Framing::Length(length));
        }
        (framing, _) => write_framing(out, framing),
    }
    write_via(out, head.version, how.via);
    // Switching, or required to (RFC 9110 section 15.5.22).
    let upgrade = write_upgrade(out, &fields, matches!(head.status, 101 | 426));
    let close = is_final && (how.close || how.framing == Framing::UntilClose);
    write_connection(out, &[(close, "close"), (upgrade, "upgrade")]);
    out.extend_from_slice(b"\r\n");
}

fn write_host(out: &mut Vec<u8>, destination: &Destination, default_port: u16) {
    match &destination.host {
        Host::Name(name) => out.extend_from_slice(name.as_bytes()),
        // Writing to a Vec cannot fail.
        Host::Ip(_) => write!(out, "{}", destination.host).unwrap_or_default(),
    }
    if destination.port != default_port {
        out.push(b':');
        write_number(out, destination.port.into());
    }
    out.extend_from_slice(b"\r\n");
}

fn write_framing(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::None | Framing::UntilClose => {}
        Framing::Length(octets) => write_number_field(out, b"Content-Length: ", octets),
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
}

/// Behind all received ones: a field of its own continues their list.
fn write_via(out: &mut Vec<u8>, received: Version, via: Option<&Pseudonym>) {
    if let Some(Pseudonym(name)) = via {
        out.extend_from_slice(match received {
            Version::Http10 => b"Via: 1.0 ",
            Version::Http11 => b"Via: 1.1 ",
            Version::Http2 => b"Via: 2 ",
        });
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// The protocols offered or chosen, but for h2c. Says whether there were any.
fn write_upgrade(out: &mut Vec<u8>, fields: &Fields<'_>, wanted: bool) -> bool {
    let mut any = false;
    for field in fields.clone().named(b"upgrade").filter(|_| wanted) {
        for protocol in elements(field.value).filter(|protocol| !http2_or_h2c(protocol)) {
            out.extend_from_slice(if any { b", " } else { b"Upgrade: " });
            out.extend_from_slice(protocol);
            any = true;
        }
    }
    if any {
        out.extend_from_slice(b"\r\n");
    }
    any
}

fn write_connection(out: &mut Vec<u8>, options: &[(bool, &str)]) {
    let mut any = false;
    for (_, option) in options.iter().filter(|(said, _)| *said) {
        out.extend_from_slice(if any { b", " } else { b"Connection: " });
        out.extend_from_slice(option.as_bytes());
        any = true;
    }
    if any {
        out.extend_from_slice(b"\r\n");
    }
}

fn write_field(out: &mut Vec<u8>, field: Field<'_>) {
    write_pair(out, field.name, field.value);
}

fn write_pair(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(trim(value));
    out.extend_from_slice(b"\r\n");
}

fn write_number_field(out: &mut Vec<u8>, name: &[u8], number: u64) {
    out.extend_from_slice(name);
    write_number(out, number);
    out.extend_from_slice(b"\r\n");
}

/// In decimal; several times cheaper than through `fmt`.
fn write_number(out: &mut Vec<u8>, mut number: u64) {
    let start = out.len();
    loop {
        out.push(b'0'.wrapping_add((number % 10) as u8));
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.get_mut(start..).unwrap_or_default().reverse();
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
