//! Advice by where the attempt went: protocols that no proxy variable could have helped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Context, HintCode, program};
use crate::attempt::Proto;

/// Metadata services: AWS, Azure, Google, OpenStack, DigitalOcean (the first), AWS containers, Alibaba, AWS
/// over IPv6, Google over IPv6.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

pub(super) fn advice(context: &Context<'_>) -> Option<(HintCode, String)> {
    let proxy = context.proxy;
    if METADATA.contains(&context.dst.to_canonical()) {
        return Some((
            HintCode::Metadata,
            "This is the cloud's instance metadata service, which holds the host's credentials; sandboxes never reach it. \
             Give the program its credentials by file or variable, and stop SDKs from looking (AWS_EC2_METADATA_DISABLED=true, \
             NO_GCE_CHECK=true)."
                .into(),
        ));
    }
    match (context.proto, context.dst_port) {
        (Proto::Udp | Proto::Tcp, Some(53 | 853)) => Some((
            HintCode::Dns,
            format!(
                "The program resolves names itself; in a sandbox the proxy does that. Hand the host name to the proxy \
                 http://{proxy} (CONNECT host:port) instead of looking it up: programs that use their proxy settings do."
            ),
        )),
        (Proto::Udp, Some(5353 | 5355)) => Some((
            HintCode::LocalNames,
            format!(
                "A name lookup in the local network (mDNS or LLMNR); a sandbox has no neighbours. Names are resolved by the proxy http://{proxy}."
            ),
        )),
        (Proto::Udp, Some(443)) => Some((HintCode::Quic, quic(context))),
        (Proto::Udp, Some(123)) => Some((
            HintCode::Ntp,
            "Time synchronisation: the sandbox shares the host's clock, which the host keeps right. Disable the NTP client in the sandbox.".into(),
        )),
        (Proto::Tcp, Some(25 | 465 | 587)) => Some((
            HintCode::Smtp,
            format!(
                "Mail submission goes around the proxy. Use the mail provider's HTTPS interface through http://{proxy}, or a client that \
                 can tunnel SMTP with CONNECT to a host and port the policy allows."
            ),
        )),
        (Proto::Tcp, Some(22)) => Some((HintCode::Ssh, ssh(context))),
        (Proto::Tcp, Some(9418)) => Some((
            HintCode::GitProtocol,
            format!("git:// cannot use a proxy: use https:// remotes, which go through http://{proxy} (http.proxy or HTTPS_PROXY)."),
        )),
        (Proto::Icmp | Proto::Icmpv6, _) => Some((
            HintCode::Icmp,
            format!("ICMP (ping, traceroute) does not leave a sandbox. To test a connection use the proxy: curl -x http://{proxy} -I https://HOST/."),
        )),
        (Proto::Udp, _) => Some((
            HintCode::Udp,
            format!("UDP does not leave a sandbox: the proxy http://{proxy} carries TCP only (HTTP and CONNECT). Use the service's TCP or HTTPS interface."),
        )),
        (Proto::Other(_) | Proto::Unknown, _) => Some((
            HintCode::RawIp,
            format!("Only TCP leaves a sandbox, through the proxy http://{proxy}; IP protocol {} does not.", context.proto),
        )),
        (Proto::Tcp, _) => None,
    }
}

/// The same whatever port ssh goes to.
pub(super) fn ssh(context: &Context<'_>) -> String {
    format!(
        "ssh ignores proxy variables. For git use https:// remotes (git config --global url.\"https://HOST/\".insteadOf git@HOST:); \
         for ssh itself, if the policy allows its port: ssh -o ProxyCommand='nc -X connect -x {} %h %p'.",
        context.proxy
    )
}

fn quic(context: &Context<'_>) -> String {
    let off = match program::browser(context) {
        Some(program::Browser::Chromium) => "Start the browser with --disable-quic, or",
        Some(program::Browser::Firefox) => "Set network.http.http3.enable to false, or",
        None => "Disable HTTP/3 in the client, or",
    };
    format!(
        "HTTP/3 (QUIC) is UDP, which the proxy cannot carry. {off} give it the proxy http://{}: clients that use a proxy \
         fall back to HTTP/2 over TCP.",
        context.proxy
    )
}
