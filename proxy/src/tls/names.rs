//! The names a policy lets be looked into, as far as they can be told beforehand: what a sandbox' authority is
//! constrained to.

use ipnet::IpNet;

use crate::destination::Host;
use crate::policy::host::{HostPattern, Label};
use crate::policy::{Endpoint, Policy, Sni};

/// The names an authority may sign for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// DNS names; each includes what is below it.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpNet>,
}

impl Names {
    /// The names of the endpoints of `policy` whose requests are judged; `None` where they cannot be told: an endpoint
    /// of any host, or one that lets TLS name another.
    pub fn judged_by(policy: &Policy) -> Option<Self> {
        let mut names = Self::default();
        for endpoint in policy.judged() {
            names.add(endpoint)?;
        }
        names.dns.sort();
        names.dns.dedup();
        Some(names)
    }

    fn add(&mut self, endpoint: &Endpoint) -> Option<()> {
        match &endpoint.host {
            HostPattern::Exact(Host::Ip(ip)) => self.ips.push(IpNet::from(*ip)),
            _ if endpoint.sni == Sni::Ignore => return None,
            HostPattern::Exact(Host::Name(name)) => self.dns.push(name.to_string()),
            HostPattern::Wildcard(wildcard) => {
                // The labels behind the last wildcard; at least two of them.
                let literal = |label: &Label| match label {
                    Label::Literal(text) => Some(text.to_string()),
                    Label::Any => None,
                };
                let mut labels: Vec<String> = wildcard.rest.iter().rev().map_while(literal).collect();
                labels.reverse();
                self.dns.push(labels.join("."));
            }
            HostPattern::Any => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::diagnostic::Diagnostics;
    use crate::policy;

    fn names(endpoints: &[&str]) -> Option<Names> {
        let mut text = String::from("version: 1\nnetwork_policies:\n  a:\n    endpoints:\n");
        for endpoint in endpoints {
            writeln!(text, "      - {{{endpoint}}}").unwrap();
        }
        let mut out = Diagnostics::default();
        let file = policy::parse(&text, &"p.yaml".into(), &mut out).unwrap();
        Names::judged_by(&Policy::compile(&file))
    }

    #[test]
    fn judged_names_are_told_and_raw_ones_are_not() {
        let told = names(&[
            "host: a.example.com, port: 443, protocol: http, access: read-only",
            "host: \"*.b.example.com\", port: 443, protocol: http, access: read-only",
            "host: \"api.*.example.org\", port: 443, protocol: http, access: read-only",
            "host: 192.0.2.7, port: 443, protocol: http, access: read-only",
            "host: raw.example.net, port: 443",
        ]);
        let dns = ["a.example.com", "b.example.com", "example.org"].map(String::from).to_vec();
        assert_eq!(told, Some(Names { dns, ips: vec!["192.0.2.7/32".parse().unwrap()] }));
    }

    #[test]
    fn what_cannot_be_told_is_not_constrained() {
        assert_eq!(
            names(&["allowed_ips: [192.0.2.0/24], port: 443, protocol: http, access: read-only"]),
            None
        );
        assert_eq!(
            names(&["host: a.example.com, port: 443, protocol: http, access: read-only, sni: ignore"]),
            None
        );
    }
}
