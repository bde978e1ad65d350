//! Certificate chains of origins that were verified a moment ago: the same octets for the same name need no second look.
//!
//! Each handshake with an origin checks the signature under its certificate and that of the handshake itself; only the
//! second is new each time. What is remembered holds for a minute at most, and only where the chain is valid at both ends
//! of that minute: a chain is valid in one stretch of time, so no certificate is believed beyond its end.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use rustls::Error;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

/// How long a verdict holds, s.
const REMEMBERED_S: u64 = 60;
/// Chains remembered, some 50 octets each; at the bound all are forgotten.
const CHAINS_MAX: usize = 4_096;

type Key = [u8; SHA256_OUTPUT_LEN];

/// What was verified, and when.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<HashMap<Key, UnixTime>>);

/// A chain with the name it was shown for.
pub(super) struct Shown<'a> {
    pub(super) end_entity: &'a CertificateDer<'a>,
    pub(super) intermediates: &'a [CertificateDer<'a>],
    pub(super) name: &'a ServerName<'a>,
}

impl Verified {
    /// The verdict on a chain: remembered, or by `verify`, which is asked for a moment.
    pub(super) fn or_verify(
        &self,
        shown: &Shown<'_>,
        now: UnixTime,
        verify: impl Fn(UnixTime) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let key = shown.key();
        if self.lock().get(&key).is_some_and(|&since| holds(since, now)) {
            return Ok(());
        }
        verify(now)?;
        let end = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs() + REMEMBERED_S));
        if verify(end).is_ok() {
            let mut known = self.lock();
            if known.len() >= CHAINS_MAX {
                known.clear();
            }
            known.insert(key, now);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, UnixTime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn holds(since: UnixTime, now: UnixTime) -> bool {
    (since.as_secs()..=since.as_secs().saturating_add(REMEMBERED_S)).contains(&now.as_secs())
}

impl Shown<'_> {
    /// Every part with its length, so that no two chains are written alike.
    fn key(&self) -> Key {
        let mut digest = Context::new(&SHA256);
        let name = self.name.to_str();
        let certificates = std::iter::once(self.end_entity).chain(self.intermediates);
        for part in std::iter::once(name.as_bytes()).chain(certificates.map(AsRef::as_ref)) {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        let mut key = Key::default();
        key.copy_from_slice(digest.finish().as_ref());
        key
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use rustls::CertificateError;

    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    /// Asks about a chain that is valid up to 1,000 s; says whether it passed and how often it was verified for that.
    fn ask(known: &Verified, certificate: &[u8], name: &str, now: u64) -> (bool, u32) {
        let certificate = CertificateDer::from(certificate);
        let name = ServerName::try_from(name).unwrap();
        let shown = Shown { end_entity: &certificate, intermediates: &[], name: &name };
        let asked = Cell::new(0);
        let verdict = known.or_verify(&shown, at(now), |moment| {
            asked.set(asked.get() + 1);
            if moment.as_secs() <= 1_000 { Ok(()) } else { Err(CertificateError::Expired.into()) }
        });
        (verdict.is_ok(), asked.get())
    }

    #[test]
    fn the_same_chain_is_not_verified_twice_within_a_minute() {
        let known = Verified::default();
        assert_eq!(ask(&known, b"a", "a.example", 100), (true, 2));
        assert_eq!(ask(&known, b"a", "a.example", 160), (true, 0));
        assert_eq!(ask(&known, b"a", "a.example", 161), (true, 2));
        // The clock was set back.
        assert_eq!(ask(&known, b"a", "a.example", 99), (true, 2));
    }

    #[test]
    fn another_certificate_or_another_name_is_another_chain() {
        let known = Verified::default();
        ask(&known, b"a", "a.example", 100);
        assert_eq!(ask(&known, b"b", "a.example", 100), (true, 2));
        assert_eq!(ask(&known, b"a", "b.example", 100), (true, 2));
    }

    #[test]
    fn a_chain_is_never_believed_beyond_its_end() {
        let known = Verified::default();
        // It ends within the minute: nothing is remembered.
        assert_eq!(ask(&known, b"a", "a.example", 990), (true, 2));
        assert_eq!(ask(&known, b"a", "a.example", 1_000), (true, 2));
        assert_eq!(ask(&known, b"a", "a.example", 1_001), (false, 1));
    }

    #[test]
    fn a_refused_chain_is_refused_again_and_many_chains_are_bounded() {
        let known = Verified::default();
        assert_eq!(ask(&known, b"a", "a.example", 2_000), (false, 1));
        assert_eq!(ask(&known, b"a", "a.example", 2_000), (false, 1));
        for number in 0..5_000_u32 {
            ask(&known, &number.to_be_bytes(), "a.example", 100);
        }
        assert!(known.lock().len() <= CHAINS_MAX);
    }
}
