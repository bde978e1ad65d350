//! From a configuration file, and the policies it names, to a [`Config`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::shape::Shapes;
use super::{Config, Core, EventSink, IdentityMode, SandboxConfig, Shape, Workers};
use crate::confined;
use crate::diagnostic::{Diagnostics, Place};
use crate::limits::{Limits, SandboxLimits};
use crate::policy::{self, PolicyFile, Source};
use crate::tls::Oldest;
use crate::tls::roots::{self, RootsError};
use crate::watch::BypassSource;
use crate::yaml::{self, Fields, Node, Reader, Value, shorten};

/// Longest name of a sandbox; it becomes part of interface, table and file names, and of a log prefix of at most 127
/// characters.
pub const NAME_CHARS_MAX: usize = 40;
/// Most static sandboxes in one file.
pub const SANDBOXES_MAX: usize = 10_000;
/// Longest `refusal_hint`, in characters; it travels with every refusal.
pub const REFUSAL_HINT_CHARS_MAX: usize = 200;
/// Highest core number that can be pinned (CPU_SETSIZE is 1024).
const CORE_MAX: u64 = 1_023;

const TOP: &[&str] = &[
    "proxy_address",
    "listen",
    "workers",
    "cores",
    "bypass_core",
    "bypass_source",
    "admin_socket",
    "metrics",
    "events",
    "state_dir",
    "listeners_per_sandbox",
    "permit_special_addresses",
    "refusal_hint",
    "tls",
    "hardening",
    "timeouts",
    "limits",
    "sandboxes",
];
const TIMEOUTS: &[&str] =
    &["head_read", "dial", "first_byte", "idle_keepalive", "idle_tunnel", "half_closed_linger", "lifetime"];
const SANDBOX: &[&str] = &["name", "source", "netns", "pid", "link", "identity", "policy", "limits"];
const SANDBOX_LIMITS: &[&str] = &["connections", "requests_per_s", "bytes_per_s"];

/// A configuration that can be used, and what its author should know about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Only notes, also those of the policies.
    pub notes: Diagnostics,
}

/// Reads the files a configuration names. The disk, or a table in a test.
pub type Files<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// Whether `name` may name a sandbox: `[A-Za-z0-9][A-Za-z0-9._-]{0,39}`.
pub fn is_name(name: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    name.len() <= NAME_CHARS_MAX
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(rest)
}

/// Reads a configuration and its policies from the disk.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    let mut notes = Diagnostics::default();
    let name: Arc<str> = path.to_string_lossy().into();
    let config = match policy::read(path) {
        Ok(text) => parse(&text, &name, &policy::read, &mut notes),
        Err(error) => {
            notes.error(Place::whole(&name), format!("cannot read the configuration: {error}"));
            None
        }
    };
    match config {
        Some(config) if !notes.has_errors() => Ok(Loaded { config, notes }),
        _ => Err(notes),
    }
}

/// Parses a configuration's text. Errors and notes go to `out`; the result is incomplete when `out` has errors.
/// A policy's path is relative to the configuration's folder.
pub fn parse(text: &str, file: &Arc<str>, files: Files<'_>, out: &mut Diagnostics) -> Option<Config> {
    out.add_source(file, text);
    let root = yaml::parse(text, file, out)?;
    from_tree(&root, file, files, out)
}

/// The same from a tree.
pub(crate) fn from_tree(
    root: &Node,
    file: &Arc<str>,
    files: Files<'_>,
    out: &mut Diagnostics,
) -> Option<Config> {
    let mut reader = Reader::new(file, out);
    let top = reader.mapping(root, TOP)?;
    let mut config = Config { limits: limits(&mut reader, &top), ..Config::default() };
    addresses(&mut reader, &top, &mut config);
    threads(&mut reader, &top, &mut config);
    paths(&mut reader, &top, &mut config);
    if let Some(list) = top.get("permit_special_addresses") {
        let items = reader.list(list).unwrap_or_default();
        config.permit_special_addresses = items.iter().filter_map(|item| reader.cidr(item)).collect();
    }
    tls(&mut reader, &top, (Path::new(&**file), files), &mut config);
    config.refusal_hint = top.get("refusal_hint").and_then(|node| refusal_hint(&mut reader, node));
    config.hardening = top.get("hardening").and_then(|node| reader.choice(node, confined::MODES));
    if let Some(list) = top.get("sandboxes") {
        let items = reader.list(list).unwrap_or_default();
        if items.len() > SANDBOXES_MAX {
            reader.error(list, format!("{} sandboxes, more than the {SANDBOXES_MAX} allowed", items.len()));
            return None;
        }
        let folder = Path::new(&**file).parent().unwrap_or(Path::new(""));
        let mut policies = Policies { folder, files, known: HashMap::new() };
        config.sandboxes = sandboxes(&mut reader, items, &mut policies, config.listen);
        let external = |item: &&Node| matches!(&item.value, Value::Mapping(entries) if entries.iter().any(|(key, _)| key.text() == Some("source")));
        if let Some(first) = items.iter().find(external)
            && top.get("listen").is_none()
        {
            let message = "sandboxes known by their source address need the host's listener";
            reader.error_with_help(first, message, "write \"listen: 127.0.0.1:3128\"");
        }
    }
    Some(config)
}

fn addresses(reader: &mut Reader<'_>, top: &Fields<'_>, config: &mut Config) {
    let mut address = |key| top.get(key).and_then(|node| reader.socket_address(node));
    config.listen = address("listen");
    config.metrics = address("metrics");
    let proxy_address = address("proxy_address");
    config.proxy_address = proxy_address.unwrap_or(config.proxy_address);
    let ip = config.proxy_address.ip();
    if let Some(node) = top.get("proxy_address").filter(|_| ip.is_loopback() || ip.is_unspecified()) {
        let message = format!("{ip} cannot be the proxy's address: clients skip the proxy for loopback");
        reader.error_with_help(node, message, "an address of its own is given to the sandbox's lo");
    }
    if let (Some(listen), Some(node)) = (config.listen, top.get("metrics"))
        && config.metrics == Some(listen)
    {
        reader.error(node, format!("{listen} is the proxy's listener already"));
    }
}

/// `tls`: whom origins are trusted by and what is spoken, where TLS is looked into.
fn tls(reader: &mut Reader<'_>, top: &Fields<'_>, (file, files): (&Path, Files<'_>), config: &mut Config) {
    let keys = &["upstream_ca", "min_version", "http2"];
    let Some(fields) = top.get("tls").and_then(|node| reader.mapping(node, keys)) else { return };
    if let Some(list) = fields.get("upstream_ca") {
        let folder = file.parent().unwrap_or(Path::new(""));
        for item in reader.list(list).unwrap_or_default() {
            let Some(path) = reader.path(item).map(|path| folder.join(path)) else { continue };
            let read = files(&path).map_err(|source| RootsError::Unreadable { path: path.clone(), source });
            if let Err(error) = read.and_then(|text| roots::parse(&path, text.as_bytes())) {
                reader.error(item, error.to_string());
            }
            config.upstream_ca.push(path);
        }
    }
    if let Some(node) = fields.get("min_version") {
        let versions = &[("1.2", Oldest::Tls12), ("1.3", Oldest::Tls13)];
        config.tls_oldest = reader.choice(node, versions).unwrap_or_default();
    }
    if let Some(node) = fields.get("http2") {
        config.tls_http2 = reader.choice(node, &[("on", true), ("off", false)]).unwrap_or(true);
    }
}

fn refusal_hint(reader: &mut Reader<'_>, node: &Node) -> Option<Arc<str>> {
    let text = reader.string(node)?;
    if text.chars().count() > REFUSAL_HINT_CHARS_MAX || text.contains(char::is_control) {
        reader.error(node, format!("expected one line of at most {REFUSAL_HINT_CHARS_MAX} characters"));
        return None;
    }
    Some(text.into())
}

fn threads(reader: &mut Reader<'_>, top: &Fields<'_>, config: &mut Config) {
    if let Some(node) = top.get("workers").filter(|node| node.text() != Some("auto")) {
        let count = reader.number(node, "auto, or a number of workers", 1, CORE_MAX + 1);
        config.workers = count.map_or(Workers::Auto, |count| Workers::Count(count as usize));
    }
    if let Some(list) = top.get("cores") {
        if let Some(node) = top.get("workers").filter(|node| node.text() != Some("auto")) {
            reader.error(node, "either workers or cores, not both");
        }
        let mut cores: Vec<usize> = Vec::new();
        for item in reader.list_not_empty(list, "leave the key out to use all").unwrap_or_default() {
            let Some(core) = reader.number(item, "a core", 0, CORE_MAX).map(|core| core as usize) else {
                continue;
            };
            if cores.contains(&core) {
                reader.error(item, format!("core {core} is listed twice"));
            } else {
                cores.push(core);
            }
        }
        config.workers = Workers::Cores(cores);
    }
    if let Some(node) = top.get("listeners_per_sandbox").filter(|node| node.text() != Some("auto")) {
        let most = sluice_netns::limits::LISTENERS_MAX as u64;
        let count = reader.number(node, "auto, or a number of listeners", 1, most);
        config.listeners_per_sandbox = count.map(|count| count as usize);
    }
    if let Some(node) = top.get("bypass_core").filter(|node| node.text() != Some("auto")) {
        let core = reader.number(node, "auto, or a core", 0, CORE_MAX);
        config.bypass_core = core.map_or(Core::Auto, |core| Core::Pinned(core as usize));
    }
    if let Some(node) = top.get("bypass_source") {
        let sources = &[("kmsg", BypassSource::Kmsg), ("nflog", BypassSource::Nflog)];
        config.bypass_source = reader.choice(node, sources).unwrap_or_default();
    }
}

fn paths(reader: &mut Reader<'_>, top: &Fields<'_>, config: &mut Config) {
    let mut absolute = |key: &str| -> Option<PathBuf> {
        let node = top.get(key)?;
        let path = reader.path(node)?;
        if path.is_absolute() {
            return Some(path);
        }
        reader.error(node, format!("the path {} is not absolute", node.describe()));
        None
    };
    let (admin_socket, state_dir) = (absolute("admin_socket"), absolute("state_dir"));
    config.state_dir = state_dir.unwrap_or_else(|| config.state_dir.clone());
    // What lies in there is hidden from workloads; a socket elsewhere would let one that is root command the daemon.
    if let (Some(node), Some(socket)) = (top.get("admin_socket"), &admin_socket) {
        let state_dir = &config.state_dir;
        if socket == state_dir
            || !socket.starts_with(state_dir)
            || socket.components().any(|part| part == Component::ParentDir)
        {
            reader.error(
                node,
                format!(
                    "the admin socket must lie in state_dir ({0}), which is hidden from workloads; write \
                     \"admin_socket: {0}/admin.sock\", or set state_dir too",
                    state_dir.display()
                ),
            );
        }
    }
    config.admin_socket = admin_socket.unwrap_or_else(|| config.state_dir.join("admin.sock"));
    if let Some(node) = top.get("events").filter(|node| node.text() != Some("-")) {
        config.events = reader.path(node).map_or(EventSink::Stdout, EventSink::File);
    }
}

fn limits(reader: &mut Reader<'_>, top: &Fields<'_>) -> Limits {
    let mut limits = Limits::default();
    if let Some(fields) = top.get("timeouts").and_then(|node| reader.mapping(node, TIMEOUTS)) {
        let mut set = |key: &str, value: &mut Duration| {
            let Some(node) = fields.get(key) else { return };
            match reader.duration(node) {
                Some(Duration::ZERO) if key != "lifetime" => {
                    reader.error(node, format!("{key} must be longer than nothing"));
                }
                Some(duration) => *value = duration,
                None => {}
            }
        };
        set("head_read", &mut limits.head_read);
        set("dial", &mut limits.dial);
        set("first_byte", &mut limits.first_byte);
        set("idle_keepalive", &mut limits.idle_keepalive);
        set("idle_tunnel", &mut limits.idle_tunnel);
        set("half_closed_linger", &mut limits.half_closed_linger);
        set("lifetime", &mut limits.lifetime);
    }
    let keys = &["head_bytes", "head_count"];
    if let Some(fields) = top.get("limits").and_then(|node| reader.mapping(node, keys)) {
        let mut set = |key: &str, value: &mut usize, min, max| {
            let number = fields.get(key).and_then(|node| reader.number(node, "a number", min, max));
            *value = number.map_or(*value, |number| number as usize);
        };
        // RFC 9112 section 3 asks for request lines of 8,000 octets at least.
        set("head_bytes", &mut limits.head_bytes, 8_192, 1 << 20);
        set("head_count", &mut limits.head_count, 16, 1_000);
    }
    limits
}

/// The policies read so far, so that a file named by a thousand sandboxes is read, and its errors told, once.
struct Policies<'a> {
    folder: &'a Path,
    files: Files<'a>,
    known: HashMap<Source, Option<Arc<PolicyFile>>>,
}

impl Policies<'_> {
    fn get(&mut self, reader: &mut Reader<'_>, node: &Node) -> Option<(Source, Arc<PolicyFile>)> {
        let source = match Source::parse(reader.string(node)?) {
            Source::File(path) => Source::File(self.folder.join(path)),
            builtin => builtin,
        };
        if let Some(known) = self.known.get(&source) {
            return known.clone().map(|policy| (source, policy));
        }
        let policy = self.read(reader, node, &source).map(Arc::new);
        self.known.insert(source.clone(), policy.clone());
        policy.map(|policy| (source, policy))
    }

    fn read(&self, reader: &mut Reader<'_>, node: &Node, source: &Source) -> Option<PolicyFile> {
        let Source::File(path) = source else { return Some(policy::builtin(source)) };
        match (self.files)(path) {
            Ok(text) => policy::parse(&text, &path.to_string_lossy().into(), reader.out),
            Err(error) => {
                // Not there now is a state it may leave.
                reader.out.add_source(&path.to_string_lossy().into(), "");
                reader.error(node, format!("cannot read the policy {}: {error}", path.display()));
                None
            }
        }
    }
}

fn sandboxes(
    reader: &mut Reader<'_>,
    items: &[Node],
    policies: &mut Policies<'_>,
    listen: Option<SocketAddr>,
) -> Vec<SandboxConfig> {
    let mut names: HashMap<String, u32> = HashMap::new();
    let mut shapes = Shapes::new(listen);
    let mut found = Vec::new();
    for item in items {
        let Some(fields) = reader.mapping(item, SANDBOX) else { continue };
        let name = reader.required(&fields, "name").and_then(|node| name(reader, node));
        if let (Some(name), Some(node)) = (&name, fields.get("name"))
            && let Some(first) = names.insert(name.to_string(), node.line)
        {
            reader.error(node, format!("duplicate sandbox \"{name}\", first on line {first}"));
        }
        let shape = shapes.read(reader, &fields);
        let sandbox = sandbox(reader, &fields, policies);
        if let (Some(name), Some(shape), Some(sandbox)) = (name, shape, sandbox) {
            found.push(SandboxConfig { name, shape, ..sandbox });
        }
    }
    found
}

/// The parts of a sandbox that need no comparison with the others; name and shape are the caller's.
fn sandbox(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    policies: &mut Policies<'_>,
) -> Option<SandboxConfig> {
    let modes = &[("process", IdentityMode::Process), ("uid", IdentityMode::Uid), ("off", IdentityMode::Off)];
    let identity = fields.get("identity").map(|node| reader.choice(node, modes));
    let identity = identity.unwrap_or(Some(IdentityMode::Process));
    let limits = sandbox_limits(reader, fields);
    let node = reader.required(fields, "policy")?;
    let (policy_source, policy) = policies.get(reader, node)?;
    let identity = identity?;
    let blind = match identity {
        IdentityMode::Process => None,
        IdentityMode::Uid => Some("uid"),
        IdentityMode::Off => Some("off"),
    };
    if let Some(mode) = blind.filter(|_| policy.names_binaries()) {
        let message = format!("the policy names binaries, which cannot be known with identity: {mode}");
        reader.error_with_help(node, message, "remove the binaries, or write \"identity: process\"");
    }
    let place = reader.place(fields.node());
    let shape = Shape::Made;
    Some(SandboxConfig { name: "".into(), shape, identity, policy_source, policy, limits, place })
}

fn name(reader: &mut Reader<'_>, node: &Node) -> Option<Arc<str>> {
    let name = reader.string(node)?;
    if is_name(name) {
        return Some(name.into());
    }
    let message = format!("\"{}\" cannot name a sandbox", shorten(name));
    let help = format!(
        "use letters, digits, \".\", \"_\" and \"-\", beginning with a letter or digit, \
         {NAME_CHARS_MAX} at most"
    );
    reader.error_with_help(node, message, help);
    None
}

fn sandbox_limits(reader: &mut Reader<'_>, fields: &Fields<'_>) -> SandboxLimits {
    let mut limits = SandboxLimits::default();
    let Some(fields) = fields.get("limits").and_then(|node| reader.mapping(node, SANDBOX_LIMITS)) else {
        return limits;
    };
    let mut number = |key: &str, max: u64| {
        fields.get(key).and_then(|node| reader.number(node, "a number (0 for no bound)", 0, max))
    };
    let most = u64::from(u32::MAX);
    limits.connections = number("connections", most).map_or(limits.connections, |n| n as u32);
    limits.requests_per_s = number("requests_per_s", most).map_or(limits.requests_per_s, |n| n as u32);
    limits.bytes_per_s = number("bytes_per_s", 1 << 50).unwrap_or(limits.bytes_per_s);
    limits
}
