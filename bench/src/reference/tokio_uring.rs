//! A yardstick on tokio-uring: read and write_all with 64 KiB a direction, default ring.

use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

use super::BUFFER_BYTES;
use super::request::{self, ESTABLISHED, UNREACHABLE};

/// Ring entries, as for the hand-written ring.
const ENTRIES: u32 = 4096;

/// Serves for ever.
pub(super) fn serve(address: SocketAddr) -> Result<()> {
    tokio_uring::builder().entries(ENTRIES).start(async {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        loop {
            let (client, _) = listener.accept().await.context("accept")?;
            tokio_uring::spawn(async { drop(tunnel(client).await) }); // a broken tunnel is the client's to count
        }
    })
}

async fn tunnel(client: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut head = Vec::new();
    let mut piece = Vec::with_capacity(4096);
    let request = loop {
        let (read, bytes) = client.read(piece).await;
        let count = read?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&bytes[..count]);
        piece = bytes;
        match request::parse(&head) {
            Ok(None) => {}
            Ok(Some(request)) if request.origin.is_none() => break request,
            Ok(Some(_)) => return client.write_all(request::BAD).await.0,
            Err(answer) => return client.write_all(answer).await.0,
        }
    };
    let Ok(upstream) = TcpStream::connect(request.target).await else {
        return client.write_all(UNREACHABLE).await.0;
    };
    upstream.set_nodelay(true)?;
    client.write_all(ESTABLISHED).await.0?;
    if head.len() > request.length {
        upstream.write_all(head.split_off(request.length)).await.0?;
    }
    let (client, upstream) = (Rc::new(client), Rc::new(upstream));
    tokio_uring::spawn(relay(client.clone(), upstream.clone()));
    relay(upstream, client).await
}

async fn relay(from: Rc<TcpStream>, to: Rc<TcpStream>) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let (read, filled) = from.read(buffer).await;
        let count = match read {
            Ok(count) if count > 0 => count,
            ended => {
                to.shutdown(Shutdown::Write)?;
                return ended.map(drop);
            }
        };
        let (sent, slice) = to.write_all(filled.slice(..count)).await;
        if let Err(error) = sent {
            from.shutdown(Shutdown::Both)?;
            return Err(error);
        }
        buffer = slice.into_inner();
    }
}
