//! Asking identity from a worker: in place when that takes microseconds, otherwise by waiting for the scanner.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Core, Message};
use crate::identity::{Identity, Need, Protocol, Query, Quick};
use crate::sandbox::Sandbox;

impl Core {
    /// Who is behind the connection from `client` to `proxy`; `None` when the sandbox' programs are not identified.
    pub(super) async fn who(
        &self,
        sandbox: &Sandbox,
        client: SocketAddr,
        proxy: SocketAddr,
        need: Need,
    ) -> Option<Arc<Identity>> {
        let resolver = sandbox.resolver()?;
        let query = Query { protocol: Protocol::Tcp, client, proxy, need };
        let ticket = match resolver.quick(&query) {
            Quick::Known(identity) => return Some(identity),
            Quick::NeedsScan(ticket) => ticket,
        };
        let (number, answer) = self.scans.open();
        let sender = self.sender.clone();
        resolver.scan(ticket, move |identity| sender.send(Message::Identified(number, identity)));
        answer.await.ok()
    }
}
