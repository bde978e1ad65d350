//! What the policy and the address guard refuse, and how a refused client learns of it.

mod e2e;

use e2e::*;
use serde_json::Value;

/// A policy with one rule.
fn allowing(endpoint: &str, binaries: &[&str]) -> String {
    let mut text =
        format!("version: 1\nnetwork_policies:\n  only_this:\n    endpoints:\n      - {endpoint}\n");
    if !binaries.is_empty() {
        text.push_str("    binaries:\n");
    }
    text.extend(binaries.iter().flat_map(|path| ["      - path: ", path, "\n"]));
    text
}

/// Status line, fields and body of an answer.
fn parts(answer: &str) -> (&str, &str, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let (status, fields) = head.split_once("\r\n").expect("fields");
    (status, fields, serde_json::from_str(body).expect("a JSON body"))
}

fn get(url: &str) -> Step {
    let host = url.split('/').nth(2).expect("a host");
    send(format!("GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
}

fn connect(destination: &str) -> Step {
    send(format!("CONNECT {destination} HTTP/1.1\r\nHost: {destination}\r\n\r\n"))
}

#[test]
fn a_refused_request_says_why_in_status_field_and_body() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let policy = allowing(&format!("{{ host: origin.test, port: {} }}", origin.port()), &[]);
    let url = origin.url("other.test", "/x?token=1");
    let conversation = vec![get(&url), until("}\n")];
    let (heard, outcome) = talk(scene.exec().policy(&policy).permit_loopback(), &[conversation]);
    let (status, fields, body) = parts(&heard[0]);
    assert_eq!(status, "HTTP/1.1 403 Denied by policy: host not allowed");
    assert!(fields.contains("\r\nProxy-Status: sluice; error=http_request_denied; details="), "{fields}");
    assert!(fields.contains("\r\nContent-Length: "), "{fields}");
    assert_eq!(body["error"], "policy_denied");
    assert_eq!(body["reason"], "host_not_allowed");
    assert_eq!(body["sandbox"], scene.name());
    assert_eq!(body["binary"], python());
    assert_eq!(body["destination"], origin.at("other.test"));
    assert!(body["hint"].as_str().is_some_and(|hint| hint.contains("ask the operator to allow")), "{body}");

    let event = outcome.the("request.denied");
    assert_eq!((&event["reason"], &event["status"]), (&body["reason"], &403.into()));
    assert_eq!(event["path"], "/x");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_refused_connect_closes_and_nothing_behind_it_is_served() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let policy = allowing(&format!("{{ host: origin.test, port: {} }}", origin.port()), &[]);
    // RFC 9931: what follows a CONNECT was meant for the tunnel.
    let conversation =
        vec![connect("other.test:443"), get(&origin.url("origin.test", "/smuggled")), Step::ToEnd];
    let (heard, outcome) = talk(scene.exec().policy(&policy).permit_loopback(), &[conversation]);
    let (status, fields, body) = parts(&heard[0]);
    assert_eq!(status, "HTTP/1.1 403 Denied by policy: host not allowed");
    assert!(fields.contains("\r\nConnection: close\r\n"), "{fields}");
    assert_eq!(body["destination"], "other.test:443");
    assert_eq!(outcome.the("connect.denied")["dst_host"], "other.test");
    assert!(outcome.events_of("request.allowed").is_empty(), "{outcome}");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn after_a_refused_get_the_connection_serves_the_next_request() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let policy = allowing(&format!("{{ host: origin.test, port: {} }}", origin.port()), &[]);
    let conversation = vec![
        get(&origin.url("other.test", "/")),
        until("}\n"),
        get(&origin.url("origin.test", "/")),
        until(BODY),
    ];
    let (heard, outcome) = talk(scene.exec().policy(&policy).permit_loopback(), &[conversation]);
    assert!(heard[0].starts_with("HTTP/1.1 403 ") && heard[0].contains("HTTP/1.1 200 "), "{heard:?}");
    assert!(outcome.stderr.contains("1 allowed, 1 denied, 0 bypass attempts"), "{outcome}");
}

#[test]
fn curl_shows_the_reason_of_a_refused_connect() {
    let scene = Scene::new();
    let outcome = scene.exec().run(&["curl", "-sSv", "https://other.test/"]).ended_with(56);
    assert!(outcome.stderr.contains("HTTP/1.1 403 Denied by policy: host not allowed"), "{outcome}");
    assert!(outcome.stderr.contains("denied via proxy CONNECT other.test:443 "), "{outcome}");
}

#[test]
fn an_allowed_host_on_another_port_is_refused_as_such() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let policy = allowing("{ host: origin.test, port: 443 }", &[]);
    let url = origin.url("origin.test", "/");
    let outcome = scene.exec().policy(&policy).permit_loopback().run(&["curl", "-s", &url]).ended_with(0);
    let body: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    assert_eq!(body["reason"], "port_not_allowed");
    let event = outcome.the("request.denied");
    assert_eq!(event["rule"], "only_this", "the rule that came nearest");
    assert!(event["detail"].as_str().is_some_and(|text| text.contains("(443)")), "{event}");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_denied_name_is_never_resolved() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let here = std::net::Ipv4Addr::LOCALHOST;
    let dns = Dns::start(&[("allowed.example", here), ("denied.example", here)]);
    scene.name_server(&dns.address());
    let policy = allowing(&format!("{{ host: allowed.example, port: {} }}", origin.port()), &[]);
    let script = format!(
        "curl -s {}; curl -s {}; curl -sp {}; true",
        origin.url("denied.example", "/"),
        origin.url("allowed.example", "/"),
        origin.url("denied.example", "/")
    );
    let outcome = scene.exec().policy(&policy).permit_loopback().run(&["sh", "-c", &script]).ended_with(0);
    assert!(outcome.text().contains(BODY), "the name server answers: {outcome}");
    let asked = dns.asked();
    assert!(asked.iter().any(|name| name == "allowed.example"), "{asked:?}");
    assert!(asked.iter().all(|name| !name.contains("denied")), "{asked:?}");
    assert!(
        outcome.events.iter().all(|event| event["dst_host"] != "denied.example" || event["dst_ip"].is_null())
    );
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_program_that_the_rule_does_not_name_is_refused_where_another_is_served() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let endpoint = format!("{{ host: origin.test, port: {} }}", origin.port());
    let policy = allowing(&endpoint, &[&program("curl")]);
    let url = origin.url("origin.test", "/");
    let code = "import sys, urllib.request, urllib.error\n\
        try: urllib.request.urlopen(sys.argv[1])\n\
        except urllib.error.HTTPError as error: print(error.code, error.reason)";
    let script = r#"curl -s "$0"; echo; "$1" -c "$2" "$0""#;
    let outcome =
        scene.exec().policy(&policy).permit_loopback().run(&["sh", "-c", script, &url, python(), code]);
    let outcome = outcome.ended_with(0);
    assert_eq!(outcome.text(), format!("{BODY}\n403 Denied by policy: program not allowed\n"));
    let denied = outcome.the("request.denied");
    assert_eq!(denied["reason"], "binary_not_allowed");
    assert_eq!(denied["process"]["exe"], python());
    assert!(
        denied["hint"].as_str().is_some_and(|hint| hint.ends_with(&format!("for {}", python()))),
        "{denied}"
    );
    assert_eq!(outcome.the("request.allowed")["rule"], "only_this");
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_child_of_an_allowed_program_is_served() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let endpoint = format!("{{ host: origin.test, port: {} }}", origin.port());
    let policy = allowing(&endpoint, &[python()]);
    let code = "import subprocess, sys; subprocess.run(['curl', '-s', sys.argv[1]])";
    let exec = scene.exec().policy(&policy).permit_loopback();
    let outcome = exec.run(&[python(), "-c", code, &origin.url("origin.test", "/")]).ended_with(0);
    assert_eq!(outcome.text(), BODY);
    let process = &outcome.the("request.allowed")["process"];
    assert_eq!(process["exe"], program("curl"));
    assert!(process["ancestors"].as_array().is_some_and(|all| all.contains(&python().into())), "{process}");
}

#[test]
fn a_copy_of_an_allowed_program_is_another_program() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let endpoint = format!("{{ host: origin.test, port: {} }}", origin.port());
    let policy = allowing(&endpoint, &[&program("curl")]);
    let script = r#"cp "$1" ./curl && ./curl -s -o /dev/null -w '%{http_code}' "$0""#;
    let exec = scene.exec().policy(&policy).permit_loopback();
    let outcome = exec.run(&["sh", "-c", script, &origin.url("origin.test", "/"), &program("curl")]);
    assert_eq!(outcome.ended_with(0).text(), "403");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn requests_are_judged_by_method_and_path_where_the_endpoint_asks_for_it() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let endpoint =
        format!("{{ host: origin.test, port: {}, protocol: http, access: read-only }}", origin.port());
    let url = origin.url("origin.test", "/thing");
    // Both as forward requests and inside a tunnel.
    let script = r#"for how in "" -p; do for method in GET DELETE; do
        curl -s $how -X $method -o /dev/null -w "$method %{http_code}\n" "$0"; done; done"#;
    let exec = scene.exec().policy(&allowing(&endpoint, &[])).permit_loopback();
    let outcome = exec.run(&["sh", "-c", script, &url]).ended_with(0);
    assert_eq!(outcome.text(), "GET 200\nDELETE 403\nGET 200\nDELETE 403\n", "{outcome}");
    assert!(outcome.events_of("request.denied").iter().all(|event| event["reason"] == "method_not_allowed"));
    assert!(!origin.received().contains("DELETE"));
}

#[test]
fn the_address_guard_refuses_special_addresses_even_under_an_open_policy() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    scene.host("169.254.169.254", "innocent.test");
    let port = origin.port();
    let own = own_addresses();
    let mut rows = vec![
        (format!("127.0.0.1:{port}"), "address_loopback"),
        (format!("127.1.2.3:{port}"), "address_loopback"),
        (format!("origin.test:{port}"), "address_loopback"),
        (format!("[::1]:{port}"), "address_loopback"),
        (format!("[::ffff:127.0.0.1]:{port}"), "address_loopback"),
        ("169.254.169.254:80".into(), "address_metadata"),
        ("innocent.test:80".into(), "address_metadata"),
        ("[fd00:ec2::254]:80".into(), "address_metadata"),
        (format!("0.0.0.0:{port}"), "address_unspecified"),
        ("224.0.0.1:80".into(), "address_multicast"),
    ];
    rows.extend(own.iter().map(|ip| (format!("{ip}:{port}"), "address_own")));
    let conversations: Vec<_> = rows.iter().map(|(to, _)| vec![connect(to), Step::ToEnd]).collect();
    let (heard, outcome) = talk(scene.exec().policy("open"), &conversations);
    for ((to, reason), heard) in rows.iter().zip(&heard) {
        let (status, fields, body) = parts(heard);
        assert!(status.starts_with("HTTP/1.1 403 Denied: "), "{to}: {status}");
        assert!(fields.contains("error=destination_ip_prohibited"), "{to}: {fields}");
        assert_eq!(body["reason"], *reason, "{to}");
    }
    assert_eq!(outcome.events_of("connect.denied").len(), rows.len());
    assert_eq!(origin.connections(), 0);
}

/// IPv4 addresses of this host's interfaces other than `lo`; a machine without any has none to protect.
fn own_addresses() -> Vec<String> {
    let output =
        std::process::Command::new("ip").args(["-4", "-o", "addr", "show", "scope", "global"]).output();
    let text = String::from_utf8(output.expect("run ip").stdout).expect("UTF-8");
    let address = |line: &str| Some(line.split_once(" inet ")?.1.split('/').next()?.to_owned());
    text.lines().filter_map(address).collect()
}

#[test]
fn numbers_that_only_some_programs_take_for_addresses_are_refused_as_malformed() {
    let scene = Scene::new();
    let odd = ["2130706433:80", "0x7f000001:80", "0177.0.0.1:80", "127.1:80"];
    let ask = |to: &&str| vec![send(format!("CONNECT {to} HTTP/1.1\r\nHost: x\r\n\r\n")), Step::ToEnd];
    let conversations: Vec<_> = odd.iter().map(ask).collect();
    let (heard, _) = talk(scene.exec().open(), &conversations);
    for (to, heard) in odd.iter().zip(&heard) {
        let (status, _, body) = parts(heard);
        assert!(status.starts_with("HTTP/1.1 400 "), "{to}: {status}");
        assert_eq!(body["reason"], "host_odd_ipv4", "{to}");
    }
}

#[test]
fn a_private_address_takes_a_policy_that_names_it_and_the_hint_says_so() {
    let scene = Scene::new();
    let (heard, _) = talk(scene.exec().policy("open"), &[vec![connect("10.11.12.13:80"), Step::ToEnd]]);
    let (_, _, body) = parts(&heard[0]);
    assert_eq!(body["reason"], "address_private");
    let hint = body["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("allowed_ips"), "{hint}");
}

/// What a run did is allowed by what was learned of it, and nothing else is: also under a policy in audit mode, whose
/// tunnels are judged by their requests.
#[test]
fn what_was_learned_allows_the_same_run_and_no_other() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let at = format!("host: origin.test, port: {}", origin.port());
    let audit = allowing(&format!("{{ {at}, access: read-only, enforcement: audit }}"), &["/usr/bin/none"]);
    let url = |path: &str| origin.url("origin.test", path);
    // As forward requests; and in tunnels, where the policy looks into them.
    for (index, (policy, how)) in [("open", ""), (&*audit, "-p")].into_iter().enumerate() {
        let run = format!("curl -s {how} {}; curl -s -X POST {}", url("/one?x=1"), url("/two"));
        let other = format!("curl -s {how} {}; curl -s -X DELETE {how} {}", url("/three"), url("/two"));
        let file = scene.dir().join(format!("learned-{index}.yaml"));
        let learn = format!("--learn={}", file.display());
        let exec = scene.exec().policy(policy).permit_loopback().option(&learn);
        exec.run(&["sh", "-c", &run]).ended_with(0);
        let learned = std::fs::read_to_string(&file).expect("what was learned");
        let rules = "rules: [{allow: {method: \"GET\", path: \"/one\"}}, {allow: {method: \"POST\", path: \"/two\"}}]";
        assert!(learned.contains(rules), "{learned}");
        let again = scene.exec().policy(&learned).permit_loopback().run(&["sh", "-c", &run]).ended_with(0);
        assert!(again.stderr.contains(" 0 denied"), "{learned}\n{again}");
        let other = scene.exec().policy(&learned).permit_loopback().run(&["sh", "-c", &other]).ended_with(0);
        assert_eq!(other.events_of("request.denied").len(), 2, "{learned}\n{other}");
    }
}
