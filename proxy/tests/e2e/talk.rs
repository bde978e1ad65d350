//! Talking to the proxy in octets, from inside a sandbox.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Exec, Outcome, python};

/// A step of a conversation with the proxy.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Sends octets, all at once.
    Send(Vec<u8>),
    /// Reads until this has been heard.
    Until(String),
    /// Says that nothing more will be sent.
    HalfClose,
    /// Reads until the proxy closes.
    ToEnd,
}

/// Sends `octets`.
pub(crate) fn send(octets: impl AsRef<[u8]>) -> Step {
    Step::Send(octets.as_ref().to_vec())
}

/// Reads until `text` has been heard.
pub(crate) fn until(text: &str) -> Step {
    Step::Until(text.into())
}

/// Holds one conversation with the proxy after another, each on a connection of its own, and says what was heard in
/// each. Fails when a conversation does not come to its end.
pub(crate) fn talk(exec: Exec<'_>, conversations: &[Vec<Step>]) -> (Vec<String>, Outcome) {
    const TALK: &str = include_str!("programs/talk.py");
    let script =
        conversations.iter().map(|steps| steps.iter().map(told).collect::<Vec<_>>()).collect::<Vec<_>>();
    let outcome = exec.stdin(json!(script).to_string()).run(&[python(), "-c", TALK]).ended_with(0);
    let heard: Vec<String> = serde_json::from_slice(&outcome.stdout).expect("what was heard");
    (heard.iter().map(|hex| String::from_utf8_lossy(&from_hex(hex)).into_owned()).collect(), outcome)
}

fn told(step: &Step) -> Value {
    match step {
        Step::Send(octets) => json!({"send": to_hex(octets)}),
        Step::Until(text) => json!({"until": to_hex(text.as_bytes())}),
        Step::HalfClose => json!({"half_close": true}),
        Step::ToEnd => json!({"to_end": true}),
    }
}

fn to_hex(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut hex, octet| {
        let _ = write!(hex, "{octet:02x}");
        hex
    })
}

fn from_hex(hex: &str) -> Vec<u8> {
    let octet = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    (0..hex.len()).step_by(2).map(octet).collect()
}
