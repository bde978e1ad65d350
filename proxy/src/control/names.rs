//! Names to addresses, off the workers.
//!
//! `/etc/hosts` answers first and alone, as with the C library's `files dns`; then the servers of `/etc/resolv.conf`.
//! Both files are read again when they change. No search domains: a policy names hosts in full, and so does the query.
//! Caching is the caller's, per worker; this module only says how long an answer holds.

use std::collections::HashMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{Hosts, TokioResolver};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Queries under way at once; more wait their turn.
const QUERIES_MAX: usize = 512;
/// How long one query may take before the next server, and how often it is tried.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Bounds on how long an answer is believed.
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(300);
/// How long a name that does not exist stays so, unless its zone says less.
const NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// How long a failure of the servers is remembered.
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// How long an answer from a file is believed.
const FILE_TTL: Duration = Duration::from_secs(5);
/// How often the files' times are looked at.
const FILES_CHECKED_EVERY: Duration = Duration::from_secs(2);

/// What a name means.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The addresses in the order given, or why there are none.
    pub addresses: Result<Arc<[IpAddr]>, NameError>,
    /// How long this may be believed.
    pub valid_for: Duration,
}

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// The name, or an address for it, does not exist.
    #[error("the name does not exist")]
    NotFound,
    /// No server answered in time.
    #[error("the name servers did not answer in time")]
    Timeout,
    /// The servers failed, or there are none.
    #[error("the name servers failed: {0}")]
    Failed(String),
}

/// Resolves names on the control plane's runtime.
#[derive(Clone)]
pub struct Names {
    runtime: Handle,
    inner: Arc<Inner>,
}

struct Inner {
    fixed: HashMap<Box<str>, Arc<[IpAddr]>>,
    turns: Semaphore,
    system: Mutex<System>,
}

struct System {
    hosts: Arc<Hosts>,
    resolver: Result<TokioResolver, String>,
    stamps: [Option<SystemTime>; 2],
    checked: Instant,
}

impl Names {
    /// A resolver on `runtime` that answers `fixed` itself and asks the system for the rest.
    pub fn new(runtime: Handle, fixed: HashMap<Box<str>, Arc<[IpAddr]>>) -> Self {
        let inner =
            Inner { fixed, turns: Semaphore::new(QUERIES_MAX), system: Mutex::new(System::read(stamps())) };
        Self { runtime, inner: Arc::new(inner) }
    }

    /// Asks for `name` (lower case, no trailing dot) and calls `reply` from the control plane's thread.
    pub fn ask(&self, name: Box<str>, reply: impl FnOnce(Answer) + Send + 'static) {
        let inner = Arc::clone(&self.inner);
        self.runtime.spawn(async move { reply(inner.resolve(&name).await) });
    }
}

impl Inner {
    async fn resolve(&self, name: &str) -> Answer {
        if let Some(addresses) = self.fixed.get(name) {
            return Answer { addresses: Ok(Arc::clone(addresses)), valid_for: TTL_MAX };
        }
        let (hosts, resolver) = self.system();
        if let Some(addresses) = from_hosts(&hosts, name) {
            return Answer { addresses: Ok(addresses), valid_for: FILE_TTL };
        }
        // RFC 6761 section 6.3: never asked of a server.
        if name == "localhost" || name.ends_with(".localhost") {
            let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            return Answer { addresses: Ok(addresses.into()), valid_for: TTL_MAX };
        }
        let resolver = match resolver {
            Ok(resolver) => resolver,
            Err(why) => return Answer { addresses: Err(NameError::Failed(why)), valid_for: FAILURE_TTL },
        };
        let _turn = self.turns.acquire().await;
        ask_servers(&resolver, name).await
    }

    /// What the files say now.
    fn system(&self) -> (Arc<Hosts>, Result<TokioResolver, String>) {
        let mut system = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        if system.checked.elapsed() >= FILES_CHECKED_EVERY {
            let now = stamps();
            if now == system.stamps {
                system.checked = Instant::now();
            } else {
                *system = System::read(now);
            }
        }
        (Arc::clone(&system.hosts), system.resolver.clone())
    }
}

impl System {
    fn read(stamps: [Option<SystemTime>; 2]) -> Self {
        let mut hosts = Hosts::default();
        if let Ok(file) = File::open(HOSTS)
            && let Err(error) = hosts.read_hosts_conf(file)
        {
            tracing::warn!(%error, "{HOSTS} cannot be read; names in it are asked of the servers");
        }
        Self {
            hosts: Arc::new(hosts),
            resolver: resolver().map_err(|error| error.to_string()),
            stamps,
            checked: Instant::now(),
        }
    }
}

const HOSTS: &str = "/etc/hosts";

fn stamps() -> [Option<SystemTime>; 2] {
    [HOSTS, "/etc/resolv.conf"].map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
}

fn resolver() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio()?;
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = 0;
    options.timeout = SERVER_TIMEOUT;
    options.attempts = ATTEMPTS;
    builder.build()
}

fn from_hosts(hosts: &Hosts, name: &str) -> Option<Arc<[IpAddr]>> {
    use hickory_resolver::proto::op::Query;
    use hickory_resolver::proto::rr::{Name, RecordType};
    let name = Name::from_ascii(name).ok()?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for family in [RecordType::AAAA, RecordType::A] {
        if let Some(found) = hosts.lookup_static_host(&Query::query(name.clone(), family)) {
            addresses.extend(found.answers().iter().filter_map(|record| record.data.ip_addr()));
        }
    }
    (!addresses.is_empty()).then(|| addresses.into())
}

async fn ask_servers(resolver: &TokioResolver, name: &str) -> Answer {
    match resolver.lookup_ip(format!("{name}.")).await {
        Ok(found) => {
            let addresses: Arc<[IpAddr]> = found.iter().collect();
            let left = found.valid_until().saturating_duration_since(Instant::now());
            if addresses.is_empty() {
                return Answer { addresses: Err(NameError::NotFound), valid_for: NEGATIVE_TTL };
            }
            Answer { addresses: Ok(addresses), valid_for: left.clamp(TTL_MIN, TTL_MAX) }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let ttl = none.negative_ttl.map_or(NEGATIVE_TTL, |seconds| Duration::from_secs(seconds.into()));
            Answer { addresses: Err(NameError::NotFound), valid_for: ttl.clamp(TTL_MIN, NEGATIVE_TTL) }
        }
        Err(NetError::Timeout) => Answer { addresses: Err(NameError::Timeout), valid_for: FAILURE_TTL },
        Err(error) => Answer { addresses: Err(NameError::Failed(error.to_string())), valid_for: FAILURE_TTL },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(names: &Names, runtime: &tokio::runtime::Runtime, name: &str) -> Answer {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        names.ask(name.into(), move |answer| drop(sender.send(answer)));
        runtime.block_on(receiver).unwrap()
    }

    #[test]
    fn fixed_names_and_localhost_need_no_server() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let fixed = HashMap::from([("origin.example".into(), Arc::from([IpAddr::from([192, 0, 2, 1])]))]);
        let names = Names::new(runtime.handle().clone(), fixed);
        let answer = ask(&names, &runtime, "origin.example");
        assert_eq!(&*answer.addresses.unwrap(), [IpAddr::from([192, 0, 2, 1])]);
        let local = ask(&names, &runtime, "a.localhost").addresses.unwrap();
        assert!(local.iter().all(IpAddr::is_loopback));
    }

    #[test]
    fn the_hosts_file_answers_for_both_families() {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"192.0.2.7 a.example b.example\n2001:db8::7 a.example\n"[..]).unwrap();
        assert_eq!(from_hosts(&hosts, "a.example").unwrap().len(), 2);
        assert_eq!(&*from_hosts(&hosts, "b.example").unwrap(), [IpAddr::from([192, 0, 2, 7])]);
        assert!(from_hosts(&hosts, "c.example").is_none());
    }
}
