//! What the policy loader refuses, in which words, and at which place.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

use sluice::diagnostic::{Diagnostics, Severity};
use sluice::policy::model::{Account, Allow, Binaries, LandlockLevel, Netlink, Ports};
use sluice::policy::{Enforcement, PolicyFile, Sni, parse};

fn load(text: &str) -> (Option<PolicyFile>, Diagnostics) {
    let mut out = Diagnostics::default();
    let file = parse(text, &"p.yaml".into(), &mut out);
    (file, out)
}

fn errors(text: &str) -> Vec<String> {
    load(text).1.of(Severity::Error).iter().map(ToString::to_string).collect()
}

fn notes(text: &str) -> Vec<String> {
    load(text).1.of(Severity::Note).iter().map(ToString::to_string).collect()
}

/// A policy of one rule for any program, whose one endpoint has these lines besides a host and a port.
fn endpoint(lines: &str) -> String {
    let mut text = String::from(
        "version: 1\nnetwork_policies:\n  r:\n    binaries: [{path: /bin/x}]\n    endpoints:\n      - host: a.example\n        port: 443\n",
    );
    for line in lines.lines() {
        text.push_str("        ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[test]
fn all_errors_come_at_once_each_at_its_place() {
    let text = "\
version: 2
network_polices: {}
network_policies:
  github:
    endpoints:
      - hots: api.github.com
        port: 443
      - host: api.github.com
        port: 0
        ports: [1]
        enforcement: enforc
    binaries:
      - path: curl
      - pathh: /usr/bin/curl
network_middlewares: {}
";
    assert_eq!(
        errors(text),
        [
            "p.yaml:1:10: error: expected version 1, found \"2\"",
            "p.yaml:2:1: error: unknown key \"network_polices\"; did you mean \"network_policies\"?",
            "p.yaml:6:9: error: unknown key \"hots\"; did you mean \"host\"?",
            "p.yaml:10:16: error: either port or ports, not both",
            "p.yaml:11:22: error: expected enforce or audit, found \"enforc\"; did you mean \"enforce\"?",
            "p.yaml:13:15: error: the path \"curl\" is not absolute",
            "p.yaml:14:9: error: unknown key \"pathh\"; did you mean \"path\"?",
            "p.yaml:15:1: error: key \"network_middlewares\" is not supported yet: Sluice runs no middleware",
        ]
    );
}

#[test]
fn contradictions_in_an_endpoint_are_errors() {
    for (lines, error) in [
        (
            "protocol: http\naccess: full\nrules: [{allow: {method: GET}}]",
            "p.yaml:10:9: error: either access or rules, not both",
        ),
        ("protocol: rest", "p.yaml:8:9: error: what requests are allowed? access or rules is missing"),
        ("protocol: http\ndeny_rules: [{method: GET}]", "p.yaml:9:9: error: what requests are allowed?"),
        ("deny_rules: [{method: GET}]", "p.yaml:8:9: error: deny_rules need a protocol"),
        ("access: full\ndeny_rules: [{method: GET}]", "p.yaml:9:9: error: deny_rules need a protocol"),
        ("protocol: http\nrules: []", "p.yaml:9:16: error: the list is empty; it would allow nothing"),
        ("protocol: http\naccess: full\ndeny_rules: []", "p.yaml:10:21: error: the list is empty"),
        ("path: /x/**", "p.yaml:8:9: error: what requests are allowed?"),
        (
            "protocol: http\naccess: read-only\ntls: skip",
            "p.yaml:10:14: error: with this tls nothing inside could be judged",
        ),
        (
            "protocol: http\naccess: full\ntls: passthrough\ndeny_rules: [{method: PUT}]",
            "p.yaml:10:14: error: with this tls",
        ),
        ("protocol: tcp\naccess: read-only", "p.yaml:9:9: error: access says nothing about a raw tunnel"),
        ("protocol: tcp\npath: /x", "p.yaml:9:9: error: path says nothing about a raw tunnel"),
        (
            "allow_encoded_slash: true",
            "p.yaml:8:9: error: allow_encoded_slash says nothing about a raw tunnel",
        ),
        ("protocol: graphql\naccess: full", "p.yaml:8:19: error: protocol \"graphql\" is not supported yet"),
        (
            "protocol: json-rpc\nrules: [{allow: {method: x}}]",
            "p.yaml:8:19: error: protocol \"json-rpc\" is not supported yet",
        ),
        (
            "protocol: htp\naccess: full",
            "p.yaml:8:19: error: expected http or rest or tcp or websocket, found \"htp\"; did you mean \"http\"?",
        ),
        (
            "protocol: websocket\naccess: read-only",
            "p.yaml:9:17: error: access: read-only on a WebSocket is not supported yet",
        ),
        (
            "protocol: websocket\naccess: full\ndeny_rules: [{method: WEBSOCKET_TEXT}]",
            "p.yaml:10:31: error: rules for WebSocket messages are not supported yet",
        ),
        (
            "credential_signing: sigv4",
            "p.yaml:8:9: error: key \"credential_signing\" is not supported yet: Sluice holds no credentials",
        ),
        ("mcp: {versions: []}", "p.yaml:8:9: error: key \"mcp\" is not supported yet"),
        ("allowed_ips: []", "p.yaml:8:22: error: the list is empty"),
        ("allowed_ips: [127.0.0.0/8]", "p.yaml:8:23: error: 127.0.0.0/8 contains loopback addresses"),
        ("allowed_ips: [0.0.0.0/0]", "p.yaml:8:23: error: 0.0.0.0/0 contains loopback addresses"),
        (
            "allowed_ips: [169.254.169.254]",
            "p.yaml:8:23: error: 169.254.169.254/32 contains link-local addresses",
        ),
        ("allowed_ips: ['::/0']", "p.yaml:8:23: error: ::/0 contains loopback addresses"),
        (
            "allowed_ips: ['::ffff:10.0.0.0/104']",
            "p.yaml:8:23: error: ::ffff:10.0.0.0/104 is an IPv4 block mapped into IPv6",
        ),
        (
            "allowed_ips: [10.0.0.1/8]",
            "p.yaml:8:23: error: 10.0.0.1/8 has bits beyond its prefix; did you mean \"10.0.0.0/8\"?",
        ),
        ("sni: of", "p.yaml:8:14: error: expected verify or ignore, found \"of\""),
        (
            "tls: true",
            "p.yaml:8:14: error: expected auto or skip or terminate or passthrough, found \"true\"",
        ),
    ] {
        let found = errors(&endpoint(lines));
        assert_eq!(found.len(), 1, "{lines}: {found:#?}");
        assert!(found[0].starts_with(error), "{lines}\n  expected {error}\n  found    {}", found[0]);
    }
}

#[test]
fn bad_rules_are_errors() {
    for (rules, error) in [
        ("[{allow: {path: /x}}]", "the key \"method\" is missing"),
        ("[{method: GET}]", "unknown key \"method\""),
        ("[{}]", "the key \"allow\" is missing"),
        ("[{allow: {method: 'G T'}}]", "\"G T\" is not a method"),
        ("[{allow: {method: GET, path: x}}]", "bad path \"x\": it begins with neither"),
        ("[{allow: {method: GET, path: '*'}}]", "bad path \"*\": it begins with neither"),
        ("[{allow: {method: GET, path: /a//b}}]", "bad path \"/a//b\": paths are tidied"),
        ("[{allow: {method: GET, path: /a/../b}}]", "bad path \"/a/../b\": paths are tidied"),
        ("[{allow: {method: GET, path: '/a?b=c'}}]", "bad path \"/a?b=c\": a query does not belong"),
        ("[{allow: {method: GET, path: '/%zz'}}]", "bad path \"/%zz\": \"%\" begins no escape"),
        ("[{allow: {method: GET, path: '/{a,b}'}}]", "bad pattern \"/{a,b}\": braces are not supported"),
        ("[{allow: {method: GET, path: '/[a'}}]", "bad pattern \"/[a\": the character class"),
        ("[{allow: {method: GET, query: {}}}]", "the query names no parameter"),
        ("[{allow: {method: GET, query: {a: {}}}}]", "the key \"any\" is missing"),
        ("[{allow: {method: GET, query: {a: {any: []}}}}]", "the list is empty"),
        ("[{allow: {method: GET, operation_type: query}}]", "key \"operation_type\" is not supported yet"),
        ("[{allow: {method: WEBSOCKET_TEXT}}]", "rules for WebSocket messages are not supported yet"),
    ] {
        let found = errors(&endpoint(&format!("protocol: http\nrules: {rules}")));
        assert!(
            found.iter().any(|found| found.contains(error)),
            "{rules}\n  expected {error}\n  found {found:#?}"
        );
    }
}

#[test]
fn bad_ports_and_hosts_are_errors_with_their_value() {
    let one = |host: &str, port: &str| {
        errors(&format!(
            "version: 1\nnetwork_policies: {{r: {{binaries: [{{path: /x}}], endpoints: [{{host: {host}, {port}}}]}}}}\n"
        ))
    };
    for (host, port, error) in [
        ("a.b", "port: 0", "expected a port from 1 to 65535, found \"0\""),
        ("a.b", "port: 65536", "expected a port from 1 to 65535, found \"65536\""),
        ("a.b", "ports: [443, 70000]", "expected a port from 1 to 65535, found \"70000\""),
        ("a.b", "ports: []", "the list is empty"),
        ("a.b", "tls: auto", "an endpoint needs a port, or ports"),
        ("'*'", "port: 1", "bad host \"*\": the wildcard is too wide"),
        ("'*.com'", "port: 1", "bad host \"*.com\": the wildcard is too wide"),
        ("'{a,b}.example.com'", "port: 1", "braces are not supported"),
        ("'a.b:443'", "port: 1", "the port does not belong into `host`"),
        ("'https://a.b'", "port: 1", "a host is a bare name"),
        ("10.0.0.0/8", "port: 1", "a block of addresses does not belong into `host`"),
        ("127.1", "port: 1", "the host is a number that is not a plain IPv4 address"),
        ("[a.b]", "port: 1", "expected text, found a list"),
        ("''", "port: 1", "expected text"),
    ] {
        let found = one(host, port);
        assert_eq!(found.len(), 1, "{host} {port}: {found:#?}");
        assert!(found[0].contains(error), "{host} {port}: {}", found[0]);
    }
}

#[test]
fn bad_binaries_are_errors() {
    for (binaries, error) in [
        ("[]", "p.yaml:3:17: error: the list is empty; it would match no program; leave the key out"),
        ("[{path: '/usr/../bin/x'}]", "holds a dot segment"),
        ("[{path: '/bin/{a,b}'}]", "braces are not supported"),
        ("[{path: /bin/x, sha256: abc}]", "expected 64 hexadecimal digits, found \"abc\""),
        ("[/bin/x]", "expected a mapping, found \"/bin/x\""),
    ] {
        let text = format!(
            "version: 1\nnetwork_policies: {{r: {{endpoints: [{{host: a.b, port: 1}}],\n      binaries: {binaries}}}}}\n"
        );
        let found = errors(&text);
        assert!(found.iter().any(|found| found.contains(error)), "{binaries}: {found:#?}");
    }
}

#[test]
fn the_parts_that_confine_the_workload() {
    let (file, out) = load(
        "version: 1\nfilesystem_policy:\n  include_workdir: true\n  read_only: [/usr]\n  read_write: [/tmp, /var/x]\n\
         landlock: {compatibility: best_effort}\nprocess: {run_as_user: nobody, run_as_group: \"1500\", netlink: deny}\n",
    );
    assert!(!out.has_errors(), "{out}");
    let confinement = file.unwrap().confinement;
    let filesystem = confinement.filesystem.unwrap();
    assert!(filesystem.include_workdir);
    assert_eq!((filesystem.read_only.len(), filesystem.read_write.len()), (1, 2));
    assert_eq!(confinement.landlock, LandlockLevel::BestEffort);
    assert_eq!(confinement.run_as_user, Some(Account::Name("nobody".into())));
    assert_eq!(confinement.run_as_group, Some(Account::Id(1500)));
    assert_eq!(confinement.netlink, Netlink::Deny);

    let (file, _) = load("version: 1\n");
    let confinement = file.unwrap().confinement;
    assert_eq!((confinement.landlock, confinement.netlink), (LandlockLevel::HardRequirement, Netlink::Route));

    for (text, error) in [
        ("filesystem_policy: {read_write: [/]}", "p.yaml:2:33: error: \"/\" in read_write"),
        ("filesystem_policy: {read_only: [usr]}", "p.yaml:2:33: error: the path \"usr\" is not absolute"),
        (
            "filesystem_policy: {read_only: [/a/../b]}",
            "p.yaml:2:33: error: the path \"/a/../b\" holds \"..\"",
        ),
        ("process: {run_as_user: root}", "p.yaml:2:24: error: the workload must not run as root"),
        ("process: {run_as_user: 0}", "p.yaml:2:24: error: the workload must not run as root"),
        ("process: {run_as_group: 4294967295}", "p.yaml:2:25: error: 4294967295 is not an account number"),
        ("process: {netlink: rout}", "did you mean \"route\"?"),
        (
            "landlock: {compatibility: hard}",
            "p.yaml:2:27: error: expected best_effort or hard_requirement or required",
        ),
    ] {
        let found = errors(&format!("version: 1\n{text}\n"));
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        assert!(found[0].contains(error), "{text}: {}", found[0]);
    }
}

#[test]
fn old_spellings_load_with_a_note() {
    for (lines, note) in [
        (
            "protocol: rest\naccess: full\ntls: passthrough",
            "p.yaml:10:14: note: \"passthrough\" is an old spelling of \"skip\"",
        ),
        (
            "protocol: rest\naccess: read-write\ntls: terminate",
            "p.yaml:10:14: note: \"terminate\" is an old spelling of \"auto\"",
        ),
        ("tls: terminate", "p.yaml:8:14: note: \"terminate\" is an old spelling of \"auto\""),
        ("tls: passthrough", "p.yaml:8:14: note: \"passthrough\" is an old spelling of \"skip\""),
        (
            "protocol: tcp\naccess: full",
            "p.yaml:8:19: note: programs that ignore the proxy are not captured yet",
        ),
        ("access: read-only", "p.yaml:8:9: note: requests are judged here as with \"protocol: http\""),
        (
            "protocol: websocket\nrules: [{allow: {method: GET}}, {allow: {method: WEBSOCKET_TEXT}}]",
            "messages after the upgrade are not judged",
        ),
    ] {
        let text = endpoint(lines);
        assert_eq!(errors(&text), [""; 0], "{lines}");
        let found = notes(&text);
        assert!(found.iter().any(|found| found.contains(note)), "{lines}: {found:#?}");
    }
    assert_eq!(
        notes("version: 1\nnetwork_policies:\n  r:\n    endpoints: [{host: 127.0.0.1, port: 1}]\n"),
        [
            "p.yaml:3:3: note: rule \"r\" names no binaries: any program may use it",
            "p.yaml:4:24: note: 127.0.0.1 is loopback: refused all the same unless the operator permits it",
        ]
    );
}

#[test]
fn a_full_endpoint_is_read_as_written() {
    let (file, out) = load(
        "version: 1\nnetwork_policies:\n  gh:\n    name: github api\n    endpoints:\n      - host: API.GitHub.com.\n        \
         ports: [8443, 443, 443]\n        protocol: rest\n        enforcement: audit\n        sni: ignore\n        \
         path: /repos/**\n        allow_encoded_slash: true\n        rules:\n          - allow: {method: get, path: /repos/*/%7Ex}\n        \
         deny_rules:\n          - {method: '*', path: /repos/secret/**, query: {force: {any: ['true', '1']}}}\n    \
         binaries:\n      - {path: /usr/bin/curl, sha256: 00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF}\n",
    );
    assert_eq!(out.to_string(), "");
    let file = file.unwrap();
    let [rule] = &*file.rules else { panic!() };
    let [endpoint] = &*rule.endpoints else { panic!() };
    assert_eq!((&*rule.head.name, rule.head.place.line), ("github api", 3));
    assert_eq!(endpoint.host.to_string(), "api.github.com");
    assert_eq!(endpoint.ports, Ports::Listed([443, 8443].into()));
    assert_eq!((endpoint.enforcement, endpoint.sni), (Enforcement::Audit, Sni::Ignore));
    assert_eq!((endpoint.place.line, endpoint.place.column), (6, 9));
    let requests = endpoint.requests.as_ref().unwrap();
    let Allow::Rules(rules) = &requests.allow else { panic!() };
    assert_eq!(rules[0].method.to_string(), "GET");
    assert_eq!(rules[0].path.as_ref().unwrap().text(), "/repos/*/~x");
    assert_eq!((rules[0].place.line, requests.deny[0].place.line), (14, 16));
    assert_eq!(requests.deny[0].query.parameters[0].1.len(), 2);
    assert!(requests.allow_encoded_slash && !requests.websocket);
    let Binaries::Listed(binaries) = &rule.head.binaries else { panic!() };
    assert_eq!(binaries[0].sha256.unwrap()[..3], [0x00, 0x11, 0x22]);
}

/// The shapes of the format's published examples, written afresh.
#[test]
fn published_shapes_load() {
    for text in [
        // A raw tunnel for several programs, with a full file-system part.
        "version: 1\nfilesystem_policy:\n  include_workdir: true\n  read_only: [/usr, /lib, /proc, /dev/urandom, /app, /etc, /var/log]\n  \
         read_write: [/sandbox, /tmp, /dev/null]\nlandlock:\n  compatibility: best_effort\nprocess:\n  run_as_user: sandbox\n  \
         run_as_group: sandbox\nnetwork_policies:\n  code:\n    name: code\n    endpoints:\n      - { host: api.example.com, port: 443, \
         protocol: rest, enforcement: enforce, access: full, tls: terminate }\n      - { host: stats.example.com, port: 443 }\n    \
         binaries:\n      - { path: /usr/local/bin/tool }\n      - { path: /usr/bin/node }\n",
        // Rules with globs and deny rules.
        "version: 1\nnetwork_policies:\n  git:\n    endpoints:\n      - host: github.com\n        port: 443\n        protocol: rest\n        \
         enforcement: enforce\n        rules:\n          - allow:\n              method: GET\n              path: /**/info/refs*\n          - allow:\n              \
         method: POST\n              path: /**/git-upload-pack\n        deny_rules:\n          - method: POST\n            path: /**/git-receive-pack\n    \
         binaries:\n      - path: /usr/bin/git\n",
        // A private service by block, with and without a name.
        "version: 1\nnetwork_policies:\n  inside:\n    endpoints:\n      - host: db.example.com\n        port: 5432\n        allowed_ips: [10.0.5.0/24]\n      \
         - port: 8080\n        allowed_ips:\n          - 10.0.6.0/24\n          - 192.168.1.7\n    binaries: [{path: /**}]\n",
        // Native TCP, old and new.
        "version: 1\nnetwork_policies:\n  ssh:\n    endpoints: [{host: git.example.com, port: 22, protocol: tcp}]\n    binaries: [{path: /usr/bin/ssh}]\n",
        "version: 1\nnetwork_policies:\n  ssh:\n    endpoints: [{host: git.example.com, port: 22, protocol: tcp, access: full}]\n    binaries: [{path: /usr/bin/ssh}]\n",
    ] {
        assert_eq!(errors(text), [""; 0], "{text}");
    }
}
