//! An event as a line of JSON, written by hand: every request pays for one, and this is a fifth of what a serializer
//! takes. A test holds it against serde's.

use std::io::Write as _;
use std::net::IpAddr;

use super::{CandidateView, Event, ProcessView, Time};

/// Appends `event` as an object, without the line's end.
pub(super) fn render(out: &mut Vec<u8>, event: &Event<'_>) {
    // All fields by name: one that is added here and not below does not compile.
    let Event {
        time,
        event: kind,
        sandbox,
        reason,
        via,
        action,
        proto,
        dst_host,
        dst_ip,
        dst_port,
        src_port,
        uid,
        process,
        candidates,
        identity,
        identity_trail,
        rule,
        method,
        path,
        status,
        bytes_up,
        bytes_down,
        duration_ms,
        allowed_via_proxy,
        detail,
        hint,
        count,
        first,
        last,
    } = event;
    out.extend_from_slice(b"{\"time\":");
    moment(out, *time);
    plain(out, b",\"event\":\"", Some(kind.name()));
    text(out, b",\"sandbox\":", *sandbox);
    text(out, b",\"reason\":", *reason);
    plain(out, b",\"via\":\"", via.map(super::Via::name));
    plain(out, b",\"action\":\"", action.map(super::Action::name));
    text(out, b",\"proto\":", *proto);
    text(out, b",\"dst_host\":", *dst_host);
    address(out, *dst_ip);
    number(out, b",\"dst_port\":", *dst_port);
    number(out, b",\"src_port\":", *src_port);
    number(out, b",\"uid\":", *uid);
    if let Some(process) = process {
        self::process(out, process);
    }
    for (at, CandidateView { pid, exe, comm }) in candidates.iter().enumerate() {
        let opening: &[u8] = if at == 0 { b",\"candidates\":[{\"pid\":" } else { b",{\"pid\":" };
        number(out, opening, Some(*pid));
        text(out, b",\"exe\":", Some(exe));
        text(out, b",\"comm\":", Some(comm));
        out.push(b'}');
    }
    if !candidates.is_empty() {
        out.push(b']');
    }
    text(out, b",\"identity\":", *identity);
    text(out, b",\"identity_trail\":", *identity_trail);
    text(out, b",\"rule\":", *rule);
    text(out, b",\"method\":", *method);
    text(out, b",\"path\":", *path);
    number(out, b",\"status\":", *status);
    number(out, b",\"bytes_up\":", *bytes_up);
    number(out, b",\"bytes_down\":", *bytes_down);
    number(out, b",\"duration_ms\":", *duration_ms);
    if let Some(allowed) = allowed_via_proxy {
        out.extend_from_slice(if *allowed {
            b",\"allowed_via_proxy\":true"
        } else {
            b",\"allowed_via_proxy\":false"
        });
    }
    text(out, b",\"detail\":", *detail);
    text(out, b",\"hint\":", *hint);
    number(out, b",\"count\":", *count);
    for (key, time) in [(&b",\"first\":"[..], first), (b",\"last\":", last)] {
        if let Some(time) = time {
            out.extend_from_slice(key);
            moment(out, *time);
        }
    }
    out.push(b'}');
}

fn process(out: &mut Vec<u8>, process: &ProcessView<'_>) {
    let ProcessView { pid, exe, sha256, comm, ancestors } = process;
    number(out, b",\"process\":{\"pid\":", Some(*pid));
    text(out, b",\"exe\":", *exe);
    text(out, b",\"sha256\":", *sha256);
    text(out, b",\"comm\":", *comm);
    if let [nearest, others @ ..] = *ancestors {
        text(out, b",\"ancestors\":[", Some(nearest));
        for ancestor in others {
            text(out, b",", Some(ancestor));
        }
        out.push(b']');
    }
    out.push(b'}');
}

fn moment(out: &mut Vec<u8>, time: Time) {
    out.push(b'"');
    time.write(out);
    out.push(b'"');
}

/// A string that needs no escapes, behind a key that has its first quote.
fn plain(out: &mut Vec<u8>, key: &[u8], value: Option<&str>) {
    if let Some(value) = value {
        out.extend_from_slice(key);
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    }
}

fn number(out: &mut Vec<u8>, key: &[u8], value: Option<impl itoa::Integer>) {
    if let Some(value) = value {
        out.extend_from_slice(key);
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
}

fn address(out: &mut Vec<u8>, value: Option<IpAddr>) {
    let Some(value) = value else { return };
    out.extend_from_slice(b",\"dst_ip\":\"");
    match value {
        IpAddr::V4(ip) => {
            for (index, octet) in ip.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        IpAddr::V6(ip) => drop(write!(out, "{ip}")),
    }
    out.push(b'"');
}

fn text(out: &mut Vec<u8>, key: &[u8], value: Option<&str>) {
    let Some(value) = value else { return };
    out.extend_from_slice(key);
    out.push(b'"');
    // Without a way out of the loop it is done 32 octets at a time.
    if value.bytes().fold(false, |found, octet| found | is_escaped(octet)) {
        escaped(out, value);
    } else {
        out.extend_from_slice(value.as_bytes());
    }
    out.push(b'"');
}

const fn is_escaped(octet: u8) -> bool {
    octet < 0x20 || octet == b'"' || octet == b'\\'
}

#[cold]
fn escaped(out: &mut Vec<u8>, value: &str) {
    for octet in value.bytes() {
        match octet {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', octet]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            _ if is_escaped(octet) => drop(write!(out, "\\u{octet:04x}")),
            _ => out.push(octet),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::super::{Action, Kind, Via};
    use super::*;

    fn rendered(event: &Event<'_>) -> String {
        let mut out = Vec::new();
        render(&mut out, event);
        String::from_utf8(out).unwrap()
    }

    fn with_everything<'a>(text: &'a str, ancestors: &'a [String], number: u64) -> Event<'a> {
        let short = number as u16;
        let mut event =
            Event::at(Kind::RequestAllowed, Time::from_unix_micros((number % (1 << 52)).cast_signed()));
        event.sandbox = Some(text);
        event.reason = Some(text);
        event.via = Some(Via::Direct);
        event.action = Some(Action::Audited);
        event.proto = Some("tcp");
        event.dst_host = Some(text);
        event.dst_ip = Some(if number.is_multiple_of(2) {
            Ipv4Addr::from(number as u32).into()
        } else {
            Ipv6Addr::from(u128::from(number) << 40).into()
        });
        event.dst_port = Some(short);
        event.src_port = Some(short);
        event.uid = Some(number as u32);
        event.process = Some(ProcessView {
            pid: number as u32,
            exe: Some(text),
            sha256: Some("ab"),
            comm: Some(text),
            ancestors,
        });
        event.identity = Some("diag");
        event.identity_trail = Some(text);
        event.rule = Some(text);
        event.method = Some("GET");
        event.path = Some(text);
        event.status = Some(short);
        event.bytes_up = Some(number);
        event.bytes_down = Some(number / 3);
        event.duration_ms = Some(number);
        event.detail = Some(text);
        event.hint = Some(text);
        event.count = Some(number);
        event.first = Some(Time::from_unix_micros(short.into()));
        event.last = Some(event.time);
        event
    }

    proptest! {
        #[test]
        fn a_line_is_what_a_serializer_writes(
            text in "[ -~\\x00-\\x1f\"\\\\é\u{7f}\u{2028}😀]{0,80}",
            ancestors in proptest::collection::vec(".{0,12}", 0..4),
            number: u64,
        ) {
            let mut event = with_everything(&text, &ancestors, number);
            event.allowed_via_proxy = Some(number.is_multiple_of(3));
            let candidate = CandidateView { pid: number as u32, exe: &text, comm: &text };
            let candidates = vec![candidate; ancestors.len()];
            event.candidates = &candidates;
            prop_assert_eq!(rendered(&event), serde_json::to_string(&event).unwrap());
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut event = Event::at(Kind::MonitorLost, Time::from_unix_micros(-1));
        assert_eq!(rendered(&event), serde_json::to_string(&event).unwrap());
        event.process = Some(ProcessView { pid: 1, ..ProcessView::default() });
        assert_eq!(rendered(&event), serde_json::to_string(&event).unwrap());
    }
}
