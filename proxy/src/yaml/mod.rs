//! A YAML tree with positions, and typed readers that record every mistake instead of stopping at the first.
//!
//! The life of a file: [`parse`](parse()) turns its text into [`Node`]s (`parse.rs`, over the events of
//! `saphyr-parser`; duplicate keys are errors, which a ready-made map would hide), then a [`Reader`] (`read.rs`) takes
//! the tree apart: mappings with a closed set of keys, ports, addresses, durations. Nothing here knows a schema.
//!
//! Refused on purpose, because a policy must read the same to everyone: anchors and aliases, tags, several documents
//! in one file, keys that are not plain text.

mod parse;
mod read;

pub use parse::{DEPTH_MAX, FILE_OCTETS_MAX, NODES_MAX, parse};
pub use read::{Fields, Given, Reader};

/// A value and where it starts. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Line of its first character.
    pub line: u32,
    /// Column of its first character, in characters.
    pub column: u32,
}

/// The three kinds of YAML node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text; its type is for the reader to decide.
    Scalar {
        /// With escapes and folding undone.
        text: Box<str>,
        /// Neither quoted nor a block: `443` is plain, `"443"` is not.
        plain: bool,
    },
    /// `[a, b]` or `- a`.
    Sequence(Vec<Node>),
    /// In the order of the file; a key appears once, and is a scalar.
    Mapping(Vec<(Node, Node)>),
}

impl Node {
    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether nothing was written (`key:`), or the word for it.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }

    /// For "expected …, found …".
    pub fn describe(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".into(),
            Value::Scalar { text, .. } => format!("\"{}\"", shorten(text)),
            Value::Sequence(_) => "a list".into(),
            Value::Mapping(_) => "a mapping".into(),
        }
    }
}

/// At most 60 characters of a value, for a message; control characters are spelt out.
pub fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let mut short: String = text.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}
