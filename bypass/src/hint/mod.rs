//! What to change, in one or two sentences for a person or an agent who reads the event.
//!
//! [`hint`] goes from the particular to the general: where the attempt went (`destination`), which program
//! made it (`program`), and last whether the program could have known of the proxy at all.

mod destination;
mod program;

use std::net::{IpAddr, SocketAddr};

use crate::attempt::{Icmp, Proto};

/// What is known about an attempt. Everything about the process may be missing.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Transport protocol.
    pub proto: Proto,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port.
    pub dst_port: Option<u16>,
    /// ICMP type and code.
    pub icmp: Option<Icmp>,
    /// Path of the program's file.
    pub exe: Option<&'a str>,
    /// The kernel's name of the thread, at most 15 bytes.
    pub comm: Option<&'a str>,
    /// Command line, the program's name first; empty if not known.
    pub args: &'a [&'a str],
    /// Whether the process was started with a proxy variable.
    pub proxy_env: ProxyEnv,
    /// The proxy as the sandbox reaches it.
    pub proxy: SocketAddr,
    /// Whether the policy would let this program reach this destination through the proxy; `None` if that
    /// cannot be said (policies name hosts, the attempt has only an address).
    pub allowed_by_policy: Option<bool>,
}

/// Whether a process has one of `http_proxy`, `https_proxy`, `all_proxy`, in either case, in its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyEnv {
    /// The environment could not be read.
    Unknown,
    /// None of them.
    Absent,
    /// At least one.
    Present,
}

/// Advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// Which advice; stable, for counting and for programs.
    pub code: HintCode,
    /// The advice in English, without a line break.
    pub text: String,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// All advice there is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum HintCode {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl HintCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its stable name in events and metrics.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

codes! {
    /// A cloud's instance metadata service.
    Metadata = "metadata_service",
    /// A name lookup.
    Dns = "dns",
    /// A name lookup in the local network (mDNS, LLMNR).
    LocalNames = "local_names",
    /// Ping and other ICMP.
    Icmp = "icmp",
    /// Time synchronisation.
    Ntp = "ntp",
    /// HTTP/3.
    Quic = "quic",
    /// Sending mail.
    Smtp = "smtp",
    /// git or ssh over port 22.
    Ssh = "ssh",
    /// The old git protocol.
    GitProtocol = "git_protocol",
    /// Other UDP.
    Udp = "udp",
    /// Neither TCP, UDP nor ICMP.
    RawIp = "raw_ip",
    /// Node.js.
    Node = "node",
    /// Deno.
    Deno = "deno",
    /// Bun.
    Bun = "bun",
    /// A Java virtual machine.
    Java = "java",
    /// A program known to be written in Go.
    Go = "go",
    /// Python.
    Python = "python",
    /// curl told not to use a proxy.
    CurlNoProxy = "curl_noproxy",
    /// A container engine.
    Docker = "docker",
    /// Debian's package manager.
    Apt = "apt",
    /// A web browser.
    Browser = "browser",
    /// The process has a proxy variable, and went around the proxy all the same.
    ProxyIgnored = "proxy_variable_ignored",
    /// The process has no proxy variable.
    ProxyUnset = "proxy_variable_unset",
    /// Nothing is known about the process.
    UseProxy = "use_proxy",
}

/// The advice for one attempt.
pub fn hint(context: &Context<'_>) -> Hint {
    let (code, advice) = match (destination::advice(context), program::advice(context)) {
        // A lookup is only the first step of going around the proxy: what is to be changed is in the program.
        (Some((HintCode::Dns, _)), Some((_, remedy))) => (
            HintCode::Dns,
            format!("The program resolves names itself; in a sandbox the proxy does that. {remedy}"),
        ),
        (Some(advice), _) | (None, Some(advice)) => advice,
        (None, None) => general(context),
    };
    let text = match context.allowed_by_policy {
        Some(true) => {
            format!("Allowed through the proxy; the program did not use it. {advice}")
        }
        Some(false) => {
            format!(
                "{advice} This address is not allowed through the proxy either (a host name there may be)."
            )
        }
        None => advice,
    };
    Hint { code, text }
}

fn general(context: &Context<'_>) -> (HintCode, String) {
    let proxy = context.proxy;
    match context.proxy_env {
        ProxyEnv::Present => (
            HintCode::ProxyIgnored,
            format!(
                "A proxy variable is set, but the program ignored it, or NO_PROXY names this destination: set the \
                 program's own proxy option to http://{proxy}, or tunnel with CONNECT."
            ),
        ),
        ProxyEnv::Absent => (
            HintCode::ProxyUnset,
            format!(
                "No proxy variable is set: start the program with HTTP_PROXY and HTTPS_PROXY (and their lower-case forms) set to http://{proxy}."
            ),
        ),
        ProxyEnv::Unknown => (
            HintCode::UseProxy,
            format!(
                "Direct connections are refused: use the proxy http://{proxy} (HTTP_PROXY, HTTPS_PROXY, or the program's own option)."
            ),
        ),
    }
}
