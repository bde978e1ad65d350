//! A truststore as a Java virtual machine reads it: it knows no environment variable for a PEM bundle.
//!
//! The JKS format, which every JVM still opens whatever its default is (`keystore.type.compat`): a header, one entry for
//! each certificate, and a keyed SHA-1 over all of it, which is a check for damage and no secret.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

/// The password of a truststore, which guards nothing; the customary one.
pub const PASSWORD: &str = "changeit";

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;
/// What the digest is whitened with, as in `sun.security.provider.JavaKeyStore`.
const WHITENER: &[u8] = b"Mighty Aphrodite";

/// A truststore of these certificates (DER), `made_ms` being the time it is made.
pub fn write<'a>(certificates: impl IntoIterator<Item = &'a [u8]>, made_ms: u64) -> Vec<u8> {
    let certificates: Vec<_> = certificates.into_iter().collect();
    let mut out = Vec::new();
    for word in [MAGIC, VERSION, length(&certificates)] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for (number, certificate) in certificates.iter().enumerate() {
        out.extend_from_slice(&TRUSTED_CERTIFICATE.to_be_bytes());
        write_text(&mut out, &format!("sluice-{number}"));
        out.extend_from_slice(&made_ms.to_be_bytes());
        write_text(&mut out, "X.509");
        out.extend_from_slice(&length(certificate).to_be_bytes());
        out.extend_from_slice(certificate);
    }
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    for unit in PASSWORD.encode_utf16() {
        digest.update(&unit.to_be_bytes());
    }
    digest.update(WHITENER);
    digest.update(&out);
    out.extend_from_slice(digest.finish().as_ref());
    out
}

/// `DataOutputStream.writeUTF`, for ASCII.
fn write_text(out: &mut Vec<u8>, text: &str) {
    let octets = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&octets.to_be_bytes());
    out.extend_from_slice(text.as_bytes().get(..usize::from(octets)).unwrap_or_default());
}

fn length<T>(of: &[T]) -> u32 {
    u32::try_from(of.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_store_is_what_keytool_makes() {
        // Magic, version, no entries; then SHA-1 of the password, the whitener and these twelve octets.
        let store = write([], 0);
        assert_eq!(store.get(..12).unwrap(), [0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 0]);
        assert_eq!(store.len(), 12 + 20);
    }

    #[test]
    fn an_entry_holds_its_certificate() {
        let store = write([b"abc".as_slice()], 7);
        let entry = [
            &[0, 0, 0, 2, 0, 8][..],
            b"sluice-0",
            &[0, 0, 0, 0, 0, 0, 0, 7, 0, 5],
            b"X.509",
            &[0, 0, 0, 3],
            b"abc",
        ]
        .concat();
        assert_eq!(store.get(12..12 + entry.len()).unwrap(), entry);
    }
}
