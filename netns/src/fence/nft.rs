//! Loading a fence through `nft` and reading it back.
//!
//! `nft` acts on the namespace of the thread that starts it; there is no way to name another.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::process::{Command, Output, Stdio};

use nftables::schema::Nftables;
use nftables::types::NfFamily;
use serde_json::Value;

use super::rules::FenceTable;
use crate::Error;

/// Where `nft` is looked for: a daemon's PATH may lack the sbin directories.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Runs `transaction`, which shall make `table` in the calling thread's namespace, and reads the table back.
pub(super) fn load_into_own(table: &FenceTable, transaction: &Nftables<'_>) -> Result<(), Error> {
    run_transaction(transaction, "load the fence")?;
    check_own(table)
}

/// Reads `table` back from the calling thread's namespace.
pub(super) fn check_own(table: &FenceTable) -> Result<(), Error> {
    let found = list_table(table.family, table.name)?;
    let asked: Vec<Value> =
        table.objects.iter().filter_map(|object| serde_json::to_value(object).ok()).collect();
    difference(&asked, &found).map_or(Ok(()), |difference| Err(Error::FenceDiffers(difference)))
}

/// Runs `transaction` in the calling thread's namespace: all of it happens, or none.
pub(super) fn run_transaction(transaction: &Nftables<'_>, action: &'static str) -> Result<(), Error> {
    let json = serde_json::to_vec(transaction)
        .map_err(|error| Error::NftAnswer { action, reason: error.to_string() })?;
    run(&["-j", "-f", "-"], &json, action).map(|_nothing| ())
}

/// The objects of a table in the calling thread's namespace, as nft's JSON gives them.
pub(super) fn list_table(family: NfFamily, table: &str) -> Result<Vec<Value>, Error> {
    let family = match family {
        NfFamily::INet => "inet",
        NfFamily::IP => "ip",
        NfFamily::IP6 => "ip6",
        NfFamily::ARP => "arp",
        NfFamily::Bridge => "bridge",
        NfFamily::NetDev => "netdev",
    };
    let action = "list the fence";
    let answer = run(&["-j", "list", "table", family, table], b"", action)?;
    let wrong = |reason: String| Error::NftAnswer { action, reason };
    let mut answer: Value = serde_json::from_slice(&answer).map_err(|error| wrong(error.to_string()))?;
    match answer.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Err(wrong("no list \"nftables\"".to_owned())),
    }
}

/// The version `nft` reports, such as `nftables v1.0.6 (Lester Gooch #5)`.
pub(crate) fn version() -> Result<String, Error> {
    let answer = run(&["--version"], b"", "tell its version")?;
    Ok(String::from_utf8_lossy(&answer).trim().to_owned())
}

fn run(arguments: &[&str], input: &[u8], action: &'static str) -> Result<Vec<u8>, Error> {
    let output = spawn(arguments, input).map_err(Error::NftMissing)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if stderr.is_empty() {
        stderr = format!("it said nothing and ended with {}", output.status);
    }
    Err(Error::NftRefused { action, stderr })
}

fn spawn(arguments: &[&str], input: &[u8]) -> io::Result<Output> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for program in PROGRAMS {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match child {
            Ok(mut child) => {
                // A pipe holds 64 KiB and nft writes nothing before it has read everything, so this cannot block
                // for ever; a write that fails because nft ended early is explained by its stderr.
                if let Some(mut stdin) = child.stdin.take() {
                    let _ = stdin.write_all(input);
                }
                return child.wait_with_output();
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// The first thing in which `found` is not what was asked for.
fn difference(asked: &[Value], found: &[Value]) -> Option<String> {
    // Some versions of nft do not say which link a chain is for.
    let with_links =
        found.iter().any(|object| object.get("chain").is_some_and(|chain| chain.get("dev").is_some()));
    first_difference(&outline(asked, with_links), &outline(found, with_links))
}

/// What matters of a list of nft objects, a line each: flags of the table, sets with what is in them, chains with hook
/// and policy, and rules in their order with everything that decides a packet's fate.
///
/// Left out are handles and counts; what versions of nft write differently is written in one way (see [`canonical`]).
fn outline(objects: &[Value], with_links: bool) -> Vec<String> {
    let of_kind = |kind: &str| objects.iter().filter_map(|object| object.get(kind)).collect::<Vec<_>>();
    let mut lines: Vec<String> = Vec::new();
    // A table that is dormant has all its rules and follows none. We ask for no flag. (Version 1.0.6 has the right key
    // with nonsense as its value.)
    let flags = of_kind("table").into_iter().filter_map(|table| table.get("flags"));
    lines.extend(
        flags
            .map(canonical)
            .filter(|flags| *flags != "[]")
            .map(|flags| format!("a table with the flags {flags}")),
    );
    for kind in ["counter", "map"] {
        lines.extend(of_kind(kind).into_iter().map(|object| format!("{kind} {}", field(object, "name"))));
    }
    for set in of_kind("set") {
        let elements = set.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        lines.push(format!("set {} of {}", field(set, "name"), unordered(elements)));
    }
    for chain in of_kind("chain") {
        let fields = ["name", "type", "hook", "prio", "policy"].map(|name| field(chain, name));
        let link = chain.get("dev").filter(|_| with_links).map(|link| format!(" by {}", canonical(link)));
        lines.push(format!("chain {}{}", fields.join(" "), link.unwrap_or_default()));
    }
    // The order of unlike objects says nothing, that of a chain's rules everything.
    lines.sort();
    let mut rules: Vec<(String, String)> = of_kind("rule")
        .into_iter()
        .map(|rule| {
            let chain = field(rule, "chain");
            let statements =
                rule.get("expr").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let line = statements.iter().map(statement).collect::<Vec<_>>().join(" ");
            (chain.clone(), format!("rule in {chain} ({}): {line}", field(rule, "comment")))
        })
        .collect();
    rules.sort_by(|a, b| a.0.cmp(&b.0)); // stable: keeps the order within a chain
    lines.extend(rules.into_iter().map(|(_, line)| line));
    lines
}

fn statement(statement: &Value) -> String {
    let Some((kind, body)) = statement.as_object().and_then(|object| object.iter().next()) else {
        return statement.to_string();
    };
    match kind.as_str() {
        "match" => condition(body),
        "counter" => format!("counter-{body}"),
        "goto" | "jump" => format!("{kind}-{}", field(body, "target")),
        "log" => format!("log-{:?}-{}", field(body, "prefix"), field(body, "group")),
        "limit" => {
            let over = if body.get("inv") == Some(&Value::Bool(true)) { "over-" } else { "" };
            format!("limit-{over}{}/{}+{}", field(body, "rate"), field(body, "per"), field(body, "burst"))
        }
        "reject" => format!("reject-{}-{}", field(body, "type"), field(body, "expr")),
        _ => kind.clone(),
    }
}

fn condition(body: &Value) -> String {
    let side = |name| body.get(name).map_or_else(|| "-".to_owned(), canonical);
    let (left, right) = (side("left"), side("right"));
    let right = match (left.as_str(), right.as_str()) {
        // Names where /etc/protocols has them, of which one has two, and else numbers.
        ("meta(key(l4proto))", name) => protocol_number(name).map_or(right, |number| number.to_string()),
        ("meta(key(skuid))", "root") => "0".to_owned(),
        // Older versions have no name for this field and write what is in it as a number.
        (ADVERTISED_BY_PLACE | ADVERTISED, _) => {
            return format!("{ADVERTISED}{}{}", field(body, "op"), address_of(&right).unwrap_or(right));
        }
        _ => right,
    };
    format!("{left}{}{right}", field(body, "op"))
}

/// The address that a neighbour advertisement speaks of, by its place and by its name.
const ADVERTISED_BY_PLACE: &str = "payload(base(th),len(128),offset(64))";
const ADVERTISED: &str = "payload(field(taddr),protocol(icmpv6))";

/// The address that a number means.
fn address_of(number: &str) -> Option<String> {
    let bits = match number.strip_prefix("0x") {
        Some(digits) => u128::from_str_radix(digits, 16),
        None => number.parse(),
    };
    bits.ok().map(|bits| Ipv6Addr::from_bits(bits).to_string())
}

fn protocol_number(name: &str) -> Option<u8> {
    let number = match name {
        "icmp" => 1,
        "igmp" => 2,
        "tcp" => 6,
        "udp" => 17,
        "icmpv6" | "ipv6-icmp" => 58,
        _ => return None,
    };
    Some(number)
}

/// A value of nft's JSON in one way of several: an object by its keys in order, a list of one as that one, the elements of
/// an unnamed set in order, an address as Rust writes it.
fn canonical(value: &Value) -> String {
    match value {
        Value::String(text) => {
            text.parse::<IpAddr>().map_or_else(|_| text.clone(), |address| address.to_string())
        }
        Value::Array(items) => match &items[..] {
            [only] => canonical(only),
            items => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        },
        Value::Object(object) => {
            let mut fields: Vec<String> = object
                .iter()
                .map(|(key, value)| match (key.as_str(), value) {
                    ("set", Value::Array(elements)) => unordered(elements),
                    _ => format!("{key}({})", canonical(value)),
                })
                .collect();
            fields.sort();
            fields.join(",")
        }
        other => other.to_string(),
    }
}

fn unordered(elements: &[Value]) -> String {
    let mut elements: Vec<String> = elements.iter().map(canonical).collect();
    elements.sort();
    format!("{{{}}}", elements.join(","))
}

fn field(object: &Value, name: &str) -> String {
    match object.get(name) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn first_difference(asked: &[String], found: &[String]) -> Option<String> {
    let longest = asked.len().max(found.len());
    (0..longest).find_map(|at| match (asked.get(at), found.get(at)) {
        (Some(asked), Some(found)) if asked == found => None,
        (asked, found) => Some(format!(
            "asked for {:?}, found {:?}",
            asked.map_or("nothing more", String::as_str),
            found.map_or("nothing more", String::as_str)
        )),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(chain: &str, comment: &str, expr: Value) -> Value {
        let mut rule = json!({"rule": {"chain": chain, "comment": comment, "handle": 9}});
        rule["rule"]["expr"] = expr;
        rule
    }

    fn fence() -> Vec<Value> {
        vec![
            json!({"chain": {"name": "output", "type": "filter", "hook": "output", "prio": 0, "policy": "drop"}}),
            rule(
                "output",
                "proxy",
                json!([is(&json!({"payload": {"protocol": "ip6", "field": "daddr"}}), &json!("fd00::1")), {"accept": null}]),
            ),
            rule("output", "rest", json!([{"log": {"prefix": "x "}}])),
            rule("output", "rest", json!([{"reject": {"type": "tcp reset"}}])),
            rule(
                "output",
                "chatter",
                json!([
                    is(&json!({"payload": {"protocol": "icmpv6", "field": "type"}}), &json!({"set": ["a", "b"]})),
                    is(&json!({"meta": {"key": "l4proto"}}), &json!("ipv6-icmp")),
                    is(&json!({"fib": {"result": "type", "flags": ["daddr"]}}), &json!("local")),
                    {"drop": null}
                ]),
            ),
            json!({"set": {"name": "flow", "type": ["ifname", "inet_service"], "elem": [
                {"concat": ["tap0", 80]}, {"concat": ["tap1", 80]}
            ]}}),
        ]
    }

    fn is(left: &Value, right: &Value) -> Value {
        json!({"match": {"op": "==", "left": left, "right": right}})
    }

    fn difference(change: impl FnOnce(&mut Vec<Value>)) -> Option<String> {
        let mut found = fence();
        change(&mut found);
        super::difference(&fence(), &found)
    }

    /// The right side of a condition of the rule about chatter.
    fn right(found: &mut [Value], condition: usize) -> &mut Value {
        &mut found[4]["rule"]["expr"][condition]["match"]["right"]
    }

    /// The condition of the rule about the proxy.
    fn proxy(found: &mut [Value]) -> &mut Value {
        &mut found[1]["rule"]["expr"][0]["match"]
    }

    #[test]
    fn how_nft_writes_a_thing_is_no_difference() {
        assert_eq!(difference(|found| found[1]["rule"]["handle"] = 77.into()), None);
        assert_eq!(difference(|found| found.insert(0, json!({"metainfo": {"version": "1.0.6"}}))), None);
        assert_eq!(difference(|found| found.rotate_left(1)), None, "a chain listed after its rules");
        assert_eq!(difference(|found| *right(found, 0) = json!({"set": ["b", "a"]})), None);
        assert_eq!(difference(|found| *right(found, 1) = "icmpv6".into()), None);
        assert_eq!(difference(|found| *right(found, 1) = 58.into()), None, "without /etc/protocols");
        let fib = |found: &mut [Value]| {
            found[4]["rule"]["expr"][2]["match"]["left"]["fib"]["flags"] = "daddr".into();
        };
        assert_eq!(difference(|found| fib(found)), None);
        assert_eq!(difference(|found| proxy(found)["right"] = "fd00:0::1".into()), None);
        assert_eq!(difference(|found| found[5]["set"]["elem"].as_array_mut().unwrap().reverse()), None);
        let by_place = json!({"payload": {"base": "th", "offset": 64, "len": 128}});
        let by_name = json!({"payload": {"protocol": "icmpv6", "field": "taddr"}});
        let advertised = |left: &Value, right: Value| statement(&is(left, &right));
        let one_way = advertised(&by_place, json!("0xfd090000000000000000000000000002"));
        assert_eq!(one_way, advertised(&by_name, json!("fd09::2")));
        assert_eq!(advertised(&by_place, json!("0x2")), advertised(&by_place, json!(2)));
        assert_ne!(one_way, advertised(&by_place, json!("0xfd090000000000000000000000000003")));
        assert_eq!(difference(|found| found.push(json!({"table": {"name": "sluice", "handle": 1}}))), None);
    }

    #[test]
    fn whatever_changes_a_packets_fate_is_a_difference() {
        assert!(difference(|found| found[0]["chain"]["policy"] = "accept".into()).is_some());
        assert!(difference(|found| found[0]["chain"]["prio"] = 300.into()).is_some());
        assert!(difference(|found| found.swap(2, 3)).is_some(), "rules in another order");
        assert!(difference(|found| found.truncate(3)).is_some(), "a rule missing");
        assert!(difference(|found| found.push(rule("output", "", json!([{"accept": null}])))).is_some());
        assert!(difference(|found| found[1]["rule"]["expr"] = json!([{"accept": null}])).is_some());
        assert!(difference(|found| found[2]["rule"]["expr"][0]["log"]["prefix"] = "y ".into()).is_some());
        assert!(difference(|found| *right(found, 0) = json!({"set": ["a"]})).is_some(), "a smaller set");
        assert!(difference(|found| *right(found, 1) = "tcp".into()).is_some(), "another protocol");
        assert!(difference(|found| *right(found, 2) = "unicast".into()).is_some(), "another kind of address");
        assert!(difference(|found| proxy(found)["right"] = "::/0".into()).is_some(), "another address");
        assert!(difference(|found| proxy(found)["op"] = "!=".into()).is_some(), "the contrary");
        assert!(difference(|found| proxy(found)["left"]["payload"]["field"] = "saddr".into()).is_some());
        assert!(difference(|found| found[5]["set"]["elem"][1]["concat"][1] = 22.into()).is_some());
        assert!(difference(|found| found[5]["set"]["elem"] = json!([])).is_some(), "an emptied set");
    }

    #[test]
    fn a_table_that_sleeps_is_a_difference() {
        for flags in [json!("dormant"), json!(["dormant"]), json!("nonsense of version 1.0.6")] {
            let table = json!({"table": {"name": "sluice", "flags": flags}});
            assert!(difference(|found| found.insert(0, table)).is_some(), "{flags}");
        }
    }

    #[test]
    fn a_chain_for_another_link_is_a_difference_where_nft_tells() {
        let chain = |link: Option<&str>| {
            let mut chain = json!({"chain": {"name": "from", "hook": "ingress", "policy": "drop"}});
            if let Some(link) = link {
                chain["chain"]["dev"] = link.into();
            }
            vec![chain]
        };
        assert_eq!(super::difference(&chain(Some("tap0")), &chain(Some("tap0"))), None);
        assert_eq!(super::difference(&chain(Some("tap0")), &chain(None)), None);
        assert!(super::difference(&chain(Some("tap0")), &chain(Some("tap1"))).is_some());
    }
}
