//! The admin API's Unix socket: made so that nobody else can reach it, even for a moment, and nobody else's is taken.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Only its owner may connect.
const MODE: u32 = 0o600;
/// Pause after an accept that failed for want of descriptors.
const PAUSE: Duration = Duration::from_millis(50);
/// Strangers that are told so at a time; beyond it they are only cut off.
const TURNED_AWAY_MAX: usize = 16;
/// How long a stranger may take to hear it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error("another daemon answers on {0}; stop it, or let `admin_socket` name another path")]
    Taken(PathBuf),
    /// Something else is there.
    #[error("{0} is there and is not a socket; remove it, or let `admin_socket` name another path")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error(
        "cannot {action} {path}: {source}; see that the directory can be written, or choose another `admin_socket`"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The bound socket. Dropped, its file is removed.
pub struct AdminSocket {
    listener: Option<StdListener>,
    path: PathBuf,
    /// Held for life: two daemons that start at once cannot both find a stale socket.
    _lock: Flock<File>,
}

impl AdminSocket {
    /// Binds `path`, whose directory is made if need be. A socket that is there is replaced only if nobody answers.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { action, path, source }
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("make the directory", directory))?;
        }
        let lock = lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            Ok(_) if StdStream::connect(path).is_ok() => return Err(SocketError::Taken(path.to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at", path)(error)),
        }
        // Bound under another name and put in place when nobody but the owner can connect any more.
        let unfinished = beside(path, &format!(".{}", std::process::id()));
        let _ = fs::remove_file(&unfinished);
        let listener = StdListener::bind(&unfinished).map_err(failed("bind", &unfinished))?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(MODE))
            .and_then(|()| fs::rename(&unfinished, path))
            .and_then(|()| listener.set_nonblocking(true))
            .map_err(failed("put in place", path))?;
        Ok(Self { listener: Some(listener), path: path.to_owned(), _lock: lock })
    }

    /// The socket for the runtime this is called in; once.
    pub fn listener(&mut self) -> io::Result<Guarded> {
        let listener =
            self.listener.take().ok_or_else(|| io::Error::other("the socket is served already"))?;
        Ok(Guarded {
            listener: UnixListener::from_std(listener)?,
            owner: nix::unistd::geteuid().as_raw(),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
        })
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn lock(path: &Path) -> Result<Flock<File>, SocketError> {
    let path_of_lock = beside(path, ".lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE).custom_flags(libc::O_NOFOLLOW);
    let failed = |source| SocketError::Io { action: "open the lock", path: path_of_lock.clone(), source };
    let file = options.open(&path_of_lock).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::Error::EWOULDBLOCK => SocketError::Taken(path.to_owned()),
        errno => SocketError::Io { action: "lock", path: path_of_lock.clone(), source: errno.into() },
    })
}

/// The listener, with a doorkeeper: only root and the daemon's own user come in, whatever the file's mode has become.
pub struct Guarded {
    listener: UnixListener,
    owner: u32,
    /// Those who are being told that they may not come in.
    turned_away: Arc<Semaphore>,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its process, in the daemon's pid namespace; none if it is in another.
    pub pid: Option<u32>,
}

/// What somebody else is told, whatever they ask.
fn turned_away() -> String {
    const BODY: &str =
        "{\"error\":\"forbidden\",\"message\":\"only root and the daemon's user may use the admin API\"}";
    let length = BODY.len();
    format!(
        "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{BODY}"
    )
}

async fn turn_away(mut stream: UnixStream) -> io::Result<()> {
    stream.write_all(turned_away().as_bytes()).await?;
    stream.shutdown().await?;
    let mut ignored = [0; 1024];
    while stream.read(&mut ignored).await? > 0 {}
    Ok(())
}

impl Connected<IncomingStream<'_, Guarded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Guarded>) -> Self {
        *stream.remote_addr()
    }
}

impl Listener for Guarded {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (UnixStream, Peer) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(%error, "the admin socket cannot accept");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == self.owner => {
                    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
                    return (stream, Peer { pid });
                }
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "somebody else was turned away from the admin socket");
                    // A connection that is closed at once looks to clients like one that never was.
                    if let Ok(place) = Arc::clone(&self.turned_away).try_acquire_owned() {
                        tokio::spawn(async move {
                            let _ = tokio::time::timeout(LAST_WORDS, turn_away(stream)).await;
                            drop(place);
                        });
                    }
                }
                Err(error) => tracing::error!(%error, "who is at the admin socket cannot be told"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { pid: Some(std::process::id()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_its_owners_alone_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/admin.sock");
        let socket = AdminSocket::bind(&path).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, MODE);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(StdListener::bind(&path).unwrap());
        let socket = AdminSocket::bind(&path).unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(SocketError::Taken(_))));
        drop(socket);
        // One of another program, which does not know the lock.
        let _theirs = StdListener::bind(&path).unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(SocketError::Taken(_))));
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        fs::write(&path, b"precious").unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
