//! The fields that mean this hop only: `Connection`, `Upgrade`, `TE`.

use super::Version;
use crate::http::fault::Fault;
use crate::http::fields::{Fields, Known, elements, is_token, is_token_octet};
use crate::http::limits::CONNECTION_OPTIONS_MAX;

/// What the `Connection` fields of a head say (RFC 9110 section 7.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // a set of options that exclude nothing
pub struct Connection {
    /// `close`
    pub close: bool,
    /// `keep-alive`
    pub keep_alive: bool,
    /// `upgrade`
    pub upgrade: bool,
    /// `TE`
    pub te: bool,
    /// Nominates a field that would otherwise be forwarded.
    pub nominates: bool,
}

/// A switch to another protocol, as offered (RFC 9110 section 7.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Upgrade {
    /// None, or only h2c, which is obsolete and never passed on (RFC 9113 section 3.1).
    #[default]
    None,
    /// `websocket` alone.
    WebSocket,
    /// Anything else.
    Other,
}

/// What the hop-by-hop fields of a head have said so far.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::http) struct HopFields {
    pub(in crate::http) connection: Connection,
    pub(in crate::http) te_trailers: bool,
    options: usize,
    upgrade: Upgrade,
}

impl HopFields {
    /// Takes a field; those that are not hop-by-hop are none of its business.
    pub(in crate::http) fn observe(&mut self, known: Known, value: &[u8]) -> Result<(), Fault> {
        match known {
            Known::Connection => elements(value).try_for_each(|option| self.option(option)),
            Known::Upgrade => elements(value).try_for_each(|protocol| self.protocol(protocol)),
            Known::Te => {
                self.te_trailers |= elements(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The offer that counts: `Upgrade` alone is none, and HTTP/1.0 has none.
    pub(in crate::http) fn upgrade(&self, version: Version) -> Upgrade {
        if self.connection.upgrade && version == Version::Http11 { self.upgrade } else { Upgrade::None }
    }

    fn option(&mut self, option: &[u8]) -> Result<(), Fault> {
        self.options = self.options.saturating_add(1);
        if !is_token(option) || self.options > CONNECTION_OPTIONS_MAX {
            return Err(Fault::ConnectionOption);
        }
        let connection = &mut self.connection;
        if option.eq_ignore_ascii_case(b"close") {
            connection.close = true;
            return Ok(());
        }
        match Known::of(option) {
            Some(Known::KeepAlive) => connection.keep_alive = true,
            Some(Known::Upgrade) => connection.upgrade = true,
            Some(Known::Te) => connection.te = true,
            // Dropping these because a peer says so would change what the message is.
            Some(Known::Host | Known::ContentLength | Known::Disguised) => {
                return Err(Fault::ConnectionOption);
            }
            // Removed or written anew in any case.
            Some(Known::TransferEncoding | Known::Http2Settings | Known::Proxy | Known::Connection) => {}
            _ => connection.nominates = true,
        }
        Ok(())
    }

    fn protocol(&mut self, protocol: &[u8]) -> Result<(), Fault> {
        if !protocol.iter().all(|&b| is_token_octet(b) || b == b'/') {
            return Err(Fault::ConnectionOption);
        }
        if !http2_or_h2c(protocol) {
            let websocket = protocol.eq_ignore_ascii_case(b"websocket");
            self.upgrade = match (self.upgrade, websocket) {
                (Upgrade::None, true) => Upgrade::WebSocket,
                _ => Upgrade::Other,
            };
        }
        Ok(())
    }
}

/// Whether this element of `Upgrade` offers HTTP/2, which Sluice never passes on.
pub(in crate::http) fn http2_or_h2c(protocol: &[u8]) -> bool {
    let is = |name: &[u8]| protocol.eq_ignore_ascii_case(name);
    is(b"h2c") || is(b"h2") || is(b"HTTP/2") || is(b"HTTP/2.0")
}

/// Whether a `Connection` field among `fields` nominates this name.
pub(in crate::http) fn is_nominated(fields: &Fields<'_>, name: &[u8]) -> bool {
    let mut connections = fields.clone().named(b"connection");
    connections.any(|field| elements(field.value).any(|option| option.eq_ignore_ascii_case(name)))
}

/// The names a head nominates, for when its octets are gone: they must not come back as trailers. Empty, and without
/// an allocation, for nearly every message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nominated(Box<[u8]>);

impl Nominated {
    /// Of a head with these fields.
    pub fn of(connection: Connection, fields: Fields<'_>) -> Self {
        if !connection.nominates {
            return Self::default();
        }
        let values: Vec<&[u8]> = fields.named(b"connection").map(|field| field.value).collect();
        Self(values.join(&b","[..]).into_boxed_slice())
    }

    /// Whether this name is one of them.
    pub fn contains(&self, name: &[u8]) -> bool {
        elements(&self.0).any(|option| option.eq_ignore_ascii_case(name))
    }
}
