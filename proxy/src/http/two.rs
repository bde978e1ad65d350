//! Heads of HTTP/2 in the words of HTTP/1.1, and back.
//!
//! A request that came in HTTP/2 is written down as HTTP/1.1 and read by the one strict reader, so that it is judged,
//! rewritten and reported by the code that serves HTTP/1.1, and means the same there; what comes out goes on as HTTP/2.
//! These texts never leave the process: nothing is translated for a peer. What holds for bodies in one version only is
//! left to the library: the framing here says no more than whether there is a body, and how long it wants to be.
//!
//! The library has checked that names and values are made of the octets they may be made of, that pseudo-header fields
//! come once and first, and that no field of HTTP/1.1's connections is among them (RFC 9113 section 8.2.2).

use std::io::Write as _;

use http::header::{CONTENT_LENGTH, DATE, HOST, HeaderMap, HeaderName, HeaderValue, TE};
use http::uri::{PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response, StatusCode, Version, request, response};

use super::chunked::may_travel;
use super::date::HttpDate;
use super::fault::Fault;
use super::fields::{Field, Fields, Known};
use super::head::{Nominated, RequestHead};
use super::limits::{HeadLimits, TRAILER_FIELDS_MAX, TRAILER_OCTETS_MAX};
use super::response::{ResponseHead, ResponseReader};
use super::rewrite::Pseudonym;

/// What the library counts for a field beside its octets (RFC 9113 section 6.5.2).
const FIELD_OVERHEAD_OCTETS: usize = 32;

/// What a peer is told that a head may have (`SETTINGS_MAX_HEADER_LIST_SIZE`). More than fits these limits as text, so that
/// what is too large is refused in our words and reported, unless it is far too large: the library refuses that.
pub fn header_list_octets(limits: &HeadLimits) -> u32 {
    let overhead = limits.fields_max.saturating_add(8).saturating_mul(FIELD_OVERHEAD_OCTETS);
    u32::try_from(limits.head_octets_max.saturating_mul(2).saturating_add(overhead)).unwrap_or(u32::MAX)
}

/// Appends a request's head as HTTP/1.1, in any case; says whether it names one host, and `https`. `ends`: nothing follows it.
pub fn write_request(out: &mut Vec<u8>, parts: &request::Parts, ends: bool) -> Result<(), Fault> {
    let authority = parts.uri.authority();
    let is_connect = parts.method == Method::CONNECT;
    let mut fits = Ok(());
    if authority.is_some() && !is_connect && parts.uri.scheme() != Some(&Scheme::HTTPS) {
        fits = Err(Fault::TargetForm);
    }
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    match (parts.uri.path_and_query(), authority) {
        (None, Some(authority)) => out.extend_from_slice(authority.as_str().as_bytes()),
        (path, _) => out.extend_from_slice(path.map_or("/", PathAndQuery::as_str).as_bytes()),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(authority) = authority {
        // Both may be there and must say the same (RFC 9113 section 8.3.1).
        let is_other =
            |host: &HeaderValue| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
        if parts.headers.get_all(HOST).iter().any(is_other) {
            fits = Err(Fault::HostMismatch);
        }
        write_field(out, b"host", authority.as_str().as_bytes());
    }
    for (name, value) in parts.headers.iter().filter(|(name, _)| authority.is_none() || *name != HOST) {
        write_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    if parts.headers.contains_key(TE) {
        out.extend_from_slice(b"connection: TE\r\n");
    }
    if !ends && !parts.headers.contains_key(CONTENT_LENGTH) {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
    fits
}

fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The request that such a text stands for, `head` being what it was read as.
pub fn read_request(head: &RequestHead, text: &[u8]) -> Option<Request<()>> {
    let authority = http::uri::Authority::try_from(head.host(text)?).ok()?;
    let path = PathAndQuery::try_from(head.target(text)).ok()?;
    let uri = Uri::builder().scheme(Scheme::HTTPS).authority(authority).path_and_query(path).build().ok()?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method_name(text)).ok()?;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = read_fields(head.fields(text))?;
    Some(request)
}

/// The response that a text of ours stands for, and where its body begins.
pub fn read_response(text: &[u8], limits: &HeadLimits) -> Option<(Response<()>, usize)> {
    let head: ResponseHead = ResponseReader::new(*limits).read(text).ok()??;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).ok()?;
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = read_fields(head.fields(text))?;
    Some((response, head.len))
}

/// The fields that HTTP/2 has.
fn read_fields(fields: Fields<'_>) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for Field { name, value } in fields {
        let means_one_hop = match Known::of(name) {
            Some(
                Known::Connection | Known::Host | Known::KeepAlive | Known::TransferEncoding | Known::Upgrade,
            ) => true,
            Some(Known::Te) => !value.eq_ignore_ascii_case(b"trailers"),
            _ => false,
        };
        if !means_one_hop {
            let (name, value) = (HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
            map.try_append(name, value).ok()?;
        }
    }
    Some(map)
}

/// How a response goes on.
#[derive(Clone, Copy, Debug)]
pub struct Onward<'a> {
    /// The name for `Via`.
    pub via: &'a Pseudonym,
    /// Now, for an origin that has no clock.
    pub date: HttpDate,
    /// Bounds on its head.
    pub limits: HeadLimits,
}

/// Makes the head of an origin's response, also of an interim one, what the client gets.
pub fn pass_response(parts: &mut response::Parts, how: &Onward<'_>) -> Result<(), Fault> {
    // Whatever asked for a switch has been taken out of the request; and HTTP/2 has no 101 (RFC 9113 section 8.6).
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Fault::Http2);
    }
    let fields = &mut parts.headers;
    if fields.len() > how.limits.fields_max {
        return Err(Fault::TooManyFields);
    }
    if octets_of(fields) > how.limits.head_octets_max {
        return Err(Fault::HeadTooLarge);
    }
    remove(fields, |name| matches!(Known::of(name), Some(Known::Proxy | Known::Http2Settings | Known::Te)));
    if !parts.status.is_informational() && !fields.contains_key(DATE) {
        insert(fields, DATE, how.date.as_bytes());
    }
    let mut via = Vec::with_capacity(32);
    // Writing to a Vec cannot fail.
    let _ = write!(via, "2 {}", how.via.as_str());
    insert(fields, http::header::VIA, &via);
    Ok(())
}

fn insert(fields: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        // Behind those that are there; full it cannot be, being bounded.
        let _ = fields.try_append(name, value);
    }
}

fn remove(fields: &mut HeaderMap, unwanted: impl Fn(&[u8]) -> bool) {
    let names: Vec<HeaderName> =
        fields.keys().filter(|name| unwanted(name.as_str().as_bytes())).cloned().collect();
    for name in names {
        fields.remove(name);
    }
}

fn octets_of(fields: &HeaderMap) -> usize {
    // As lines: with their colons, spaces and ends.
    fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Makes the trailers of a message what goes on: what frames or routes it is an attack, what means this hop or the head
/// is left out.
pub fn pass_trailers(fields: &mut HeaderMap) -> Result<(), Fault> {
    if fields.len() > TRAILER_FIELDS_MAX || octets_of(fields) > TRAILER_OCTETS_MAX {
        return Err(Fault::TrailerTooLarge);
    }
    let nominated = Nominated::default();
    for name in fields.keys() {
        may_travel(name.as_str().as_bytes(), &nominated)?;
    }
    remove(fields, |name| may_travel(name, &nominated) == Ok(false));
    Ok(())
}

#[cfg(test)]
#[path = "two_tests.rs"]
mod tests;
