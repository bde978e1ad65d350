//! From text to tree.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::{Node, Value, shorten};
use crate::diagnostic::{Diagnostics, Place};

/// Largest file read, in octets. A policy of 10,000 endpoints has about 2 MiB.
pub const FILE_OCTETS_MAX: usize = 8 << 20;
/// Deepest nesting; the schemas need eight levels. Bounds the recursion of everything that walks a tree.
pub const DEPTH_MAX: usize = 32;
/// Most nodes of a file. With the size of a node (about 56 octets) this bounds the tree to about 60 MiB.
pub const NODES_MAX: usize = 1_000_000;

/// Parses one document. `None` means there is no tree to go on with; duplicate keys are recorded and dropped, and the
/// tree is returned all the same, so that its other mistakes are found too.
pub fn parse(text: &str, file: &Arc<str>, out: &mut Diagnostics) -> Option<Node> {
    if text.len() > FILE_OCTETS_MAX {
        let message = format!("the file has {} octets, more than the {FILE_OCTETS_MAX} allowed", text.len());
        out.error(Place::whole(file), message);
        return None;
    }
    // A byte order mark is not content; editors on Windows write it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder { file, out, open: Vec::new(), root: None, nodes: 0, documents: 0 };
    let mut parser = Parser::new_from_str(text).keep_tags(true);
    while let Some(event) = parser.next_event() {
        match event {
            Ok((event, span)) => builder.event(event, span)?,
            Err(error) => {
                let mark = error.marker();
                let place = builder.place(mark.line() as u32, mark.col() as u32 + 1);
                builder.out.error(place, format!("not valid YAML: {}", error.info()));
                return None;
            }
        }
    }
    if builder.root.is_none() {
        builder.out.error(Place::whole(file), "the file is empty");
    }
    builder.root
}

/// A collection that is not closed yet.
enum Open {
    Sequence { items: Vec<Node>, at: (u32, u32) },
    Mapping { entries: Vec<(Node, Node)>, key: Option<Node>, seen: Seen, at: (u32, u32) },
}

/// The lines of a mapping's keys, once there are many; few are found quicker in the entries themselves.
type Seen = HashMap<Box<str>, u32>;

/// Keys of a mapping that are searched one by one.
const KEYS_FEW: usize = 16;

/// The line on which a key came before.
fn first_line(entries: &[(Node, Node)], seen: &mut Seen, key: &str) -> Option<u32> {
    if entries.len() < KEYS_FEW {
        return entries.iter().find(|(first, _)| first.text() == Some(key)).map(|(first, _)| first.line);
    }
    // A mapping grows by one key at a time, so what is missing here is everything once, then the last.
    let missing = entries.get(seen.len()..).unwrap_or_default();
    seen.extend(missing.iter().filter_map(|(key, _)| Some((key.text()?.into(), key.line))));
    seen.get(key).copied()
}

struct Builder<'a> {
    file: &'a Arc<str>,
    out: &'a mut Diagnostics,
    open: Vec<Open>,
    root: Option<Node>,
    nodes: usize,
    documents: usize,
}

impl Builder<'_> {
    fn place(&self, line: u32, column: u32) -> Place {
        Place { file: Arc::clone(self.file), line, column }
    }

    /// Takes one event; `None` stops the parse, with the reason recorded.
    fn event(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let at = (span.start.line() as u32, span.start.col() as u32 + 1);
        self.refuse(&event, at)?;
        match event {
            Event::Scalar(text, style, ..) => {
                let value = Value::Scalar { text: text.into(), plain: style == ScalarStyle::Plain };
                self.close(Node { value, line: at.0, column: at.1 });
            }
            Event::SequenceStart(..) => self.open.push(Open::Sequence { items: Vec::new(), at }),
            Event::MappingStart(..) => {
                let seen = HashMap::new();
                self.open.push(Open::Mapping { entries: Vec::new(), key: None, seen, at });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (value, at) = match self.open.pop()? {
                    Open::Sequence { items, at } => (Value::Sequence(items), at),
                    Open::Mapping { entries, at, .. } => (Value::Mapping(entries), at),
                };
                self.close(Node { value, line: at.0, column: at.1 });
            }
            _ => {}
        }
        Some(())
    }

    /// What is not read at all, and the bounds.
    fn refuse(&mut self, event: &Event<'_>, at: (u32, u32)) -> Option<()> {
        let (anchor, tag, opens) = match event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag.is_some(), false),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => {
                (*anchor, tag.is_some(), true)
            }
            Event::Alias(id) => (*id, false, false),
            Event::DocumentStart(_) => {
                self.documents += 1;
                return match self.documents {
                    1 => Some(()),
                    _ => self.stop(at, "a second document begins here; one file holds one document"),
                };
            }
            _ => return Some(()),
        };
        self.nodes += 1;
        if anchor != 0 {
            return self
                .stop(at, "anchors and aliases (\"&name\", \"*name\") are not supported; write it out");
        }
        if tag {
            return self.stop(at, "tags (\"!name\") are not supported");
        }
        if opens && self.open.len() >= DEPTH_MAX {
            return self.stop(at, &format!("nested deeper than {DEPTH_MAX} levels"));
        }
        if self.nodes > NODES_MAX {
            return self.stop(at, &format!("more than {NODES_MAX} values in one file"));
        }
        Some(())
    }

    fn stop(&mut self, at: (u32, u32), message: &str) -> Option<()> {
        let place = self.place(at.0, at.1);
        self.out.error(place, message);
        None
    }

    /// A finished node goes into the collection around it.
    fn close(&mut self, node: Node) {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { entries, key, seen, .. }) => match mem::take(key) {
                None => *key = Some(node),
                Some(key) => {
                    let place =
                        |n: &Node| Place { file: Arc::clone(self.file), line: n.line, column: n.column };
                    let Some(text) = key.text() else {
                        let message = format!("a key must be text, found {}", key.describe());
                        return self.out.error(place(&key), message);
                    };
                    if let Some(first) = first_line(entries, seen, text) {
                        let message = format!("duplicate key \"{}\", first on line {first}", shorten(text));
                        return self.out.error(place(&key), message);
                    }
                    entries.push((key, node));
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> (Option<Node>, String) {
        let mut out = Diagnostics::default();
        let node = parse(text, &"t.yaml".into(), &mut out);
        (node, out.to_string())
    }

    #[test]
    fn positions_are_those_of_the_text() {
        let (node, errors) = tree("a: 1\nb:\n  - {c: \"x y\"}\n  - |\n    block\n");
        assert_eq!(errors, "");
        let Some(Node { value: Value::Mapping(entries), line: 1, column: 1 }) = node else { panic!() };
        let (b, list) = &entries[1];
        assert_eq!((b.line, b.column), (2, 1));
        let Value::Sequence(items) = &list.value else { panic!() };
        assert_eq!((items[0].line, items[0].column), (3, 5));
        let Value::Mapping(inner) = &items[0].value else { panic!() };
        assert_eq!((inner[0].1.line, inner[0].1.column, inner[0].1.text()), (3, 9, Some("x y")));
        assert_eq!(items[1].text(), Some("block\n"));
    }

    #[test]
    fn duplicate_keys_are_errors_and_the_rest_is_still_read() {
        let (node, errors) = tree("a: 1\nb: 2\na: 3\n");
        assert_eq!(errors, "t.yaml:3:1: error: duplicate key \"a\", first on line 1\n");
        let Some(Node { value: Value::Mapping(entries), .. }) = node else { panic!() };
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].1.text(), Some("1"));
    }

    #[test]
    fn the_thousandth_key_is_compared_with_the_first() {
        let lines: Vec<_> = (0..1_000).map(|n| format!("k{n}: 1\n")).collect();
        let mut text = lines.concat();
        assert_eq!(tree(&text).1, "");
        text.push_str("k0: 2\nk999: 2\nk15: 1\nk16: 1\n");
        let errors = tree(&text).1;
        let lines: Vec<_> = errors.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(lines, ["1", "1000", "16", "17"]);
    }

    #[test]
    fn what_reads_differently_to_different_people_is_refused() {
        for (text, error) in [
            ("a: &x 1\nb: *x\n", "t.yaml:1:4: error: anchors and aliases"),
            ("a: !!str 1\n", "t.yaml:1:4: error: tags"),
            ("a: 1\n---\nb: 1\n", "t.yaml:2:1: error: a second document"),
            ("? [a]\n: 1\n", "t.yaml:1:3: error: a key must be text, found a list"),
            ("", "t.yaml: error: the file is empty"),
            ("# only a comment\n", "t.yaml: error: the file is empty"),
            ("a: [1, 2\n", "t.yaml:2:1: error: not valid YAML"),
            ("a:\n\tb: 1\n", "t.yaml:2:"),
        ] {
            let (_, errors) = tree(text);
            assert!(errors.starts_with(error), "{text:?}: {errors}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let (node, errors) = tree(&"[".repeat(DEPTH_MAX + 1));
        assert!(node.is_none());
        assert!(errors.contains("nested deeper than 32"), "{errors}");
    }
}
