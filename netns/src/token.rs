//! The secret in a sandbox's log prefix.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// 64 random bits that only the host and the kernel's rule know, written as 16 hex digits.
///
/// A workload that may change the rules of its own namespace could log lines that name another sandbox. It cannot
/// guess that sandbox's token, so a line counts only if name and token belong together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogToken([u8; 8]);

impl LogToken {
    /// A fresh token from the kernel's random source.
    pub fn random() -> Result<Self, Error> {
        let mut bytes = [0; 8];
        let source = "/dev/urandom";
        File::open(source)
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(Error::io("read random bytes from", source))?;
        Ok(Self(bytes))
    }
}

impl LogToken {
    /// The token as a number, as log lines are compared.
    pub fn value(self) -> u64 {
        u64::from_be_bytes(self.0)
    }
}

impl fmt::Display for LogToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// A secret stays out of debug output.
impl fmt::Debug for LogToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("LogToken(…)")
    }
}

impl FromStr for LogToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let hex = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let value = if hex { u64::from_str_radix(text, 16).ok() } else { None };
        value.map(|value| Self(value.to_be_bytes())).ok_or_else(|| Error::Token(text.to_owned()))
    }
}

impl TryFrom<String> for LogToken {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<LogToken> for String {
    fn from(token: LogToken) -> Self {
        token.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::LogToken;

    #[test]
    fn a_token_survives_being_written_and_read() {
        let token = LogToken::random().expect("the kernel gives random bytes");
        assert_eq!(token.to_string().parse::<LogToken>().expect("own text"), token);
        assert_eq!(token.to_string().len(), 16);
    }

    #[test]
    fn two_tokens_differ() {
        assert_ne!(LogToken::random().expect("random"), LogToken::random().expect("random"));
    }

    #[test]
    fn other_texts_are_no_tokens() {
        for bad in ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "+123456789abcdef"] {
            assert!(bad.parse::<LogToken>().is_err(), "{bad:?} was taken");
        }
    }
}
