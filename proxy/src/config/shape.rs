//! What the entries of `sandboxes` are made of, compared with each other.

use std::collections::HashMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use sluice_netns::LinkName;

use super::{AttachTo, Shape};
use crate::yaml::{Fields, Node, Reader};

/// Largest pid Linux gives (PID_MAX_LIMIT).
const PID_MAX: u64 = 4_194_304;

/// What the entries read so far have taken, each with its line.
pub(super) struct Shapes {
    listen: Option<SocketAddr>,
    sources: HashMap<IpNet, u32>,
    namespaces: HashMap<String, u32>,
    links: HashMap<LinkName, u32>,
}

impl Shapes {
    /// Nothing is taken yet. `listen` is the host's listener.
    pub(super) fn new(listen: Option<SocketAddr>) -> Self {
        Self { listen, sources: HashMap::new(), namespaces: HashMap::new(), links: HashMap::new() }
    }

    /// `source`: external; `netns` or `pid`: attached; neither: made.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<Shape> {
        let kinds: Vec<(&str, &Node)> = ["source", "netns", "pid"]
            .into_iter()
            .filter_map(|key| fields.get(key).map(|node| (key, node)))
            .collect();
        if let [(first, _), (second, node), ..] = kinds[..] {
            let message = format!("a sandbox has either {first} or {second}, not both");
            reader.error_with_help(node, message, "source: external; netns or pid: attached; neither: made");
            return None;
        }
        let link = match fields.get("link") {
            Some(node) => Some((self.link(reader, node)?, node)),
            None => None,
        };
        match (kinds.first(), link) {
            (None, None) => Some(Shape::Made),
            (None, Some((_, node))) => {
                let message = "a sandbox that Sluice makes has no link";
                reader.error_with_help(node, message, "link goes with source, netns or pid");
                None
            }
            (Some(("source", node)), link) => self.external(reader, node, link),
            (Some((key, node)), link) => {
                let to = self.namespace(reader, key, node)?;
                Some(Shape::Attached { to, link: link.map(|(link, _)| link) })
            }
        }
    }

    fn external(
        &mut self,
        reader: &mut Reader<'_>,
        node: &Node,
        link: Option<(LinkName, &Node)>,
    ) -> Option<Shape> {
        let source = reader.cidr(node)?;
        if let Some(first) = self.sources.insert(source, node.line) {
            reader.error(node, format!("{source} is the source of the sandbox on line {first} already"));
        }
        let Some((link, at)) = link else { return Some(Shape::External { source, link: None }) };
        if source.prefix_len() != source.max_prefix_len() {
            let message = format!("behind a fenced link there is one address, not {source}");
            reader.error_with_help(
                node,
                message,
                format!("write {}/{}", source.addr(), source.max_prefix_len()),
            );
            return None;
        }
        match self.listen {
            Some(listen) if listen.ip().is_unspecified() => {
                let message = format!("the link can only be fenced for one address, and listen is {listen}");
                reader.error_with_help(at, message, "let listen name the host's address on that link");
                None
            }
            Some(listen) if listen.is_ipv4() != source.addr().is_ipv4() => {
                reader.error(at, format!("{source} cannot reach {listen}, which is of the other family"));
                None
            }
            _ => Some(Shape::External { source, link: Some(link) }),
        }
    }

    fn namespace(&mut self, reader: &mut Reader<'_>, key: &str, node: &Node) -> Option<AttachTo> {
        let to = if key == "pid" {
            AttachTo::Pid(reader.number(node, "a process id", 1, PID_MAX)? as u32)
        } else {
            let path = reader.path(node)?;
            if !path.is_absolute() {
                reader.error(node, format!("the path {} is not absolute", node.describe()));
                return None;
            }
            AttachTo::Netns(path)
        };
        if let Some(first) = self.namespaces.insert(to.to_string(), node.line) {
            reader.error(node, format!("{to} is the sandbox on line {first} already"));
        }
        Some(to)
    }

    fn link(&mut self, reader: &mut Reader<'_>, node: &Node) -> Option<LinkName> {
        let link: LinkName = match reader.string(node)?.parse() {
            Ok(link) => link,
            Err(error) => {
                reader.error(node, format!("{error}"));
                return None;
            }
        };
        if let Some(first) = self.links.insert(link.clone(), node.line) {
            reader.error(node, format!("{link} is the link of the sandbox on line {first} already"));
        }
        Some(link)
    }
}
