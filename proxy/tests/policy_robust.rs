//! No bytes make the loaders or a decision panic.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

use std::io;

use proptest::prelude::*;
use sluice::destination::{Destination, Host};
use sluice::diagnostic::Diagnostics;
use sluice::policy::glob::{Glob, Separator};
use sluice::policy::path::canonical;
use sluice::policy::{Ask, Asker, Kind, Policy, Request, decide, hint, parse};
use sluice::{config, yaml};

/// Pieces of the two languages, and what does not belong into them.
fn soup() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(
        &[
            "version",
            ": ",
            "1",
            "\n",
            "\n  ",
            "\n    ",
            "- ",
            "network_policies",
            "endpoints",
            "host",
            "port",
            "ports",
            "binaries",
            "path",
            "rules",
            "deny_rules",
            "allow",
            "method",
            "query",
            "access",
            "full",
            "protocol",
            "http",
            "sandboxes",
            "source",
            "policy",
            "open",
            "{",
            "}",
            "[",
            "]",
            ",",
            "'",
            "\"",
            "*",
            "**",
            "&a",
            "*a",
            "!!x",
            "|",
            ">",
            "#",
            "%",
            "\t",
            "---",
            "...",
            "?",
            "é",
            "\u{0}",
            "\u{85}",
            "443",
            "10.0.0.0/8",
            "*.example.com",
            "timeouts",
            "dial",
            "5s",
            "limits",
            "\\",
            "\r\n",
            "\u{feff}",
            "~",
            "<<",
        ][..],
    );
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

fn try_all(text: &str) {
    let mut out = Diagnostics::default();
    let file = "f.yaml".into();
    if let Some(file) = parse(text, &file, &mut out) {
        let policy = Policy::compile(&file);
        let destination = Destination { host: Host::Name("a.example.com".into()), port: 443 };
        let request = Request { method: b"GET", path: text.as_bytes(), query: Some(text.as_bytes()) };
        for kind in [Kind::Connect, Kind::Request(request)] {
            let ask = Ask { destination: &destination, asker: Asker::Unknown, kind };
            if let Err(deny) = decide(&policy, &ask) {
                assert!(!hint(&deny, None).is_empty() && !deny.to_string().is_empty());
            }
        }
    }
    let none = |_: &std::path::Path| Err(io::Error::from(io::ErrorKind::NotFound));
    config::parse(text, &file, &none, &mut out);
    // Findings can always be shown, and a file without a tree always has one.
    let shown = out.with_source().to_string();
    let mut tree = Diagnostics::default();
    assert!(yaml::parse(text, &file, &mut tree).is_some() || tree.has_errors(), "{text:?}");
    assert!(!tree.has_errors() || !shown.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn loaders_take_any_text(text in any::<String>()) {
        try_all(&text);
    }

    #[test]
    fn loaders_take_any_soup_of_their_own_words(text in soup()) {
        try_all(&text);
    }

    #[test]
    fn paths_have_one_spelling_whatever_the_octets(path in prop::collection::vec(
        prop::sample::select(&b"/.%2eEfF5cC;a~\\ ?\xff"[..]), 0..24,
    )) {
        if let Ok(found) = canonical(&path) {
            let again = canonical(&found.sent).unwrap();
            prop_assert_eq!(&again.sent, &found.sent);
            prop_assert_eq!(&again.judged, &found.judged);
            let dots = found.judged.split(|&b| b == b'/').any(|segment| matches!(segment, b"." | b".."));
            prop_assert!(!dots, "{:?}", found);
            prop_assert!(!found.judged.windows(2).any(|pair| pair == b"//"), "{:?}", found);
        }
    }

    #[test]
    fn globs_agree_with_trying_everything(
        pattern in "[ab/*]{0,8}",
        text in "[ab/]{0,10}",
    ) {
        let glob = Glob::new(&pattern, Separator::Slash).unwrap();
        prop_assert_eq!(glob.matches(text.as_bytes()), fits(pattern.as_bytes(), text.as_bytes()));
    }
}

fn fits(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|n| fits(rest, &text[n..])),
        [b'*', rest @ ..] => {
            let most = text.iter().position(|&b| b == b'/').unwrap_or(text.len());
            (0..=most).any(|n| fits(rest, &text[n..]))
        }
        [octet, rest @ ..] => text.first() == Some(octet) && fits(rest, &text[1..]),
    }
}
