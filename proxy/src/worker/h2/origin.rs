//! What the origin speaks, which is what its clients are offered: HTTP/2 is never translated.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::destination::Destination;
use crate::http::reject::Reject;
use crate::policy::{self, Ask};
use crate::tls::{Interception, Problem};
use crate::worker::intercept::server_name;
use crate::worker::refusal::Refusal;
use crate::worker::session::Session;
use crate::worker::socket::{Side as _, Socket};
use crate::worker::tls::Tls;
use crate::worker::upstream::Upstream;

/// How long it is taken for granted that an origin speaks no HTTP/2.
const REMEMBERED: Duration = Duration::from_secs(300);
/// Origins remembered by one worker, some 100 octets each; at the bound all are forgotten.
const REMEMBERED_MAX: usize = 1_024;

/// Origins that were asked and speak no HTTP/2, by the sandbox that asked.
#[derive(Default)]
pub(crate) struct Without(RefCell<HashMap<(u64, Destination), Instant>>);

impl Without {
    fn holds(&self, interception: &Interception, destination: &Destination) -> bool {
        let mut known = self.0.borrow_mut();
        let key = (interception.id(), destination.clone());
        let fresh = known.get(&key).map(|since| since.elapsed() < REMEMBERED);
        if fresh == Some(false) {
            known.remove(&key);
        }
        fresh == Some(true)
    }

    fn learn(&self, interception: &Interception, destination: &Destination) {
        let mut known = self.0.borrow_mut();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert((interception.id(), destination.clone()), Instant::now());
    }

    /// Forgets what a sandbox that is gone has asked.
    pub(crate) fn forget(&self, interception: &Interception) {
        self.0.borrow_mut().retain(|(id, _), _| *id != interception.id());
    }
}

impl Session<Socket> {
    /// A connection to the tunnel's origin that speaks HTTP/2; none where it does not. Where it could not be reached, a
    /// client that speaks HTTP/1.1 as well is told so when a request has been allowed.
    pub(in crate::worker) async fn mirror(
        &self,
        interception: &Arc<Interception>,
        destination: &Destination,
    ) -> Result<Option<Upstream<Tls<Socket>>>, Refusal> {
        if !interception.speaks_http2() || self.core.without_h2.holds(interception, destination) {
            return Ok(None);
        }
        let upstream = self.reach_either(interception, destination).await?;
        // No request follows at once that the last message of the handshake could go with.
        upstream.side.flush().await.map_err(|_| Reject::OriginClosed)?;
        if upstream.side.speaks_h2() {
            return Ok(Some(upstream));
        }
        self.core.without_h2.learn(interception, destination);
        self.core.tls_upstreams.keep(&self.sandbox, destination, upstream);
        Ok(None)
    }

    /// Connects to the origin, which may choose between HTTP/2 and HTTP/1.1.
    async fn reach_either(
        &self,
        interception: &Arc<Interception>,
        destination: &Destination,
    ) -> Result<Upstream<Tls<Socket>>, Refusal> {
        let policy = self.sandbox.policy_now();
        let ask = Ask { destination, asker: self.asker(), kind: policy::Kind::Connect };
        let permit = self.core.decide(&policy, &ask)?;
        let name = server_name(&destination.host).ok_or(Reject::Internal)?;
        let config = interception.client(true);
        // The connection that was dialled for the tunnel; it may have been closed while nobody spoke.
        if let Some(dialled) = self.core.reuse(&self.core.dialled, &self.sandbox, &permit) {
            match self.secure(config, name.clone(), dialled).await {
                Err(Refusal { reject: Reject::OriginTls(Problem::Closed), .. }) => {}
                secured => return secured,
            }
        }
        let dialled = self.core.dial(permit).await?;
        self.secure(config, name, dialled).await
    }
}
