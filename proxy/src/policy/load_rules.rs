//! Reads `network_policies`: rules, endpoints, requests, binaries.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::glob::{Glob, Separator};
use super::host::HostPattern;
use super::model::{
    Access, Allow, Binaries, BinaryPattern, Endpoint, Enforcement, MethodRule, Ports, RequestPolicy,
    RequestRule, Rule, RuleHead, Sni,
};
use super::path::unescape;
use super::query::QueryRule;
use crate::destination::Host;
use crate::yaml::{Fields, Node, Reader, shorten};

const ENDPOINT: &[&str] = &[
    "host",
    "port",
    "ports",
    "allowed_ips",
    "protocol",
    "tls",
    "enforcement",
    "access",
    "rules",
    "deny_rules",
    "path",
    "allow_encoded_slash",
    "sni",
];
const CREDENTIALS: &str = "Sluice holds no credentials and rewrites none";
const GRAPHQL: &str = "GraphQL operations are not judged";
const ENDPOINT_REFUSED: &[(&str, &str)] = &[
    ("credential_binding", CREDENTIALS),
    ("request_body_credential_rewrite", CREDENTIALS),
    ("websocket_credential_rewrite", CREDENTIALS),
    ("allow_uninspected_credentials", CREDENTIALS),
    ("credential_signing", CREDENTIALS),
    ("signing_service", CREDENTIALS),
    ("signing_region", CREDENTIALS),
    ("persisted_queries", GRAPHQL),
    ("graphql_persisted_queries", GRAPHQL),
    ("graphql_max_body_bytes", GRAPHQL),
    ("mcp", "MCP messages are not judged"),
    ("json_rpc", "JSON-RPC messages are not judged"),
    ("middleware", "Sluice runs no middleware"),
    ("middlewares", "Sluice runs no middleware"),
];
const REQUEST: &[&str] = &["method", "path", "query"];
const REQUEST_REFUSED: &[(&str, &str)] = &[
    ("operation_type", GRAPHQL),
    ("operation_name", GRAPHQL),
    ("fields", GRAPHQL),
    ("params", "JSON-RPC and MCP messages are not judged"),
    ("tool", "MCP messages are not judged"),
    ("command", "SQL commands are not judged"),
];

/// Reads the mapping of rules.
pub(super) fn rules(reader: &mut Reader<'_>, node: &Node) -> Vec<Rule> {
    let entries = reader.entries(node).unwrap_or_default();
    if entries.is_empty() && reader.entries(node).is_some() {
        reader.note(node, "network_policies is empty: every destination is denied");
    }
    entries.iter().filter_map(|(key, value)| rule(reader, key, value)).collect()
}

fn rule(reader: &mut Reader<'_>, key: &Node, node: &Node) -> Option<Rule> {
    let fields = reader.mapping(node, &["name", "endpoints", "binaries"])?;
    let name = match fields.get("name") {
        Some(name) => reader.string(name)?,
        None => key.text()?,
    };
    let binaries = match fields.get("binaries") {
        Some(list) => binaries(reader, list)?,
        None => {
            reader.note(key, format!("rule \"{}\" names no binaries: any program may use it", shorten(name)));
            Binaries::Any
        }
    };
    let head = Arc::new(RuleHead { name: name.into(), place: reader.place(key), binaries });
    let Some(endpoints) = fields.get("endpoints") else {
        reader.error(key, format!("rule \"{}\" has no endpoints", shorten(name)));
        return None;
    };
    let endpoints = reader.list_not_empty(endpoints, "a rule needs at least one endpoint")?;
    let endpoints = endpoints.iter().filter_map(|node| endpoint(reader, &head, node)).map(Arc::new).collect();
    Some(Rule { head, endpoints })
}

fn binaries(reader: &mut Reader<'_>, node: &Node) -> Option<Binaries> {
    let help = "it would match no program; leave the key out to mean any program";
    let items = reader.list_not_empty(node, help)?;
    Some(Binaries::Listed(items.iter().filter_map(|item| binary(reader, item)).collect()))
}

fn binary(reader: &mut Reader<'_>, node: &Node) -> Option<BinaryPattern> {
    let fields = reader.mapping(node, &["path", "sha256"])?;
    let Some(path) = fields.get("path") else {
        reader.error(node, "the key \"path\" is missing");
        return None;
    };
    let text = reader.string(path)?;
    if !text.starts_with(['/', '*']) {
        reader.error(path, format!("the path {} is not absolute", path.describe()));
        return None;
    }
    if text.split('/').any(|part| part == ".." || part == ".") {
        reader.error(
            path,
            format!("the path {} holds a dot segment; it can match no program", path.describe()),
        );
        return None;
    }
    let path = glob(reader, path, text, Separator::Slash)?;
    let sha256 = match fields.get("sha256") {
        Some(node) => Some(sha256(reader, node)?),
        None => None,
    };
    Some(BinaryPattern { path, sha256 })
}

fn sha256(reader: &mut Reader<'_>, node: &Node) -> Option<[u8; 32]> {
    let text = reader.string(node)?.as_bytes();
    let octets: Option<Vec<u8>> = text
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => unescape(*high, *low),
            _ => None,
        })
        .collect();
    let hash = octets.and_then(|octets| octets.try_into().ok());
    if hash.is_none() {
        reader.error(node, format!("expected 64 hexadecimal digits, found {}", node.describe()));
    }
    hash
}

fn endpoint(reader: &mut Reader<'_>, rule: &Arc<RuleHead>, node: &Node) -> Option<Endpoint> {
    let fields = reader.mapping_refusing(node, ENDPOINT, ENDPOINT_REFUSED)?;
    // Every part is read before any is missed: an endpoint's errors come together.
    let allowed_ips = fields.get("allowed_ips").map(|list| allowed_ips(reader, list));
    let host = host(reader, &fields, allowed_ips.is_some());
    let ports = ports(reader, &fields);
    let requests = requests(reader, &fields);
    let levels = &[("enforce", Enforcement::Enforce), ("audit", Enforcement::Audit)];
    let enforcement = fields.get("enforcement").map(|node| reader.choice(node, levels));
    let checks = &[("verify", Sni::Verify), ("ignore", Sni::Ignore)];
    let sni = fields.get("sni").map(|node| reader.choice(node, checks));
    Some(Endpoint {
        rule: Arc::clone(rule),
        place: reader.place(node),
        host: host?,
        ports: ports?,
        allowed_ips: allowed_ips.unwrap_or_default().into(),
        requests: requests?,
        enforcement: enforcement.unwrap_or(Some(Enforcement::Enforce))?,
        sni: sni.unwrap_or(Some(Sni::Verify))?,
    })
}

fn host(reader: &mut Reader<'_>, fields: &Fields<'_>, has_allowed_ips: bool) -> Option<HostPattern> {
    let Some(node) = fields.get("host") else {
        if !has_allowed_ips {
            reader.error(fields.node(), "an endpoint needs a host, or allowed_ips");
        }
        return has_allowed_ips.then_some(HostPattern::Any);
    };
    let text = reader.string(node)?;
    let host = match HostPattern::parse(text) {
        Ok(host) => host,
        Err(error) => {
            reader.error(node, format!("bad host {}: {error}", node.describe()));
            return None;
        }
    };
    let special = match &host {
        HostPattern::Exact(Host::Ip(ip)) => special(&(*ip).into()),
        HostPattern::Exact(Host::Name(name)) if &**name == "localhost" => Some("loopback"),
        _ => None,
    };
    if let Some(what) = special {
        let message = format!("{host} is {what}: refused all the same unless the operator permits it");
        reader.note(node, message);
    }
    Some(host)
}

/// What no policy can allow, if the block holds any of it. The address guard has the full list; these are the ones
/// people write.
fn special(net: &IpNet) -> Option<&'static str> {
    const SPECIAL: &[(&str, &str)] = &[
        ("127.0.0.0/8", "loopback"),
        ("::1/128", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("fe80::/10", "link-local"),
        ("0.0.0.0/32", "unspecified"),
        ("::/128", "unspecified"),
    ];
    SPECIAL.iter().find_map(|(block, what)| {
        let block: IpNet = block.parse().ok()?;
        (block.contains(net) || net.contains(&block)).then_some(*what)
    })
}

fn allowed_ips(reader: &mut Reader<'_>, node: &Node) -> Vec<IpNet> {
    let help = "list the addresses or blocks the host may resolve to";
    let mut nets = Vec::new();
    for item in reader.list_not_empty(node, help).unwrap_or_default() {
        let Some(net) = reader.cidr(item) else { continue };
        if let Some(what) = special(&net) {
            reader.error(item, format!("{net} contains {what} addresses, which no policy can allow"));
        } else if matches!(net.addr(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()) {
            reader.error(item, format!("{net} is an IPv4 block mapped into IPv6; write the IPv4 block"));
        } else {
            nets.push(net);
        }
    }
    nets
}

fn ports(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<Ports> {
    let mut ports = match (fields.get("port"), fields.get("ports")) {
        (Some(_), Some(ports)) => {
            reader.error(ports, "either port or ports, not both");
            return None;
        }
        (Some(port), None) => vec![reader.port(port)?],
        (None, Some(list)) => {
            let items = reader.list_not_empty(list, "name at least one port")?;
            // All are read, so that every bad one is told; then one bad one spoils the list.
            let ports: Vec<Option<u16>> = items.iter().map(|item| reader.port(item)).collect();
            ports.into_iter().collect::<Option<Vec<u16>>>()?
        }
        (None, None) => {
            reader.error(fields.node(), "an endpoint needs a port, or ports");
            return None;
        }
    };
    ports.sort_unstable();
    ports.dedup();
    Some(Ports::Listed(ports.into()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    WebSocket,
    Tcp,
    Later,
}

/// Reads how requests are judged: `None` after an error, `Some(None)` for a raw tunnel.
#[expect(clippy::option_option, reason = "the outer level is the errors', the inner the file's")]
fn requests(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<Option<RequestPolicy>> {
    let protocol = protocol(reader, fields);
    let passthrough = tls(reader, fields);
    let accesses =
        &[("read-only", Access::ReadOnly), ("read-write", Access::ReadWrite), ("full", Access::Full)];
    let access = fields.get("access").map(|node| reader.choice(node, accesses));
    let websocket = protocol == Some(Protocol::WebSocket);
    let rules = fields.get("rules").map(|node| allow_rules(reader, node, websocket));
    let deny = fields.get("deny_rules").map(|node| deny_rules(reader, node, websocket));
    let path = fields.get("path").map(|node| path_glob(reader, node));
    let encoded = fields.get("allow_encoded_slash").map(|node| reader.bool(node));
    if protocol == Some(Protocol::Tcp) {
        return tcp(reader, fields, access).then_some(None);
    }
    let judged = protocol.is_some()
        || rules.is_some()
        || path.is_some()
        || access.is_some_and(|access| access != Some(Access::Full));
    if let (Some(_), None) = (&deny, protocol) {
        let node = fields.key("deny_rules").unwrap_or(fields.node());
        reader.error_with_help(node, "deny_rules need a protocol", "write \"protocol: http\"");
        return None;
    }
    if !judged {
        if let Some(key) = fields.key("allow_encoded_slash") {
            reader
                .error(key, "allow_encoded_slash says nothing about a raw tunnel; write \"protocol: http\"");
        }
        return Some(None);
    }
    if protocol.is_none() {
        let key = ["rules", "access", "path"].iter().find_map(|key| fields.key(key)).unwrap_or(fields.node());
        reader.note(key, "requests are judged here as with \"protocol: http\", which is not written");
    }
    if let Some(node) = passthrough {
        reader
            .error(node, "with this tls nothing inside could be judged; leave out tls, or the request rules");
        return None;
    }
    let allow = base(reader, fields, access, rules)?;
    if websocket && allow == Allow::Preset(Access::ReadOnly) {
        let node = fields.get("access").unwrap_or(fields.node());
        let message = "access: read-only on a WebSocket is not supported yet: messages inside are not judged";
        reader.error(node, message);
        return None;
    }
    Some(Some(RequestPolicy {
        allow,
        deny: deny.unwrap_or(Some(Vec::new()))?,
        path: match path {
            Some(path) => Some(path?),
            None => None,
        },
        allow_encoded_slash: encoded.unwrap_or(Some(false))?,
        websocket,
    }))
}

fn base(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    access: Option<Option<Access>>,
    rules: Option<Option<Vec<RequestRule>>>,
) -> Option<Allow> {
    match (access, rules) {
        (Some(_), Some(_)) => {
            let node = fields.key("rules").unwrap_or(fields.node());
            reader.error(node, "either access or rules, not both");
            None
        }
        (Some(access), None) => access.map(Allow::Preset),
        (None, Some(rules)) => rules.map(Allow::Rules),
        (None, None) => {
            let node = ["deny_rules", "protocol", "path"].iter().find_map(|key| fields.key(key));
            let node = node.unwrap_or(fields.node());
            let help = "write \"access: read-only\", \"read-write\" or \"full\", or \"rules\"";
            reader.error_with_help(node, "what requests are allowed? access or rules is missing", help);
            None
        }
    }
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

/// A raw tunnel by name: `access: full` is an old way to say so, everything else about requests is a contradiction.
fn tcp(reader: &mut Reader<'_>, fields: &Fields<'_>, access: Option<Option<Access>>) -> bool {
    let mut fine = true;
    for key in ["access", "rules", "deny_rules", "path", "allow_encoded_slash"] {
        let Some(node) = fields.key(key) else { continue };
        if key == "access" && access == Some(Some(Access::Full)) {
            continue;
        }
        reader.error(
            node,
            format!("{key} says nothing about a raw tunnel (protocol: tcp); write \"protocol: http\""),
        );
        fine = false;
    }
    fine
}

fn allow_rules(reader: &mut Reader<'_>, node: &Node, websocket: bool) -> Option<Vec<RequestRule>> {
    let items = reader.list_not_empty(node, "it would allow nothing; write at least one \"allow\"")?;
    let rules: Vec<Option<Vec<RequestRule>>> = items
        .iter()
        .map(|item| {
            let fields = reader.mapping(item, &["allow"])?;
            let Some(allow) = fields.get("allow") else {
                reader.error(item, "the key \"allow\" is missing");
                return None;
            };
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
    let Some(method_node) = fields.get("method") else {
        let help = "write one, or \"*\" for any";
        reader.error_with_help(node, "the key \"method\" is missing", help);
        return None;
    };
    let method = method(reader, method_node);
    let path = fields.get("path").map(|node| path_glob(reader, node));
    let query = fields.get("query").map(|node| query(reader, node));
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
        path: match path {
            Some(path) => Some(path?),
            None => None,
        },
        query: query.unwrap_or_else(|| Some(QueryRule::default()))?,
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
            let globs = match value.text() {
                Some(_) => vec![query_glob(reader, value)],
                None => {
                    let fields = reader.mapping(value, &["any"])?;
                    let Some(any) = fields.get("any") else {
                        reader.error(value, "the key \"any\" is missing");
                        return None;
                    };
                    let items = reader.list_not_empty(any, "name at least one value")?;
                    items.iter().map(|item| query_glob(reader, item)).collect()
                }
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

fn glob(reader: &mut Reader<'_>, node: &Node, text: &str, separator: Separator) -> Option<Glob> {
    match Glob::new(text, separator) {
        Ok(glob) => Some(glob),
        Err(error) => {
            reader.error(node, format!("bad pattern {}: {error}", node.describe()));
            None
        }
    }
}
