//! Writing the complete response for a [`Reject`], and the few other responses that are Sluice's own.
//!
//! What came from a peer (destination, program, hint) appears in the JSON body and nowhere else, escaped; the status
//! line and the fields are made of constants, numbers and the date.

use std::io::Write as _;

use serde::Serialize;

use super::date::HttpDate;
use super::head::Method;
use super::reject::Reject;

/// What is known about a refused request, for the body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Details<'a> {
    /// The sandbox's name.
    pub sandbox: Option<&'a str>,
    /// The program that asked, as far as it is known.
    pub binary: Option<&'a str>,
    /// `host:port`, or a URL.
    pub destination: Option<&'a str>,
    /// What to change so that it works.
    pub hint: Option<&'a str>,
}

/// Appends the whole response. `method` is the request's, if so much of it was understood: HEAD gets no body but the
/// same length, CONNECT always closes (RFC 9931). `close` is whether the driver wants the connection to end. Says
/// whether it does.
pub fn write(
    out: &mut Vec<u8>,
    reject: Reject,
    method: Option<Method>,
    details: &Details<'_>,
    date: HttpDate,
    close: bool,
) -> bool {
    let close = close || reject.must_close() || method.is_none_or(|method| method == Method::Connect);
    let body = body(reject, details);
    let (status, phrase) = (reject.status(), reject.phrase());
    text(out, format_args!("HTTP/1.1 {status} {phrase}\r\nDate: "));
    out.extend_from_slice(date.as_bytes());
    // A structured field (RFC 9651); the phrases hold neither quote nor backslash.
    let error = reject.proxy_error();
    text(out, format_args!("\r\nProxy-Status: sluice; error={error}; details=\"{phrase}\"\r\n"));
    if let Some(seconds) = reject.retry_after_s() {
        text(out, format_args!("Retry-After: {seconds}\r\n"));
    }
    if status == 405 {
        out.extend_from_slice(b"Allow: OPTIONS\r\n");
    }
    if close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    text(out, format_args!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len()));
    if method != Some(Method::Head) {
        out.extend_from_slice(&body);
    }
    close
}

/// Appends the answer to a CONNECT whose dial succeeded. It has no framing field (RFC 9110 section 9.3.6) and raw
/// octets follow.
pub fn write_established(out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 200 Connection established\r\n\r\n");
}

/// Appends `100 Continue`, for a driver that takes a body before the origin is asked for it.
pub fn write_continue(out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// Appends the answer to OPTIONS where `Max-Forwards` runs out here.
pub fn write_options(out: &mut Vec<u8>, date: HttpDate, close: bool) {
    out.extend_from_slice(b"HTTP/1.1 204 No Content\r\nDate: ");
    out.extend_from_slice(date.as_bytes());
    out.extend_from_slice(b"\r\nAllow: CONNECT, DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, TRACE\r\n");
    out.extend_from_slice(if close { b"Connection: close\r\n\r\n" } else { b"\r\n" });
}

/// The body: one JSON object and a newline. Values that are not known are `null`, so that the shape is always the same.
fn body(reject: Reject, details: &Details<'_>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'static str,
        reason: &'static str,
        message: &'static str,
        sandbox: Option<&'a str>,
        binary: Option<&'a str>,
        destination: Option<&'a str>,
        hint: Option<&'a str>,
    }
    let Details { sandbox, binary, destination, hint } = *details;
    let (error, reason, message) = (reject.error(), reject.label(), reject.phrase());
    let body = Body { error, reason, message, sandbox, binary, destination, hint };
    // Serializing strings to memory cannot fail.
    let mut json = serde_json::to_vec(&body).unwrap_or_default();
    json.push(b'\n');
    json
}

/// Formats into `out`.
fn text(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
