//! Happy eyeballs (RFC 8305): addresses of both families, one attempt after the other, each a little later than the one
//! before unless that one has failed already.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

/// Connection Attempt Delay (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses tried for one destination; more are left alone.
const ATTEMPTS_MAX: usize = 8;

/// Orders addresses as RFC 8305 section 4 asks: as given, but with the families taking turns, IPv6 first.
pub(crate) fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    // The usual case costs no allocation.
    if addresses.len() == 1 {
        return addresses;
    }
    let mut v6: VecDeque<_> = addresses.iter().filter(|at| at.is_ipv6()).copied().collect();
    let mut v4: VecDeque<_> = addresses.iter().filter(|at| at.is_ipv4()).copied().collect();
    let mut ordered = Vec::with_capacity(addresses.len().min(ATTEMPTS_MAX));
    while ordered.len() < ATTEMPTS_MAX && !(v6.is_empty() && v4.is_empty()) {
        ordered.extend(v6.pop_front());
        ordered.extend(v4.pop_front());
    }
    ordered.truncate(ATTEMPTS_MAX);
    ordered
}

/// Dials `addresses` in order and returns the first connection; the last error when none comes about.
///
/// `dial` starts one attempt; dropping its future ends the attempt. `sleep` waits.
pub(crate) async fn race<T, D, S>(
    addresses: &[SocketAddr],
    mut dial: impl FnMut(SocketAddr) -> D,
    mut sleep: impl FnMut(Duration) -> S,
) -> io::Result<(T, SocketAddr)>
where
    D: Future<Output = io::Result<T>>,
    S: Future<Output = ()>,
{
    // The usual case costs no allocation.
    if let [only] = addresses {
        return dial(*only).await.map(|connection| (connection, *only));
    }
    let mut waiting = addresses.iter().copied();
    let mut running: Vec<(SocketAddr, Pin<Box<D>>)> = Vec::new();
    let mut last_error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut delay: Option<Pin<Box<S>>> = None;
    std::future::poll_fn(move |context| {
        loop {
            let mut began = false;
            if delay.as_mut().is_none_or(|delay| delay.as_mut().poll(context).is_ready()) {
                delay = None;
                if let Some(next) = waiting.next() {
                    running.push((next, Box::pin(dial(next))));
                    delay = Some(Box::pin(sleep(ATTEMPT_DELAY)));
                    began = true;
                }
            }
            let mut failed = false;
            let mut index = 0;
            while let Some((address, attempt)) = running.get_mut(index) {
                match attempt.as_mut().poll(context) {
                    Poll::Ready(Ok(connection)) => return Poll::Ready(Ok((connection, *address))),
                    Poll::Ready(Err(error)) => {
                        last_error = error;
                        failed = true;
                        drop(running.swap_remove(index));
                    }
                    Poll::Pending => index += 1,
                }
            }
            if !failed {
                // A delay that has just begun must be polled once, or nothing wakes us when it is over.
                if began {
                    continue;
                }
                return Poll::Pending;
            }
            if running.is_empty() && waiting.len() == 0 {
                let error = std::mem::replace(&mut last_error, io::ErrorKind::Other.into());
                return Poll::Ready(Err(error));
            }
            // A failure starts the next attempt at once.
            delay = None;
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::{pending, ready};
    use std::task::{Context, Waker};

    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 80))
    }

    fn now<F: Future>(future: F) -> Poll<F::Output> {
        Box::pin(future).as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn families_take_turns_ipv6_first() {
        let v6: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
        assert_eq!(interleave(vec![at(1), at(2), at(3), v6]), [v6, at(1), at(2), at(3)]);
        assert_eq!(interleave(vec![at(1); 50]).len(), ATTEMPTS_MAX);
    }

    #[test]
    fn a_failure_starts_the_next_attempt_at_once() {
        let tried = RefCell::new(Vec::new());
        let dial = |address: SocketAddr| {
            tried.borrow_mut().push(address);
            ready(if address == at(3) { Ok("made") } else { Err(io::ErrorKind::ConnectionRefused.into()) })
        };
        let outcome = now(race(&[at(1), at(2), at(3), at(4)], dial, |_| pending()));
        assert!(matches!(outcome, Poll::Ready(Ok(("made", address))) if address == at(3)));
        assert_eq!(*tried.borrow(), [at(1), at(2), at(3)]);
    }

    #[test]
    fn a_slow_attempt_is_not_given_up_when_the_next_begins() {
        let dial = |address: SocketAddr| async move {
            if address == at(1) {
                pending::<()>().await;
            }
            Ok::<_, io::Error>("second")
        };
        let outcome = now(race(&[at(1), at(2)], dial, |_| ready(())));
        assert!(matches!(outcome, Poll::Ready(Ok(("second", address))) if address == at(2)));
    }

    #[test]
    fn when_all_fail_the_last_error_is_told() {
        let dial = |_| ready(Err::<(), _>(io::Error::from(io::ErrorKind::ConnectionRefused)));
        let outcome = now(race(&[at(1), at(2)], dial, |_| pending()));
        assert!(
            matches!(outcome, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
        );
    }
}
