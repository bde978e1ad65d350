//! The yardstick of ping-pong: io_uring recv and send on a hand-written ring, one system call for a whole batch.
//!
//! The life of a tunnel: the multishot accept makes its `Tunnel`; every completion is an `(Action, result)` that the
//! tunnel answers with the next operations; when both directions are over and nothing is in flight it is dropped.

mod queue;
mod tunnel;

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};

use crate::socket;
use queue::{Completion, Queue};
use tunnel::{Action, Tunnel};

/// Serves for ever.
pub(super) fn serve(address: SocketAddr) -> Result<()> {
    let listener = socket::listen(address, false).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(false)?; // the ring waits
    let mut queue = Queue::new()?;
    let mut tunnels: Vec<Option<Box<Tunnel>>> = Vec::new();
    let mut free = Vec::new();
    let mut buffers = Vec::new();
    queue.accept(listener.as_raw_fd())?;
    let mut completions = Vec::new();
    loop {
        queue.wait(&mut completions)?;
        for completion in completions.drain(..) {
            let Completion::Of { slot, action, result } = completion else {
                let Completion::Accepted { socket, more } = completion else {
                    bail!("accept failed: {completion:?}")
                };
                if !more {
                    queue.accept(listener.as_raw_fd())?;
                }
                let slot = free.pop().unwrap_or(tunnels.len());
                let mut tunnel = Box::new(Tunnel::new(socket, slot, &mut buffers));
                tunnel.begin(&mut queue)?;
                match tunnels.get_mut(slot) {
                    Some(place) => *place = Some(tunnel),
                    None => tunnels.push(Some(tunnel)),
                }
                continue;
            };
            let Some(Some(tunnel)) = tunnels.get_mut(slot) else { bail!("a completion of no tunnel") };
            if tunnel.completed(action, result, &mut queue)? == tunnel::Life::Over {
                tunnel.retire(&mut buffers);
                tunnels[slot] = None;
                free.push(slot);
            }
        }
    }
}

/// What an operation was for, packed into its user data with the tunnel's slot.
impl Action {
    const ALL: [Self; 7] =
        [Self::Head, Self::Dial, Self::Answer, Self::RecvUp, Self::SendUp, Self::RecvDown, Self::SendDown];

    fn pack(self, slot: usize) -> u64 {
        (slot as u64) << 8 | self as u64
    }

    fn unpack(data: u64) -> Option<(usize, Self)> {
        let action = Self::ALL.into_iter().find(|action| *action as u64 == data & 0xff)?;
        Some(((data >> 8) as usize, action))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_carries_slot_and_action() {
        for action in Action::ALL {
            assert_eq!(Action::unpack(action.pack(70_000)), Some((70_000, action)));
        }
        assert_eq!(Action::unpack(u64::MAX), None);
    }
}
