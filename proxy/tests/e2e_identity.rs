//! Identity through `sluice exec`: the witness misses nobody, and `explain` says how programs are sought.

mod e2e;

use std::collections::HashSet;

use e2e::*;

/// A client that is gone by the time anybody could look at it: connect, send, exit.
#[test]
fn a_thousand_clients_that_connect_send_and_exit_at_once_are_all_named() {
    const CLIENTS: usize = 1_000;
    let script = format!(
        "import os, socket
for _ in range({CLIENTS}):
    child = os.fork()
    if child == 0:
        client = socket.create_connection(('10.200.0.1', 3128))
        client.send(b'GET http://denied.test/ HTTP/1.1\\r\\nHost: denied.test\\r\\n\\r\\n')
        os._exit(0)
    os.waitpid(child, 0)
"
    );
    let scene = Scene::new();
    let policy = format!(
        "version: 1\nnetwork_policies:\n  one:\n    endpoints:\n      - {{ host: one.test, port: 80 }}\n    \
         binaries:\n      - {{ path: {} }}\n",
        python()
    );
    let outcome = scene.exec().policy(&policy).run(&[python(), "-c", &script]).ended_with(0);
    let denied = outcome.events_of("request.denied");
    assert_eq!(denied.len(), CLIENTS);
    for event in &denied {
        assert_eq!(event["identity"], "witness", "{event}");
        assert_eq!(event["reason"], "host_not_allowed", "known, and so not identity_unknown: {event}");
        assert!(event["process"]["exe"].as_str().is_some_and(|exe| exe.contains("python")), "{event}");
        let trail = event["identity_trail"].as_str().unwrap_or_default();
        assert!(trail.starts_with("witness: found; "), "every denial says how it knows: {event}");
    }
    let pids: HashSet<_> = denied.iter().map(|event| event["process"]["pid"].to_string()).collect();
    assert_eq!(pids.len(), CLIENTS, "each is named by itself");
}

#[test]
fn explain_says_how_the_program_would_be_sought() {
    let scene = Scene::new();
    let policy = scene.file(
        "p.yaml",
        "version: 1\nnetwork_policies:\n  one:\n    endpoints:\n      - { host: one.test, port: 80 }\n    \
         binaries:\n      - { path: /usr/bin/curl }\n",
    );
    let explain = |policy: &str| {
        let output = std::process::Command::new(sluice())
            .args(["explain", "--policy", policy, "CONNECT", "one.test:80"])
            .output()
            .expect("run sluice explain");
        String::from_utf8(output.stdout).expect("text")
    };
    let text = explain(&policy.display().to_string());
    assert!(text.starts_with("denied (identity_unknown)\n"), "{text}");
    assert!(text.contains("sought by witness, trace, diag, pid-table, global-table"), "{text}");
    assert!(text.contains("a program that is not proven is denied"), "{text}");
    assert!(explain("open").contains("for events only"));
}
