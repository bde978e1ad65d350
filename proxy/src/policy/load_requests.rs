//! Reads what an endpoint says about requests: protocol, presets, rules, paths, queries.

use super::glob::{Glob, Separator};
use super::load_rules::glob;
use super::model::{Access, Allow, MethodRule, RequestPolicy, RequestRule};
use super::path::unescape;
use super::query::QueryRule;
use crate::yaml::{Fields, Given, Node, Reader};

pub(super) const GRAPHQL: &str = "GraphQL operations are not judged";
const REQUEST: &[&str] = &["method", "path", "query"];
const REQUEST_REFUSED: &[(&str, &str)] = &[
    ("operation_type", GRAPHQL),
    ("operation_name", GRAPHQL),
    ("fields", GRAPHQL),
    ("params", "JSON-RPC and MCP messages are not judged"),
    ("tool", "MCP messages are not judged"),
    ("command", "SQL commands are not judged"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    WebSocket,
    Tcp,
    Later,
}

/// The error has been recorded.
pub(super) struct Told;

/// Reads how requests are judged; none for a raw tunnel. Every key is read before any contradiction is told.
pub(super) fn requests(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Result<Option<RequestPolicy>, Told> {
    let protocol = protocol(reader, fields);
    let blind = tls(reader, fields);
    let access = fields.read("access", |node| {
        let presets =
            &[("read-only", Access::ReadOnly), ("read-write", Access::ReadWrite), ("full", Access::Full)];
        reader.choice(node, presets)
    });
    let websocket = protocol == Some(Protocol::WebSocket);
    let rules = fields.read("rules", |node| allow_rules(reader, node, websocket));
    let deny = fields.read("deny_rules", |node| deny_rules(reader, node, websocket));
    let path = fields.read("path", |node| path_glob(reader, node));
    let encoded_slash = fields.read("allow_encoded_slash", |node| reader.bool(node));
    if protocol == Some(Protocol::Tcp) {
        return tcp(reader, fields, access).map(|()| None);
    }
    if let (true, None) = (deny.is_given(), protocol) {
        let key = fields.key("deny_rules").unwrap_or(fields.node());
        reader.error_with_help(key, "deny_rules need a protocol", "write \"protocol: http\"");
        return Err(Told);
    }
    let full = matches!(access, Given::Absent | Given::Good(Access::Full));
    if protocol.is_none() && full && !rules.is_given() && !path.is_given() {
        return raw(reader, fields).map(|()| None);
    }
    if protocol.is_none() {
        let key = first_key(fields, &["rules", "access", "path"]);
        reader.note(key, "requests are judged here as with \"protocol: http\", which is not written");
    }
    if let Some(node) =
        blind.filter(|_| rules.is_given() || deny.is_given() || path.is_given() || !full || websocket)
    {
        let message = "with this tls nothing inside could be judged";
        reader.error_with_help(node, message, "leave out tls, or what is said about requests");
        return Err(Told);
    }
    let allow = base(reader, fields, access, rules).ok_or(Told)?;
    if websocket && allow == Allow::Preset(Access::ReadOnly) {
        let node = fields.get("access").unwrap_or(fields.node());
        let message = "access: read-only on a WebSocket is not supported yet: messages inside are not judged";
        reader.error(node, message);
        return Err(Told);
    }
    Ok(Some(RequestPolicy {
        allow,
        deny: deny.or(Vec::new()).ok_or(Told)?,
        path: path.map(Some).or(None).ok_or(Told)?,
        allow_encoded_slash: encoded_slash.or(false).ok_or(Told)?,
        websocket,
    }))
}

fn first_key<'n>(fields: &Fields<'n>, keys: &[&str]) -> &'n Node {
    keys.iter().find_map(|key| fields.key(key)).unwrap_or(fields.node())
}

/// A tunnel nobody looks into.
fn raw(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Result<(), Told> {
    let Some(key) = fields.key("allow_encoded_slash") else { return Ok(()) };
    let message = "allow_encoded_slash says nothing about a raw tunnel";
    reader.error_with_help(key, message, "write \"protocol: http\"");
    Err(Told)
}

/// A raw tunnel by name: `access: full` is an old way to say so, everything else about requests is a contradiction.
fn tcp(reader: &mut Reader<'_>, fields: &Fields<'_>, access: Given<Access>) -> Result<(), Told> {
    let mut told = Ok(());
    for key in ["access", "rules", "deny_rules", "path", "allow_encoded_slash"] {
        let Some(node) = fields.key(key) else { continue };
        if key == "access" && matches!(access, Given::Good(Access::Full)) {
            continue;
        }
        let message = format!("{key} says nothing about a raw tunnel (protocol: tcp)");
        reader.error_with_help(node, message, "write \"protocol: http\"");
        told = Err(Told);
    }
    told
}

fn base(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    access: Given<Access>,
    rules: Given<Vec<RequestRule>>,
) -> Option<Allow> {
    if access.is_given() && rules.is_given() {
        let key = fields.key("rules").unwrap_or(fields.node());
        reader.error(key, "either access or rules, not both");
        return None;
    }
    if fields.lacks("access") && fields.lacks("rules") {
        let key = first_key(fields, &["deny_rules", "protocol", "path"]);
        let help = "write \"access: read-only\", \"read-write\" or \"full\", or \"rules\"";
        reader.error_with_help(key, "what requests are allowed? access or rules is missing", help);
        return None;
    }
    access.good().map(Allow::Preset).or_else(|| rules.good().map(Allow::Rules))
}

fn protocol(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<Protocol> {
    let node = fields.get("protocol")?;
    let choices = &[
        ("http", Protocol::Http),
        ("rest", Protocol::Http),
        ("tcp", Protocol::Tcp),
        ("websocket", Protocol::WebSocket),
    ];
    if matches!(node.text(), Some("graphql" | "json-rpc" | "mcp" | "sql")) {
        let message =
            format!("protocol {} is not supported yet: its messages are not judged", node.describe());
        reader.error(node, message);
        return Some(Protocol::Later);
    }
    let protocol = reader.choice(node, choices);
    match protocol {
        Some(Protocol::Tcp) => {
            reader.note(node, "programs that ignore the proxy are not captured yet: they must use CONNECT");
        }
        Some(Protocol::WebSocket) => {
            reader.note(node, "the upgrade request is judged, the messages after it are not");
        }
        _ => {}
    }
    // An unreadable protocol counts as one that judges: its error is told, no others follow from it.
    protocol.or(Some(Protocol::Later))
}

/// Reads `tls`; gives the node if nothing inside may be looked at.
fn tls<'n>(reader: &mut Reader<'_>, fields: &Fields<'n>) -> Option<&'n Node> {
    let node = fields.get("tls")?;
    let choices = &[("auto", false), ("skip", true), ("terminate", false), ("passthrough", true)];
    let skip = reader.choice(node, choices)?;
    match node.text() {
        Some("terminate") => reader.note(node, "\"terminate\" is an old spelling of \"auto\""),
        Some("passthrough") => reader.note(node, "\"passthrough\" is an old spelling of \"skip\""),
        _ => {}
    }
    skip.then_some(node)
}

fn allow_rules(reader: &mut Reader<'_>, node: &Node, websocket: bool) -> Option<Vec<RequestRule>> {
    let items = reader.list_not_empty(node, "it would allow nothing; write at least one \"allow\"")?;
    let rules: Vec<Option<Vec<RequestRule>>> = items
        .iter()
        .map(|item| {
            let fields = reader.mapping(item, &["allow"])?;
            let allow = reader.required(&fields, "allow")?;
            request_rule(reader, allow, websocket, false)
        })
        .collect();
    rules.into_iter().collect::<Option<Vec<_>>>().map(|rules| rules.into_iter().flatten().collect())
}

fn deny_rules(reader: &mut Reader<'_>, node: &Node, websocket: bool) -> Option<Vec<RequestRule>> {
    let items = reader.list_not_empty(node, "leave the key out to forbid nothing")?;
    let rules: Vec<_> = items.iter().map(|item| request_rule(reader, item, websocket, true)).collect();
    rules.into_iter().collect::<Option<Vec<_>>>().map(|rules| rules.into_iter().flatten().collect())
}

/// One rule; none for an allow rule about WebSocket messages, which pass anyway.
fn request_rule(
    reader: &mut Reader<'_>,
    node: &Node,
    websocket: bool,
    denies: bool,
) -> Option<Vec<RequestRule>> {
    let fields = reader.mapping_refusing(node, REQUEST, REQUEST_REFUSED)?;
    let method_node = reader.required(&fields, "method")?;
    let method = method(reader, method_node);
    let path = fields.read("path", |node| path_glob(reader, node));
    let query = fields.read("query", |node| query(reader, node));
    if matches!(&method, Some(MethodRule::One(method)) if &**method == "WEBSOCKET_TEXT") {
        if denies || !websocket {
            reader.error(method_node, "rules for WebSocket messages are not supported yet");
            return None;
        }
        reader.note(method_node, "messages after the upgrade are not judged; this rule adds nothing");
        return Some(Vec::new());
    }
    Some(vec![RequestRule {
        place: reader.place(node),
        method: method?,
        path: path.map(Some).or(None)?,
        query: query.or(QueryRule::default())?,
    }])
}

fn method(reader: &mut Reader<'_>, node: &Node) -> Option<MethodRule> {
    let text = reader.string(node)?;
    if text == "*" {
        return Some(MethodRule::Any);
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if !text.bytes().all(token) {
        reader.error(node, format!("{} is not a method", node.describe()));
        return None;
    }
    // Methods are case-sensitive on the wire and upper case by custom; people write them either way.
    Some(MethodRule::One(text.to_ascii_uppercase().into()))
}

fn path_glob(reader: &mut Reader<'_>, node: &Node) -> Option<Glob> {
    let text = reader.string(node)?;
    let text = match canonical_pattern(text) {
        Ok(text) => text,
        Err(message) => {
            reader.error(node, format!("bad path {}: {message}", node.describe()));
            return None;
        }
    };
    glob(reader, node, &text, Separator::Slash)
}

/// A pattern in the spelling in which paths are judged, or why it can match none.
fn canonical_pattern(text: &str) -> Result<String, &'static str> {
    if !text.starts_with('/') && !text.starts_with("**") {
        return Err("it begins with neither \"/\" nor \"**\", so it matches no path");
    }
    if text.contains(['?', '#']) && text.contains('=') {
        return Err("a query does not belong into the path; write \"query\"");
    }
    if text.contains("//") || text.split('/').any(|part| part == "." || part == "..") {
        return Err("paths are tidied before they are matched; none has \"//\", \".\" or \"..\"");
    }
    let mut octets = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let Some((&octet, after)) = left.split_first() {
        left = after;
        if octet != b'%' {
            octets.push(octet);
            continue;
        }
        let [high, low, after @ ..] = after else { return Err("\"%\" begins no escape") };
        left = after;
        match unescape(*high, *low).ok_or("\"%\" begins no escape")? {
            b'/' | b'%' => octets.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
            octet @ (b'*' | b'?' | b'[' | b'\\' | b'{' | b'}') => octets.extend([b'\\', octet]),
            octet => octets.push(octet),
        }
    }
    String::from_utf8(octets).map_err(|_| "its escapes are not UTF-8")
}

fn query(reader: &mut Reader<'_>, node: &Node) -> Option<QueryRule> {
    let entries = reader.entries(node)?;
    if entries.is_empty() {
        reader.error(node, "the query names no parameter; leave the key out");
        return None;
    }
    let parameters: Vec<Option<_>> = entries
        .iter()
        .map(|(key, value)| {
            let globs = if value.text().is_some() {
                vec![query_glob(reader, value)]
            } else {
                let fields = reader.mapping(value, &["any"])?;
                let any = reader.required(&fields, "any")?;
                let items = reader.list_not_empty(any, "name at least one value")?;
                items.iter().map(|item| query_glob(reader, item)).collect()
            };
            Some((key.text()?.into(), globs.into_iter().collect::<Option<Vec<_>>>()?))
        })
        .collect();
    let parameters = parameters.into_iter().collect::<Option<Vec<_>>>()?;
    Some(QueryRule { parameters })
}

fn query_glob(reader: &mut Reader<'_>, node: &Node) -> Option<Glob> {
    // An empty value is something to ask for, unlike elsewhere: `query: {draft: ""}`.
    let text = node.text().filter(|text| text.is_empty()).map_or_else(|| reader.string(node), Some)?;
    glob(reader, node, text, Separator::None)
}
