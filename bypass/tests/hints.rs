//! The advice for what sandboxes really try.

use std::net::SocketAddr;

use sluice_bypass::hint::Context;
use sluice_bypass::{HintCode, Proto, ProxyEnv, hint};

const PROXY: &str = "10.200.0.1:3128";

fn context(proto: Proto, to: &str) -> Context<'static> {
    let to: SocketAddr = to.parse().expect("an address and a port");
    Context {
        proto,
        dst: to.ip(),
        dst_port: matches!(proto, Proto::Tcp | Proto::Udp).then_some(to.port()),
        icmp: None,
        exe: None,
        comm: None,
        args: &[],
        proxy_env: ProxyEnv::Unknown,
        proxy: PROXY.parse().expect("an address and a port"),
        allowed_by_policy: None,
    }
}

fn tcp(exe: &'static str) -> Context<'static> {
    Context { exe: Some(exe), ..context(Proto::Tcp, "93.184.216.34:443") }
}

/// What was tried, the code it must get, and words that the advice cannot do without.
#[test]
fn the_advice_fits_what_was_tried() {
    use HintCode as C;
    let table: Vec<(Context<'_>, HintCode, &[&str])> = vec![
        (context(Proto::Udp, "8.8.8.8:53"), C::Dns, &["proxy", "resolves", PROXY]),
        (context(Proto::Tcp, "[2001:4860:4860::8888]:53"), C::Dns, &[PROXY]),
        (context(Proto::Tcp, "1.1.1.1:853"), C::Dns, &[PROXY]),
        (context(Proto::Udp, "224.0.0.251:5353"), C::LocalNames, &["mDNS"]),
        (context(Proto::Udp, "[ff02::1:3]:5355"), C::LocalNames, &["LLMNR"]),
        (context(Proto::Udp, "142.250.1.1:443"), C::Quic, &["HTTP/3", PROXY]),
        (context(Proto::Udp, "162.159.200.1:123"), C::Ntp, &["clock"]),
        (context(Proto::Udp, "9.9.9.9:7777"), C::Udp, &["UDP", "TCP", PROXY]),
        (context(Proto::Tcp, "1.2.3.4:25"), C::Smtp, &["HTTPS", PROXY]),
        (context(Proto::Tcp, "1.2.3.4:465"), C::Smtp, &["CONNECT"]),
        (context(Proto::Tcp, "1.2.3.4:587"), C::Smtp, &["CONNECT"]),
        (context(Proto::Tcp, "140.82.121.4:22"), C::Ssh, &["insteadOf", "ProxyCommand", PROXY]),
        (tcp("/usr/bin/ssh"), C::Ssh, &["insteadOf", "ProxyCommand", PROXY]),
        (context(Proto::Tcp, "140.82.121.4:9418"), C::GitProtocol, &["https://", PROXY]),
        (context(Proto::Tcp, "169.254.169.254:80"), C::Metadata, &["credentials"]),
        (context(Proto::Tcp, "[::ffff:169.254.169.254]:80"), C::Metadata, &["credentials"]),
        (context(Proto::Tcp, "[fd00:ec2::254]:80"), C::Metadata, &["credentials"]),
        (context(Proto::Tcp, "169.254.170.2:80"), C::Metadata, &["credentials"]),
        (context(Proto::Icmp, "8.8.8.8:0"), C::Icmp, &["ping", PROXY]),
        (context(Proto::Icmpv6, "[2001:db8::1]:0"), C::Icmp, &["ping", PROXY]),
        (context(Proto::Other(47), "8.8.8.8:0"), C::RawIp, &["ip-47", PROXY]),
        (context(Proto::Unknown, "8.8.8.8:0"), C::RawIp, &[PROXY]),
        (tcp("/usr/bin/node"), C::Node, &["NODE_USE_ENV_PROXY=1", "22.21/24.0", "EnvHttpProxyAgent", PROXY]),
        (
            Context { exe: Some("/usr/bin/node"), ..context(Proto::Udp, "192.0.2.53:53") },
            C::Dns,
            &["resolves", "NODE_USE_ENV_PROXY=1", "22.21/24.0"],
        ),
        (tcp("/usr/bin/node (deleted)"), C::Node, &["NODE_USE_ENV_PROXY=1"]),
        (tcp("/root/.deno/bin/deno"), C::Deno, &["createHttpClient", PROXY]),
        (tcp("/root/.bun/bin/bun"), C::Bun, &["fetch(url, { proxy", PROXY]),
        (
            tcp("/usr/lib/jvm/java-21/bin/java"),
            C::Java,
            &["-Dhttps.proxyHost=10.200.0.1", "-Dhttps.proxyPort=3128"],
        ),
        (tcp("/usr/local/go/bin/go"), C::Go, &["ProxyFromEnvironment", PROXY]),
        (tcp("/tmp/go-build123/b001/exe/main"), C::Go, &["ProxyFromEnvironment"]),
        (tcp("/usr/bin/python3.12"), C::Python, &["aiohttp", "trust_env=True", "httpx", PROXY]),
        (tcp("/usr/bin/python3-config"), C::UseProxy, &[PROXY]),
        (
            Context { args: &["curl", "--noproxy", "*", "https://x/"], ..tcp("/usr/bin/curl") },
            C::CurlNoProxy,
            &["--noproxy", PROXY],
        ),
        (
            Context { args: &["curl", "-x", "", "https://x/"], ..tcp("/usr/bin/curl") },
            C::CurlNoProxy,
            &[PROXY],
        ),
        (Context { proxy_env: ProxyEnv::Present, ..tcp("/usr/bin/curl") }, C::CurlNoProxy, &["NO_PROXY"]),
        (
            Context { proxy_env: ProxyEnv::Absent, ..tcp("/usr/bin/curl") },
            C::ProxyUnset,
            &["HTTPS_PROXY", PROXY],
        ),
        (tcp("/usr/bin/dockerd"), C::Docker, &["daemon.json", PROXY]),
        (tcp("/usr/lib/apt/methods/https"), C::Apt, &["Acquire::https::Proxy", PROXY]),
        (tcp("/opt/google/chrome/chrome"), C::Browser, &["--proxy-server=http://10.200.0.1:3128"]),
        (tcp("/usr/lib/firefox/firefox-bin"), C::Browser, &["network.proxy"]),
        (
            Context { exe: Some("/usr/lib/chromium/chromium"), ..context(Proto::Udp, "1.2.3.4:443") },
            C::Quic,
            &["--disable-quic", PROXY],
        ),
        (Context { exe: None, comm: Some("node"), ..tcp("") }, C::Node, &["NODE_USE_ENV_PROXY=1"]),
        (
            Context { proxy_env: ProxyEnv::Present, ..tcp("/app/server") },
            C::ProxyIgnored,
            &["ignored", PROXY],
        ),
        (
            Context { proxy_env: ProxyEnv::Absent, ..tcp("/app/server") },
            C::ProxyUnset,
            &["HTTPS_PROXY", PROXY],
        ),
        (tcp("/app/server"), C::UseProxy, &[PROXY]),
    ];
    for (context, code, words) in table {
        let hint = hint(&context);
        assert_eq!(hint.code, code, "{context:?}");
        for word in words {
            assert!(hint.text.contains(word), "{word:?} is missing in: {}", hint.text);
        }
        assert!(hint.text.len() < 450 && !hint.text.contains(['\n', '\r']), "{}", hint.text);
        assert!(!hint.text.contains("  "), "{}", hint.text);
    }
}

#[test]
fn the_policys_word_is_part_of_the_advice() {
    let allowed = hint(&Context { allowed_by_policy: Some(true), ..tcp("/app/server") });
    assert!(
        allowed.text.starts_with("Allowed through the proxy; the program did not use it. "),
        "{}",
        allowed.text
    );
    let denied = hint(&Context { allowed_by_policy: Some(false), ..tcp("/app/server") });
    assert!(denied.text.contains("This address is not allowed through the proxy either"), "{}", denied.text);
    assert_eq!(allowed.code, denied.code);
}

#[test]
fn codes_are_distinct_and_fit_for_metrics() {
    let names: std::collections::BTreeSet<_> = HintCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(names.len(), HintCode::ALL.len());
    for name in names {
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
    }
}
