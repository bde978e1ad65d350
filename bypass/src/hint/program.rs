//! Advice by which program made the attempt.

use super::{Context, HintCode, ProxyEnv, destination};

/// Browser families, by how they are told to behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Browser {
    Chromium,
    Firefox,
}

pub(super) fn advice(context: &Context<'_>) -> Option<(HintCode, String)> {
    let proxy = context.proxy;
    let (host, port) = (proxy.ip(), proxy.port());
    if let Some(browser) = browser(context) {
        let how = match browser {
            Browser::Chromium => format!("Start it with --proxy-server=http://{proxy} (and --disable-quic)."),
            Browser::Firefox => format!(
                "Set network.proxy.type=1, network.proxy.http and network.proxy.ssl to {host}, their ports to {port}."
            ),
        };
        return Some((HintCode::Browser, format!("The browser does not use the proxy. {how}")));
    }
    let name = name(context);
    let advice = match name {
        "node" | "nodejs" | "npm" | "npx" | "yarn" | "pnpm" => (HintCode::Node, node(context)),
        "deno" => (
            HintCode::Deno,
            format!(
                "Deno's fetch uses HTTP_PROXY and HTTPS_PROXY (set them to http://{proxy}); Deno.connect and node:net sockets do not: \
                 use fetch, or Deno.createHttpClient({{ proxy: {{ url: \"http://{proxy}\" }} }})."
            ),
        ),
        "bun" | "bunx" => (
            HintCode::Bun,
            format!(
                "Bun's fetch uses HTTP_PROXY and HTTPS_PROXY (set them to http://{proxy}) or fetch(url, {{ proxy: \"http://{proxy}\" }}); \
                 Bun.connect and node:net sockets do not."
            ),
        ),
        "java" => (
            HintCode::Java,
            format!(
                "Java ignores proxy variables: set JAVA_TOOL_OPTIONS=\"-Dhttp.proxyHost={host} -Dhttp.proxyPort={port} \
                 -Dhttps.proxyHost={host} -Dhttps.proxyPort={port}\". Raw sockets and some clients (Netty, OkHttp with its own settings) need it in code."
            ),
        ),
        "curl" if no_proxy_option(context.args) => (
            HintCode::CurlNoProxy,
            format!(
                "curl was told to go direct (--noproxy): leave the option out and use -x http://{proxy} or HTTPS_PROXY."
            ),
        ),
        "curl" if context.proxy_env == ProxyEnv::Present => (
            HintCode::CurlNoProxy,
            format!(
                "curl uses proxy variables, so --noproxy, NO_PROXY or ~/.curlrc exempts this destination (note: http_proxy counts in lower case only). Use -x http://{proxy} --noproxy ''."
            ),
        ),
        "dockerd" | "containerd" | "docker" | "podman" | "buildkitd" | "buildah" | "skopeo" => (
            HintCode::Docker,
            format!(
                "The container engine does not use the proxy: for dockerd set \"proxies\": {{\"http-proxy\": \"http://{proxy}\", \
                 \"https-proxy\": \"http://{proxy}\"}} in /etc/docker/daemon.json; podman, buildah and skopeo use HTTPS_PROXY; \
                 for the containers set \"proxies\" in ~/.docker/config.json."
            ),
        ),
        "ssh" | "scp" | "sftp" => (HintCode::Ssh, destination::ssh(context)),
        "apt" | "apt-get" | "aptitude" => (HintCode::Apt, apt(context)),
        _ if context.exe.is_some_and(|exe| exe.contains("/apt/methods/")) => (HintCode::Apt, apt(context)),
        _ if is_python(name) => (HintCode::Python, python(context)),
        _ if is_go(name, context.exe) => (
            HintCode::Go,
            format!(
                "Go's http.DefaultTransport uses HTTPS_PROXY (set it to http://{proxy}); a transport of one's own needs \
                 Proxy: http.ProxyFromEnvironment, and net.Dial never uses a proxy."
            ),
        ),
        _ => return None,
    };
    Some(advice)
}

fn node(context: &Context<'_>) -> String {
    format!(
        "Node's fetch ignores proxy variables before 22.21/24.0: set NODE_USE_ENV_PROXY=1 with HTTPS_PROXY=http://{proxy} and upgrade Node, \
         or use undici's ProxyAgent/EnvHttpProxyAgent. node:http, node:https follow NODE_USE_ENV_PROXY from 22.21/24.5 on; node:net never does.",
        proxy = context.proxy
    )
}

fn python(context: &Context<'_>) -> String {
    let proxy = context.proxy;
    let variables = match context.proxy_env {
        ProxyEnv::Present => "HTTPS_PROXY is set, but this code does not use it",
        ProxyEnv::Absent | ProxyEnv::Unknown => "Set HTTPS_PROXY and HTTP_PROXY",
    };
    format!(
        "{variables} (http://{proxy}): requests, urllib and httpx use them unless told trust_env=False; \
         aiohttp needs ClientSession(trust_env=True) or proxy=; plain sockets, asyncio streams and most database drivers never do."
    )
}

fn apt(context: &Context<'_>) -> String {
    format!(
        "apt goes direct: put Acquire::http::Proxy \"http://{proxy}\"; Acquire::https::Proxy \"http://{proxy}\"; into \
         /etc/apt/apt.conf.d/99proxy (sudo drops http_proxy and https_proxy).",
        proxy = context.proxy
    )
}

/// The program's name: the file's, or the thread's where the file is not known.
fn name<'a>(context: &Context<'a>) -> &'a str {
    let exe = context.exe.map(|exe| exe.strip_suffix(" (deleted)").unwrap_or(exe));
    match exe.and_then(|exe| exe.rsplit('/').next()) {
        Some(name) if !name.is_empty() => name,
        _ => context.comm.unwrap_or_default(),
    }
}

/// `curl --noproxy …`, also joined and abbreviated as curl allows, or an empty `-x`/`--proxy`.
fn no_proxy_option(args: &[&str]) -> bool {
    args.iter().any(|arg| *arg == "--noproxy" || arg.starts_with("--noproxy="))
        || args.windows(2).any(|pair| matches!(pair, ["-x" | "--proxy", ""]))
}

/// How the files of Chromium and its relatives begin.
const CHROMIUM: [&str; 6] = ["chrome", "chromium", "google-chrome", "headless_shell", "msedge", "brave"];

pub(super) fn browser(context: &Context<'_>) -> Option<Browser> {
    let name = name(context);
    if CHROMIUM.iter().any(|browser| name.starts_with(browser)) {
        Some(Browser::Chromium)
    } else if name.starts_with("firefox") {
        Some(Browser::Firefox)
    } else {
        None
    }
}

/// `python`, `python3`, `python3.12`, `pypy3`, …, also the tools whose file is the interpreter's wrapper.
fn is_python(name: &str) -> bool {
    let version = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy"));
    version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
        || matches!(name, "pip" | "pip3" | "uv" | "ipython")
}

/// Go programs have no interpreter to be known by; their build's paths tell some of them.
fn is_go(name: &str, exe: Option<&str>) -> bool {
    name == "go" || exe.is_some_and(|exe| exe.contains("/go-build") || exe.contains("/go/bin/"))
}
