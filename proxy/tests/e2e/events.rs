//! The contract of the events: what every line must be, whichever test made it.

use serde_json::Value;

/// One event.
pub(crate) type Happening = Value;

const KINDS: [&str; 13] = [
    "connect.allowed",
    "connect.denied",
    "request.allowed",
    "request.denied",
    "tls.failed",
    "tunnel.closed",
    "bypass.detected",
    "fence.violation",
    "sandbox.started",
    "sandbox.stopped",
    "policy.loaded",
    "policy.rejected",
    "monitor.lost",
];
const FIELDS: [&str; 29] = [
    "allowed_via_proxy",
    "candidates",
    "time",
    "event",
    "sandbox",
    "reason",
    "via",
    "action",
    "proto",
    "dst_host",
    "dst_ip",
    "dst_port",
    "src_port",
    "uid",
    "process",
    "identity",
    "identity_trail",
    "rule",
    "hint",
    "count",
    "first",
    "last",
    "method",
    "path",
    "status",
    "bytes_up",
    "bytes_down",
    "duration_ms",
    "detail",
];
const PROCESS_FIELDS: [&str; 5] = ["pid", "exe", "sha256", "comm", "ancestors"];
const VIA: [&str; 2] = ["proxy", "direct"];
const ACTIONS: [&str; 5] = ["allowed", "denied", "audited", "rejected", "dropped"];
const IDENTITIES: [&str; 7] = ["witness", "trace", "diag", "pid-table", "global-table", "candidates", "none"];
/// Reasons of a bypass: a closed set.
const DIRECT: [&str; 6] =
    ["direct_tcp", "direct_udp", "direct_dns", "direct_icmp", "direct_other", "direct_various"];

/// Parses NDJSON and fails if any line breaks the contract.
pub(crate) fn assert_contract(ndjson: &str) -> Vec<Happening> {
    assert!(ndjson.is_empty() || ndjson.ends_with('\n'), "the last line is torn: {ndjson}");
    ndjson.lines().map(assert_event).collect()
}

fn assert_event(line: &str) -> Happening {
    let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let object = event.as_object().unwrap_or_else(|| panic!("no object: {line}"));
    for (name, value) in object {
        assert!(FIELDS.contains(&name.as_str()), "unknown field {name}: {line}");
        assert!(!value.is_null(), "{name} is null; what is not known is left out: {line}");
    }
    assert_word(&event, "event", &KINDS);
    assert_rfc_3339_micros(&event["time"]);
    assert!(event["sandbox"].is_string() || event["event"] == "monitor.lost", "no sandbox: {line}");
    for (name, words) in [("via", &VIA[..]), ("action", &ACTIONS), ("identity", &IDENTITIES)] {
        if object.contains_key(name) {
            assert_word(&event, name, words);
        }
    }
    if let Some(process) = event["process"].as_object() {
        assert!(process.keys().all(|name| PROCESS_FIELDS.contains(&name.as_str())), "{line}");
        assert!(process["pid"].as_u64().is_some_and(|pid| pid > 0), "{line}");
    }
    assert_kind(&event, line);
    event
}

/// What each kind of event always says.
fn assert_kind(event: &Value, line: &str) {
    let has = |name: &str| assert!(!event[name].is_null(), "no {name}: {line}");
    let kind = event["event"].as_str().unwrap_or_default();
    match kind {
        "connect.allowed" | "request.allowed" => {
            assert_eq!(event["via"], "proxy", "{line}");
            ["action", "reason", "dst_host", "dst_ip", "dst_port", "src_port"].into_iter().for_each(has);
        }
        "connect.denied" | "request.denied" => {
            assert_eq!((&event["via"], &event["action"]), (&"proxy".into(), &"denied".into()), "{line}");
            ["reason", "status"].into_iter().for_each(has);
        }
        "tunnel.closed" => {
            ["reason", "bytes_up", "bytes_down", "duration_ms", "dst_port"].into_iter().for_each(has);
        }
        "bypass.detected" => {
            assert_eq!((&event["via"], &event["action"]), (&"direct".into(), &"rejected".into()), "{line}");
            assert_word(event, "reason", &DIRECT);
            assert!(event["count"].as_u64().is_some_and(|count| count > 0), "{line}");
            assert_rfc_3339_micros(&event["first"]);
            assert_rfc_3339_micros(&event["last"]);
            assert!(event["first"].as_str() <= event["last"].as_str(), "{line}");
            if event["reason"] != "direct_various" {
                ["proto", "dst_ip", "identity", "hint"].into_iter().for_each(has);
            }
            let unnamed = event["identity"] == "none" || event["identity"] == "candidates";
            assert_eq!(unnamed, event["process"].is_null(), "{line}");
        }
        _ => {}
    }
    if let Some(reason) = event["reason"].as_str() {
        let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        assert!(!reason.is_empty() && reason.bytes().all(word), "{reason:?} is no word: {line}");
    }
}

#[track_caller]
fn assert_word(event: &Value, name: &str, words: &[&str]) {
    let word = event[name].as_str().unwrap_or_else(|| panic!("{name} is no text: {event}"));
    assert!(words.contains(&word), "{name} {word:?} is not of {words:?}: {event}");
}

/// `2026-11-22T17:19:42.013213Z`.
#[track_caller]
pub(crate) fn assert_rfc_3339_micros(time: &Value) {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00.000000Z";
    let text = time.as_str().unwrap_or_else(|| panic!("no time: {time}"));
    let fits =
        |(octet, shape): (u8, &u8)| if *shape == b'0' { octet.is_ascii_digit() } else { octet == *shape };
    assert!(text.len() == SHAPE.len() && text.bytes().zip(SHAPE).all(fits), "{text}");
}
