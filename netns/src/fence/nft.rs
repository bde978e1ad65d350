//! Loading a fence through `nft` and reading it back.
//!
//! `nft` acts on the namespace of the thread that starts it; there is no way to name another.

use std::io::{self, Write};
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
    match first_difference(&outline(&asked), &outline(&found)) {
        None => Ok(()),
        Some(difference) => Err(Error::FenceDiffers(difference)),
    }
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
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
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

/// What matters of a list of nft objects, a line each: chains with hook and policy, and rules in their order with
/// everything that decides a packet's fate.
///
/// Left out are handles, counts and the right-hand sides of matches, which versions of nft write differently
/// (`icmpv6` or `ipv6-icmp`; a set's order).
fn outline(objects: &[Value]) -> Vec<String> {
    let of_kind = |kind: &str| objects.iter().filter_map(|object| object.get(kind)).collect::<Vec<_>>();
    let mut lines: Vec<String> = Vec::new();
    for kind in ["counter", "set", "map"] {
        lines.extend(of_kind(kind).into_iter().map(|object| format!("{kind} {}", field(object, "name"))));
    }
    for chain in of_kind("chain") {
        let fields = ["name", "type", "hook", "prio", "policy"].map(|name| field(chain, name));
        lines.push(format!("chain {}", fields.join(" ")));
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
        "match" => {
            let left = body.get("left").and_then(Value::as_object).and_then(|left| left.keys().next());
            format!("match-{}", left.map_or("?", String::as_str))
        }
        "counter" => format!("counter-{body}"),
        "goto" | "jump" => format!("{kind}-{}", field(body, "target")),
        "log" => format!("log-{:?}-{}", field(body, "prefix"), field(body, "group")),
        "limit" => format!("limit-{}/{}+{}", field(body, "rate"), field(body, "per"), field(body, "burst")),
        "reject" => format!("reject-{}-{}", field(body, "type"), field(body, "expr")),
        _ => kind.clone(),
    }
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
                json!([{"match": {"left": {"payload": {}}, "right": "10.0.0.1"}}, {"accept": null}]),
            ),
            rule("output", "rest", json!([{"log": {"prefix": "x "}}])),
            rule("output", "rest", json!([{"reject": {"type": "tcp reset"}}])),
        ]
    }

    fn difference(change: impl FnOnce(&mut Vec<Value>)) -> Option<String> {
        let mut found = fence();
        change(&mut found);
        first_difference(&outline(&fence()), &outline(&found))
    }

    #[test]
    fn how_nft_writes_a_thing_is_no_difference() {
        assert_eq!(difference(|found| found[1]["rule"]["handle"] = 77.into()), None);
        assert_eq!(difference(|found| found.insert(0, json!({"metainfo": {"version": "1.0.6"}}))), None);
        assert_eq!(difference(|found| found.rotate_left(1)), None, "a chain listed after its rules");
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
    }
}
