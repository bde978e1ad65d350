//! Taking connections from a listener, without ever being stopped by a shortage.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;

use super::socket::{Socket, try_accept};
use super::{Behind, Core, session};

/// Connections taken before the others get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How long to wait when descriptors or memory have run out; the backlog holds the clients meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stopped` resolves (its sender is dropped).
pub(super) async fn accept(
    core: Rc<Core>,
    behind: Behind,
    listener: TcpListener,
    stopped: oneshot::Receiver<()>,
) {
    let on_ring = listener.try_clone().and_then(monoio::net::TcpListener::from_std);
    let on_ring = match on_ring {
        Ok(on_ring) => on_ring,
        Err(error) => return tracing::error!(%error, "a listener cannot be served"),
    };
    // A connection's own address is the listener's, unless that is any.
    let local = listener.local_addr().ok().filter(|local| !local.ip().is_unspecified());
    let mut stopped = std::pin::pin!(stopped);
    loop {
        let ready = on_ring.readable(false);
        monoio::select! {
            _ = &mut stopped => return,
            outcome = ready => if let Err(error) = outcome {
                tracing::error!(%error, "a listener failed");
                return;
            },
        }
        if let Err(error) = take_some(&core, &behind, &listener, local) {
            if !is_shortage(&error) {
                tracing::error!(%error, "a listener failed");
                return;
            }
            core.measures.accept_pauses.increment(1);
            monoio::time::sleep(PAUSE).await;
        }
    }
}

fn take_some(
    core: &Rc<Core>,
    behind: &Behind,
    listener: &TcpListener,
    local: Option<SocketAddr>,
) -> io::Result<()> {
    for _ in 0..ACCEPTS_PER_TURN {
        match try_accept(listener) {
            Ok(Some((fd, peer))) => {
                let socket = Socket::adopt(fd)?;
                monoio::spawn(session::run(Rc::clone(core), behind.clone(), socket, (peer, local)));
            }
            Ok(None) => return Ok(()),
            // The client was gone before it was taken; accept(2) also hands on pending network errors.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}
