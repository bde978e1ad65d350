//! Wildcard hosts as a trie over labels, and the endpoints that a host leads to.

use std::collections::HashMap;

use super::compile::EndpointId;
use super::glob::Glob;
use super::host::{FirstLabel, Label, Wildcard};

/// Endpoints by port.
#[derive(Debug, Default)]
pub(super) struct Slots(Vec<(u16, EndpointId)>);

impl Slots {
    pub(super) fn add(&mut self, ports: &[u16], id: EndpointId) {
        self.0.extend(ports.iter().map(|&port| (port, id)));
    }

    pub(super) fn all(&self) -> &[(u16, EndpointId)] {
        &self.0
    }

    /// To be called once, after the last [`add`](Self::add).
    pub(super) fn sort(&mut self) {
        self.0.sort_unstable();
        self.0.shrink_to_fit();
    }

    pub(super) fn at(&self, port: u16) -> &[(u16, EndpointId)] {
        let start = self.0.partition_point(|&(p, _)| p < port);
        let from = self.0.get(start..).unwrap_or_default();
        from.get(..from.partition_point(|&(p, _)| p == port)).unwrap_or_default()
    }
}

/// Wildcards by their labels from the right. Node 0 is the root.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    literal: HashMap<Box<str>, u32>,
    any: Option<u32>,
    /// `*-api`: this many labels, the last of this shape.
    shaped: Vec<(Glob, Slots)>,
    /// The pattern ends here, at exactly this many labels.
    here: Slots,
    /// `**`: at least one more label.
    deeper: Slots,
}

impl Default for Trie {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl Node {
    fn sort(&mut self) {
        self.here.sort();
        self.deeper.sort();
        self.shaped.iter_mut().for_each(|(_, slots)| slots.sort());
    }
}

impl Trie {
    pub(super) fn sort(&mut self) {
        self.nodes.iter_mut().for_each(Node::sort);
    }

    /// The slots of a pattern, with the nodes on the way made.
    pub(super) fn slots(&mut self, wildcard: &Wildcard) -> &mut Slots {
        let mut at = 0;
        for label in wildcard.rest.iter().rev() {
            at = match label {
                Label::Literal(label) => self.literal(at, label),
                Label::Any => self.any(at),
            };
        }
        match &wildcard.first {
            FirstLabel::Literal(label) => at = self.literal(at, label),
            FirstLabel::Any => at = self.any(at),
            FirstLabel::Deep => return &mut self.nodes[at].deeper,
            FirstLabel::Shaped(glob) => {
                let shaped = &mut self.nodes[at].shaped;
                let index = shaped.iter().position(|(known, _)| known == glob).unwrap_or_else(|| {
                    shaped.push((glob.clone(), Slots::default()));
                    shaped.len() - 1
                });
                return &mut shaped[index].1;
            }
        }
        &mut self.nodes[at].here
    }

    fn literal(&mut self, at: usize, label: &str) -> usize {
        let new = self.nodes.len() as u32;
        let child = *self.nodes[at].literal.entry(label.into()).or_insert(new);
        if child == new {
            self.nodes.push(Node::default());
        }
        child as usize
    }

    fn any(&mut self, at: usize) -> usize {
        let new = self.nodes.len() as u32;
        let child = *self.nodes[at].any.get_or_insert(new);
        if child == new {
            self.nodes.push(Node::default());
        }
        child as usize
    }

    /// Visits what matches a name. Each node is entered at most once, and no deeper than the name has labels.
    pub(super) fn walk<'t>(&'t self, name: &str, visit: &mut impl FnMut(&'t Slots)) {
        if let [root] = &*self.nodes
            && root.literal.is_empty()
        {
            return;
        }
        self.enter(0, name.rsplit('.'), visit);
    }

    fn enter<'t>(
        &'t self,
        at: usize,
        mut labels: std::str::RSplit<'_, char>,
        visit: &mut impl FnMut(&'t Slots),
    ) {
        let Some(node) = self.nodes.get(at) else { return };
        let Some(label) = labels.next() else { return visit(&node.here) };
        if !node.deeper.0.is_empty() {
            visit(&node.deeper);
        }
        if !node.shaped.is_empty() && labels.clone().next().is_none() {
            let shaped = node.shaped.iter().filter(|(glob, _)| glob.matches(label.as_bytes()));
            shaped.for_each(|(_, slots)| visit(slots));
        }
        if let Some(&child) = node.literal.get(label) {
            self.enter(child as usize, labels.clone(), visit);
        }
        if let Some(child) = node.any {
            self.enter(child as usize, labels, visit);
        }
    }
}
