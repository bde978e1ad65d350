//! Reads `network_policies`: rules, endpoints, binaries. What an endpoint says about requests: `load_requests.rs`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::glob::{Glob, Separator};
use super::host::HostPattern;
use super::load_requests::{self, GRAPHQL};
use super::model::{Binaries, BinaryPattern, Endpoint, Enforcement, Ports, Rule, RuleHead, Sni};
use super::path::unescape;
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
    let binaries = if let Some(list) = fields.get("binaries") {
        binaries(reader, list)?
    } else {
        reader.note(key, format!("rule \"{}\" names no binaries: any program may use it", shorten(name)));
        Binaries::Any
    };
    let head = Arc::new(RuleHead { name: name.into(), place: reader.place(key), binaries });
    let endpoints = reader.required(&fields, "endpoints")?;
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
    let path = reader.required(&fields, "path")?;
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
    let sha256 = fields.read("sha256", |node| sha256(reader, node)).map(Some).or(None)?;
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
    let requests = load_requests::requests(reader, &fields);
    let levels = &[("enforce", Enforcement::Enforce), ("audit", Enforcement::Audit)];
    let enforcement = fields.read("enforcement", |node| reader.choice(node, levels));
    let checks = &[("verify", Sni::Verify), ("ignore", Sni::Ignore)];
    let sni = fields.read("sni", |node| reader.choice(node, checks));
    Some(Endpoint {
        rule: Arc::clone(rule),
        place: reader.place(node),
        host: host?,
        ports: ports?,
        allowed_ips: allowed_ips.unwrap_or_default().into(),
        requests: requests.ok()?,
        enforcement: enforcement.or(Enforcement::Enforce)?,
        sni: sni.or(Sni::Verify)?,
    })
}

fn host(reader: &mut Reader<'_>, fields: &Fields<'_>, has_allowed_ips: bool) -> Option<HostPattern> {
    let Some(node) = fields.get("host") else {
        if !has_allowed_ips && fields.lacks("host") && fields.lacks("allowed_ips") {
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
            if fields.lacks("port") && fields.lacks("ports") {
                reader.error(fields.node(), "an endpoint needs a port, or ports");
            }
            return None;
        }
    };
    ports.sort_unstable();
    ports.dedup();
    Some(Ports::Listed(ports.into()))
}

/// Compiles a pattern, or tells why not.
pub(super) fn glob(reader: &mut Reader<'_>, node: &Node, text: &str, separator: Separator) -> Option<Glob> {
    match Glob::new(text, separator) {
        Ok(glob) => Some(glob),
        Err(error) => {
            reader.error(node, format!("bad pattern {}: {error}", node.describe()));
            None
        }
    }
}
