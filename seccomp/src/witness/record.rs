//! A process as bytes: what a ring says of it once, however many notes it makes.
//!
//! `u32` pid, `u32` uid, `u64` start time, `u8` proxy variable (0 not looked at, 1 none, 2 some), then strings, each
//! behind its `u16` length: comm, exe, the number of arguments and they, the number of ancestors and they. The reader
//! takes whatever is well-formed; anything else is `None`.

use super::notes::{Process, ProxyVariable};
use crate::limits::{ANCESTORS_MAX, ARGS_MAX, PROCESS_RECORD_BYTES_MAX};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes that [`decode`] reads back as `process`, but for ancestors and arguments that found no room.
pub(super) fn encode(process: &Process) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend(process.pid.to_ne_bytes());
    bytes.extend(process.uid.to_ne_bytes());
    bytes.extend(process.start_time.to_ne_bytes());
    bytes.push(match process.proxy_variable {
        None => 0,
        Some(ProxyVariable::Absent) => 1,
        Some(ProxyVariable::Present) => 2,
    });
    string(&mut bytes, process.comm.as_bytes());
    string(&mut bytes, process.exe.as_os_str().as_bytes());
    list(&mut bytes, process.args.iter().map(|arg| arg.as_bytes()).take(ARGS_MAX));
    list(&mut bytes, process.ancestors.iter().map(|path| path.as_os_str().as_bytes()).take(ANCESTORS_MAX));
    bytes
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    let text = text.get(..usize::from(u16::MAX)).unwrap_or(text);
    bytes.extend((text.len() as u16).to_ne_bytes());
    bytes.extend(text);
}

/// As many of the strings as fit into a record, behind their number.
fn list<'a>(bytes: &mut Vec<u8>, texts: impl Iterator<Item = &'a [u8]>) {
    let at = bytes.len();
    bytes.push(0);
    for text in texts {
        // One byte is for the number of the list after this one.
        if bytes.len() + 2 + text.len() + 1 > PROCESS_RECORD_BYTES_MAX {
            break;
        }
        string(bytes, text);
        if let Some(number) = bytes.get_mut(at) {
            *number += 1;
        }
    }
}

/// The process in `bytes`; what is behind it does not matter.
pub(super) fn decode(bytes: &[u8]) -> Option<Process> {
    let mut rest = Rest(bytes);
    Some(Process {
        pid: u32::from_ne_bytes(rest.take()?),
        uid: u32::from_ne_bytes(rest.take()?),
        start_time: u64::from_ne_bytes(rest.take()?),
        proxy_variable: match u8::from_ne_bytes(rest.take()?) {
            0 => None,
            1 => Some(ProxyVariable::Absent),
            2 => Some(ProxyVariable::Present),
            _ => return None,
        },
        comm: rest.text()?.into(),
        exe: rest.path()?,
        args: rest.list(Rest::text)?.into_iter().map(Box::from).collect(),
        ancestors: rest.list(Rest::path)?.into(),
    })
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_ne_bytes(self.take()?));
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }

    fn text(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(self.string()?).into_owned())
    }

    fn path(&mut self) -> Option<Arc<Path>> {
        Some(Path::new(OsStr::from_bytes(self.string()?)).into())
    }

    fn list<T>(&mut self, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let number = u8::from_ne_bytes(self.take()?);
        (0..number).map(|_| one(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        Process {
            pid: 7,
            start_time: 1 << 40,
            exe: Path::new(OsStr::from_bytes(b"/bin/\xff")).into(),
            comm: "a) b".into(),
            uid: 1000,
            ancestors: [Path::new("/bin/sh").into(), Path::new("/bin/init").into()].into(),
            args: [Box::from("curl"), Box::from("--noproxy"), Box::from("")].into(),
            proxy_variable: Some(ProxyVariable::Present),
        }
    }

    #[test]
    fn a_process_survives_the_way_through_bytes() {
        assert_eq!(decode(&encode(&process())), Some(process()));
        let mut padded = encode(&process());
        padded.extend([0xff; 9]);
        assert_eq!(decode(&padded), Some(process()));
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_either_refused_or_a_process() {
        let bytes = encode(&process());
        for end in 0..bytes.len() {
            assert_eq!(decode(bytes.get(..end).unwrap()), None, "cut at {end}");
        }
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                *bytes.get_mut(at).unwrap() ^= flip;
                let _ = decode(&bytes); // must not panic
            }
        }
    }

    #[test]
    fn a_record_keeps_its_bound_whatever_the_paths() {
        let long = Process {
            exe: Path::new(OsStr::from_bytes(&[b'x'; 4096])).into(),
            ancestors: vec![Path::new(OsStr::from_bytes(&[b'y'; 4096])).into(); ANCESTORS_MAX].into(),
            args: vec![Box::from("z".repeat(2000).as_str()); 40].into(),
            ..process()
        };
        let bytes = encode(&long);
        assert!(bytes.len() <= PROCESS_RECORD_BYTES_MAX, "{}", bytes.len());
        assert_eq!(decode(&bytes).unwrap().exe, long.exe);
    }
}
