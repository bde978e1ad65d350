//! Yardsticks on monoio: recv and write_all with 64 KiB a direction, with and without the ring flags.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use monoio::io::{
    AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};

use super::BUFFER_BYTES;
use super::request::{self, ESTABLISHED, UNREACHABLE};

/// Ring entries, as for the hand-written ring.
const ENTRIES: u32 = 4096;

/// Serves for ever; `flags` sets SINGLE_ISSUER, DEFER_TASKRUN and COOP_TASKRUN.
pub(super) fn serve(address: SocketAddr, flags: bool) -> Result<()> {
    let mut builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(ENTRIES);
    if flags {
        let mut ring = io_uring::IoUring::builder();
        ring.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
        builder = builder.uring_builder(ring);
    }
    let mut runtime =
        builder.build().context("io_uring_setup: Linux 6.1 and a container that allows it are needed")?;
    runtime.block_on(async {
        let options = ListenerOpts::new().backlog(4096).reuse_port(false);
        let listener = TcpListener::bind_with_config(address, &options)
            .with_context(|| format!("cannot listen on {address}"))?;
        loop {
            let (client, _) = listener.accept().await.context("accept")?;
            monoio::spawn(async { drop(tunnel(client).await) }); // a broken tunnel is the client's to count
        }
    })
}

async fn tunnel(mut client: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut head = Vec::new();
    let mut piece = Vec::with_capacity(4096);
    let request = loop {
        let (read, bytes) = client.read(piece).await;
        if read? == 0 {
            return Ok(());
        }
        head.extend_from_slice(&bytes);
        piece = bytes;
        match request::parse(&head) {
            Ok(None) => {}
            Ok(Some(request)) if request.origin.is_none() => break request,
            Ok(Some(_)) => return client.write_all(request::BAD).await.0.map(drop),
            Err(answer) => return client.write_all(answer).await.0.map(drop),
        }
    };
    let Ok(mut upstream) = TcpStream::connect_addr(request.target).await else {
        return client.write_all(UNREACHABLE).await.0.map(drop);
    };
    upstream.set_nodelay(true)?;
    client.write_all(ESTABLISHED).await.0?;
    if head.len() > request.length {
        upstream.write_all(head.split_off(request.length)).await.0?;
    }
    let (from_client, to_client) = client.into_split();
    let (from_upstream, to_upstream) = upstream.into_split();
    let (up, down) = monoio::join!(relay(from_client, to_upstream), relay(from_upstream, to_client));
    up.and(down)
}

async fn relay(mut from: OwnedReadHalf<TcpStream>, mut to: OwnedWriteHalf<TcpStream>) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let (read, filled) = from.read(buffer).await;
        if read? == 0 {
            return to.shutdown().await;
        }
        let (sent, emptied) = to.write_all(filled).await;
        sent?;
        buffer = emptied;
    }
}
