//! Saying no: what the client is told, and what the operator.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::Core;
use super::session::{Next, Session, linger};
use super::socket::{Side, Socket};
use crate::address::{Class, Refused};
use crate::control::names::NameError;
use crate::destination::Destination;
use crate::http::answer::{self, Details};
use crate::http::date::HttpDate;
use crate::http::fault::Fault;
use crate::http::head::{Method, RequestHead};
use crate::http::reject::Reject;
use crate::policy::{self, Deny};
use crate::sandbox::Sandbox;

/// Connections that were turned away and are still read, on one worker: a flood must not hold more descriptors for being
/// refused. Beyond that the answer may be lost in a reset.
const TURNED_AWAY_MAX: usize = 256;

/// A refusal: what it is, and what is known beyond that.
pub(super) struct Refusal {
    pub(super) reject: Reject,
    /// The policy's own account, when it was the policy.
    pub(super) deny: Option<Box<Deny>>,
    /// Free words on the cause, for events.
    pub(super) detail: Option<String>,
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self { reject, deny: None, detail: None }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Reject::Request(fault).into()
    }
}

impl From<Box<Deny>> for Refusal {
    fn from(deny: Box<Deny>) -> Self {
        Self { reject: Reject::Denied(deny.reason.as_str()), deny: Some(deny), detail: None }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Reject::from(refused).into()
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        let reject = match error {
            NameError::NotFound => Reject::NameNotFound,
            NameError::Timeout => Reject::NameTimeout,
            NameError::Failed(_) => Reject::NameFailed,
        };
        Self { reject, deny: None, detail: Some(error.to_string()) }
    }
}

impl Refusal {
    /// Of a dial that failed.
    pub(super) fn dial(error: &io::Error) -> Self {
        let reject = match error.kind() {
            io::ErrorKind::ConnectionRefused => Reject::DialRefused,
            io::ErrorKind::TimedOut => Reject::DialTimeout,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Reject::DialUnreachable,
            _ => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL) => {
                    Reject::Exhausted
                }
                _ => Reject::DialFailed,
            },
        };
        Self { reject, deny: None, detail: Some(error.to_string()) }
    }

    /// What the client may do about it.
    pub(super) fn hint(
        &self,
        session: &Session<impl Sized>,
        destination: Option<&Destination>,
    ) -> Option<String> {
        if let Some(deny) = &self.deny {
            return Some(policy::hint(deny, session.core.refusal_hint.as_deref()));
        }
        let destination = destination.map(ToString::to_string).unwrap_or_default();
        let exe = session.caller.as_ref().and_then(super::who::Caller::exe).unwrap_or("the program");
        match self.reject {
            Reject::Address(class) => Some(address_hint(class, &destination)),
            Reject::NotHttp => Some(format!(
                "the policy judges requests to {destination} and found no HTTP/1.1 in the tunnel; {exe} must speak \
                 plain HTTP there, or the operator must drop `protocol` from the endpoint"
            )),
            Reject::OriginTls(problem) => {
                let said = match &self.detail {
                    Some(words) if problem.is_certificate() => {
                        format!("the certificate of {destination} {words}")
                    }
                    detail => {
                        let words = detail.as_deref().unwrap_or(problem.phrase());
                        format!("TLS with {destination} failed: {words}")
                    }
                };
                let remedy = problem.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
                Some(format!("{said}{remedy}"))
            }
            Reject::TooManyNames => Some("wait a second and try again".into()),
            Reject::NameNotFound => Some("check the spelling of the host name; the policy allows it".into()),
            _ => None,
        }
    }
}

/// Who could let an address through: a policy that names it, or only the operator.
fn address_hint(class: Class, destination: &str) -> String {
    let what = class.refusal().trim_start_matches("Denied: ");
    if class == Class::Public || class.is_nameable() {
        format!(
            "{destination} leads to {what}; retrying will not help; ask the operator to name it in the policy, \
             as host or in allowed_ips"
        )
    } else {
        format!(
            "{destination} leads to {what}, which no policy can allow; retrying will not help; only the operator \
             can permit it (--permit-special, permit_special_addresses)"
        )
    }
}

impl<C: Side> Session<C> {
    /// Refuses a CONNECT, which always ends the connection (RFC 9931).
    pub(super) async fn refuse_tunnel(&self, destination: &Destination, refusal: Refusal) -> Next {
        self.refuse(Some(destination), Some(Method::Connect), None, &refusal).await;
        Next::Linger
    }

    /// Refuses a request. Says whether another may follow.
    pub(super) async fn refuse_request(
        &self,
        destination: Option<&Destination>,
        request: Option<(&RequestHead, &[u8])>,
        refusal: Refusal,
    ) -> Next {
        // A body that nobody reads would be taken for the next request.
        let whole = request.is_some_and(|(head, _)| head.framing.is_empty() && head.is_persistent());
        let method = request.map(|(head, _)| head.method);
        let closes = self.refuse(destination, method, request, &refusal).await;
        if closes || !whole { Next::Linger } else { Next::Request }
    }

    async fn refuse(
        &self,
        destination: Option<&Destination>,
        method: Option<Method>,
        request: Option<(&RequestHead, &[u8])>,
        refusal: &Refusal,
    ) -> bool {
        let mut out = self.core.means.buffers.take();
        let closes = self.write_refusal(&mut out, destination, method, request, refusal);
        self.client.write_all(&out).await.is_err() || closes
    }
}

impl<C> Session<C> {
    /// Tells of a refusal and appends its answer. Says whether the connection ends with it.
    pub(super) fn write_refusal(
        &self,
        out: &mut Vec<u8>,
        destination: Option<&Destination>,
        method: Option<Method>,
        request: Option<(&RequestHead, &[u8])>,
        refusal: &Refusal,
    ) -> bool {
        let hint = refusal.hint(self, destination);
        self.tell_refused(destination, method, request, refusal, hint.as_deref());
        // What has run out of time once is not armed anew: its watch has told it to end.
        let persistent = self.watch.cause().is_none()
            && request.is_some_and(|(head, _)| head.framing.is_empty() && head.is_persistent());
        let shown = destination.map(ToString::to_string);
        if refusal.reject == Reject::LastHop && method == Some(Method::Options) {
            answer::write_options(out, now(), !persistent);
            !persistent
        } else {
            let details = Details {
                sandbox: Some(self.sandbox.name()),
                binary: self.caller.as_ref().and_then(super::who::Caller::exe),
                destination: shown.as_deref(),
                hint: hint.as_deref(),
            };
            answer::write(out, refusal.reject, method, &details, now(), !persistent)
        }
    }
}

/// Refuses a connection that belongs to no session, as far as the socket takes the answer at once.
pub(super) async fn turn_away(core: &Core, client: &Socket, reject: Reject) {
    let mut out = Vec::new();
    answer::write(&mut out, reject, None, &Details::default(), now(), true);
    let _ = client.try_write(&out);
    // Its request is on its way: closing at once would take the answer back.
    if core.turned_away.get() < TURNED_AWAY_MAX {
        core.turned_away.set(core.turned_away.get().saturating_add(1));
        let watch = core.watchdog.watch(client, std::ptr::null::<Sandbox>(), Duration::ZERO);
        linger(core, client, &watch).await;
        core.turned_away.set(core.turned_away.get().saturating_sub(1));
    }
}

/// Now, to the second: of the clock that costs no counter read, made into words once a second.
pub(super) fn now() -> HttpDate {
    thread_local! {
        static LAST: Cell<Option<(i64, HttpDate)>> = const { Cell::new(None) };
    }
    let second = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map_or(0, |time| time.tv_sec());
    match LAST.get() {
        Some((last, date)) if last == second => date,
        _ => {
            let date = HttpDate::from_unix(second.unsigned_abs());
            LAST.set(Some((second, date)));
            date
        }
    }
}
