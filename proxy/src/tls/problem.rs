//! What went wrong with an origin's TLS: a closed list, and the same in words.
//!
//! Pure. rustls tells precisely what it did not like; a client and an operator want to know whose fault it is and what
//! to do.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

use super::roots::SelfSigned;

/// What is wrong, as a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Problem {
    /// The certificate's time is over.
    Expired,
    /// The certificate's time has not begun.
    NotYetValid,
    /// The certificate is for other names.
    WrongName,
    /// Nobody we trust has issued it.
    UnknownIssuer,
    /// It vouches for itself.
    SelfSigned,
    /// It has been revoked.
    Revoked,
    /// Anything else about the certificate.
    BadCertificate,
    /// The origin wants a certificate of the client's.
    WantsClientCertificate,
    /// No TLS version, cipher or key exchange in common.
    Incompatible,
    /// The origin speaks no HTTP/1.1.
    NoHttp11,
    /// The origin refused the handshake.
    Alert,
    /// What the origin sent is no TLS.
    NotTls,
    /// The origin closed in the middle of it.
    Closed,
    /// The origin took too long.
    Timeout,
}

impl Problem {
    /// Classifies what rustls says.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(certificate) => Self::of_certificate(certificate),
            Error::NoCertificatesPresented => Self::BadCertificate,
            Error::AlertReceived(AlertDescription::CertificateRequired) => Self::WantsClientCertificate,
            Error::AlertReceived(AlertDescription::NoApplicationProtocol) | Error::NoApplicationProtocol => {
                Self::NoHttp11
            }
            Error::AlertReceived(
                AlertDescription::HandshakeFailure
                | AlertDescription::ProtocolVersion
                | AlertDescription::InsufficientSecurity,
            )
            | Error::PeerIncompatible(_) => Self::Incompatible,
            Error::AlertReceived(_) => Self::Alert,
            _ => Self::NotTls,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::Revoked => Self::Revoked,
            CertificateError::Other(other) if other.0.is::<SelfSigned>() => Self::SelfSigned,
            _ => Self::BadCertificate,
        }
    }

    /// The stable word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::WrongName => "certificate_wrong_name",
            Self::UnknownIssuer => "certificate_unknown_issuer",
            Self::SelfSigned => "certificate_self_signed",
            Self::Revoked => "certificate_revoked",
            Self::BadCertificate => "certificate_invalid",
            Self::WantsClientCertificate => "client_certificate_required",
            Self::Incompatible => "tls_incompatible",
            Self::NoHttp11 => "tls_no_http11",
            Self::Alert => "tls_refused",
            Self::NotTls => "tls_malformed",
            Self::Closed => "tls_closed",
            Self::Timeout => "tls_timeout",
        }
    }

    /// One ASCII line that holds no byte of a peer's.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Expired => "the origin's certificate has expired",
            Self::NotYetValid => "the origin's certificate is not valid yet",
            Self::WrongName => "the origin's certificate is for another name",
            Self::UnknownIssuer => "the origin's certificate is issued by an unknown authority",
            Self::SelfSigned => "the origin's certificate is self-signed",
            Self::Revoked => "the origin's certificate has been revoked",
            Self::BadCertificate => "the origin's certificate is not acceptable",
            Self::WantsClientCertificate => "the origin wants a client certificate",
            Self::Incompatible => "the origin and the proxy have no TLS version or cipher in common",
            Self::NoHttp11 => "the origin does not speak HTTP/1.1 inside TLS",
            Self::Alert => "the origin refused the TLS handshake",
            Self::NotTls => "the origin's TLS is malformed",
            Self::Closed => "the origin closed the connection in the TLS handshake",
            Self::Timeout => "the TLS handshake with the origin took too long",
        }
    }

    /// Whether it is about the certificate.
    pub const fn is_certificate(self) -> bool {
        matches!(
            self,
            Self::Expired
                | Self::NotYetValid
                | Self::WrongName
                | Self::UnknownIssuer
                | Self::SelfSigned
                | Self::Revoked
                | Self::BadCertificate
        )
    }

    /// What to do about it, where there is something to do.
    pub const fn remedy(self) -> Option<&'static str> {
        match self {
            Self::UnknownIssuer | Self::SelfSigned => Some(
                "if the origin belongs to a private authority, the operator can add it (--upstream-ca, tls.upstream_ca)",
            ),
            Self::WantsClientCertificate => Some(
                "a client's own certificate cannot pass through inspection; the operator can give the host an endpoint with tls: skip and without protocol",
            ),
            Self::NoHttp11 => Some(
                "only HTTP/1.1 is inspected; the operator can give the host an endpoint with tls: skip and without protocol",
            ),
            Self::Incompatible => Some("TLS 1.2 is the oldest version spoken"),
            _ => None,
        }
    }
}

/// The whole story in one line, such as `expired on 2026-01-01, 3 days ago`. What of it came from the origin is cut and
/// shown as printable ASCII.
pub fn words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            format!("expired on {}, {} ago", day(*not_after), span(*not_after, *time))
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            format!("is valid from {} on, in {}", day(*not_before), span(*time, *not_before))
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented }) => {
            let mut text = format!("is not for {}", expected.to_str());
            if presented.is_empty() {
                text.push_str(" (it names nobody)");
            } else {
                let _ = write!(text, " but for {}", names(presented));
            }
            text
        }
        Error::NoCertificatesPresented => "is missing".into(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "is issued by an authority that is not trusted here".into()
        }
        Error::InvalidCertificate(CertificateError::Other(other)) if other.0.is::<SelfSigned>() => {
            "is self-signed".into()
        }
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "bears a signature that its issuer did not make".into()
        }
        Error::InvalidCertificate(other) => printable(&format!("is not acceptable: {other}")),
        other => printable(&other.to_string()),
    }
}

/// Names of a certificate that a sentence shows, and characters of each.
const NAMES_MAX: usize = 4;
const CHARS_MAX: usize = 200;

fn names(presented: &[String]) -> String {
    let shown: Vec<String> = presented
        .iter()
        .take(NAMES_MAX)
        // webpki shows a name as `DnsName("a.example")`.
        .map(|name| name.split('"').nth(1).unwrap_or(name).chars().take(100).collect())
        .collect();
    let more = presented.len().saturating_sub(NAMES_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    printable(&format!("{}{more}", shown.join(", ")))
}

fn printable(text: &str) -> String {
    let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    text.chars().take(CHARS_MAX).map(plain).collect()
}

fn day(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds)
        .map_or_else(|_| "an impossible date".into(), |at| at.to_string().chars().take(10).collect())
}

fn span(from: UnixTime, to: UnixTime) -> String {
    let seconds = Duration::from_secs(to.as_secs().saturating_sub(from.as_secs())).as_secs();
    match (seconds / 86_400, seconds / 3_600) {
        (0, 0) => "less than an hour".into(),
        (0, 1) => "1 hour".into(),
        (0, hours) => format!("{hours} hours"),
        (1, _) => "1 day".into(),
        (days, _) => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::OtherError;
    use std::sync::Arc;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_date_is_told_with_its_distance() {
        let error = Error::InvalidCertificate(CertificateError::ExpiredContext {
            time: at(1_700_000_000),
            not_after: at(1_700_000_000 - 3 * 86_400),
        });
        assert_eq!(words(&error), "expired on 2023-11-11, 3 days ago");
        assert_eq!(Problem::of(&error), Problem::Expired);
    }

    #[test]
    fn a_wrong_name_is_told_with_the_right_ones_and_without_control_characters() {
        let error = Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected: "a.example".try_into().unwrap(),
            presented: vec!["DnsName(\"b.example\")".into(), "DnsName(\"c\u{1b}\n\")".into()],
        });
        assert_eq!(words(&error), "is not for a.example but for b.example, c??");
        assert_eq!(Problem::of(&error), Problem::WrongName);
    }

    #[test]
    fn who_vouches_for_himself_is_told_apart_from_an_unknown_authority() {
        let own = Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(SelfSigned))));
        assert_eq!((Problem::of(&own), words(&own).as_str()), (Problem::SelfSigned, "is self-signed"));
        let other = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(Problem::of(&other), Problem::UnknownIssuer);
    }
}
