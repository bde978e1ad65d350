//! The monitor's thread: look, hand over, wait.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep, sleep_until};

use super::alert::Alert;
use super::counters::{Counters, add};
use super::place;
use super::sources::{Kmsg, Nflog, SourceId, Turn, monotonic_us};
use super::{MonitorError, Settings, Sink};
use crate::kmsg;
use crate::limits::{NFLOG_LAST_TURNS, NUDGES_IN_VAIN_MAX};
use crate::loss::Sequence;
use crate::nflog;

/// What other threads ask for.
pub(super) enum Command<S> {
    Stop,
    Nudge,
    Drain(SyncSender<()>),
    With(Box<dyn FnOnce(&mut S) + Send>),
    Watch(SourceId, nflog::Socket),
    Unwatch(SourceId),
}

/// The thread's state. A source is `due` when it may have records that were not read yet.
pub(super) struct Driver<S> {
    sink: S,
    inbox: UnboundedReceiver<Command<S>>,
    counters: Arc<Counters>,
    kmsg: Option<(Kmsg, bool)>,
    nflog: Vec<(Nflog, bool)>,
    alert: Alert,
    /// A nudge came while the alert rests. Those after it are not even sent: a flood does not wake this thread.
    held_nudge: bool,
    /// Nudges since an attempt was found. Many mean a flood whose lines the fence's limit suppresses.
    nudges_in_vain: u32,
    /// Who waits for the next time that all sources are empty.
    drains: Vec<SyncSender<()>>,
    tick: Duration,
    /// When [`Sink::idle`] must have been called again.
    next_tick: Pin<Box<Sleep>>,
    /// Something was handed over since [`Sink::idle`] was called last.
    news: bool,
    stopping: bool,
}

impl<S: Sink> Driver<S> {
    /// The thread's main function. Says on `ready` that the sources are being read.
    pub(super) fn run(
        settings: &Settings,
        kmsg: Option<(kmsg::Reader, Sequence)>,
        sink: S,
        inbox: UnboundedReceiver<Command<S>>,
        counters: Arc<Counters>,
        ready: &SyncSender<()>,
    ) -> Result<S, MonitorError> {
        place::on_core(settings.core)?;
        place::first();
        let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).map_err(MonitorError::Runtime)?;
        runtime.block_on(async {
            let mut driver =
                Self::new(settings, kmsg, sink, inbox, counters).map_err(MonitorError::Runtime)?;
            let _ = ready.send(());
            driver.serve().await.map_err(MonitorError::Read)?;
            Ok(driver.sink)
        })
    }

    fn new(
        settings: &Settings,
        kmsg: Option<(kmsg::Reader, Sequence)>,
        sink: S,
        inbox: UnboundedReceiver<Command<S>>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let kmsg = kmsg.map(|(reader, sequence)| Kmsg::new(reader, sequence)).transpose()?;
        Ok(Self {
            sink,
            inbox,
            counters,
            kmsg: kmsg.map(|kmsg| (kmsg, true)),
            nflog: Vec::new(),
            alert: Alert::new(settings.poll)?,
            held_nudge: false,
            nudges_in_vain: 0,
            drains: Vec::new(),
            tick: settings.tick,
            next_tick: Box::pin(sleep_until(Instant::now() + settings.tick)),
            news: false,
            stopping: false,
        })
    }

    async fn serve(&mut self) -> io::Result<()> {
        while !self.stopping {
            self.look()?;
            self.obey()?;
            if self.anything_due() {
                // Let the reactor see the other sources, and commands their sender's wake-up.
                tokio::task::yield_now().await;
                continue;
            }
            self.caught_up();
            self.wait().await?;
        }
        Ok(())
    }

    /// Gives every due source its turn.
    fn look(&mut self) -> io::Result<()> {
        let before = self.counters.totals().attempts;
        self.look_at_kmsg(before)?;
        let (sink, counters) = (&mut self.sink, &self.counters);
        let behind_kmsg = counters.totals().attempts;
        self.nflog.retain_mut(|(nflog, due)| {
            // One namespace's trouble is not the others'.
            let turn = if *due { nflog.turn(sink, counters) } else { Ok(Turn::Empty) };
            *due = matches!(turn, Ok(Turn::More));
            turn.map_err(|error| fail(nflog.id, &error, sink, counters)).is_ok()
        });
        let attempts = counters.totals().attempts;
        self.news |= attempts > before;
        if attempts > behind_kmsg {
            self.alert.rest()?;
        }
        Ok(())
    }

    fn look_at_kmsg(&mut self, before: u64) -> io::Result<()> {
        let Some((kmsg, due)) = self.kmsg.as_mut().filter(|(_, due)| *due) else { return Ok(()) };
        let held = std::mem::take(&mut self.held_nudge);
        if held {
            self.counters.nudge_arrived();
        }
        *due = kmsg.turn(&mut self.sink, &self.counters)? == Turn::More;
        if self.counters.totals().attempts > before {
            // Where one attempt was there are more: let them gather.
            self.nudges_in_vain = 0;
            self.alert.rest()
        } else if held {
            self.alert.raise()
        } else {
            Ok(())
        }
    }

    /// Carries out what other threads asked for.
    fn obey(&mut self) -> io::Result<()> {
        while let Ok(command) = self.inbox.try_recv() {
            self.carry_out(command)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, command: Command<S>) -> io::Result<()> {
        match command {
            Command::Stop => self.stopping = true,
            Command::Nudge if self.alert.is_resting() => self.held_nudge = true,
            Command::Nudge if self.nudges_in_vain == NUDGES_IN_VAIN_MAX => {
                self.held_nudge = true;
                self.alert.rest()?;
            }
            Command::Nudge => {
                self.nudges_in_vain += 1;
                self.counters.nudge_arrived();
                // NFLOG wakes its readers at once.
                if let Some((_, due)) = &mut self.kmsg {
                    *due = true;
                    self.alert.raise()?;
                }
            }
            Command::Drain(done) => {
                self.drains.push(done);
                self.all_due();
            }
            Command::With(work) => {
                work(&mut self.sink);
                self.news = true;
            }
            Command::Watch(id, socket) => match Nflog::new(id, socket) {
                Ok(nflog) => self.nflog.push((nflog, true)),
                Err(error) => fail(id, &error, &mut self.sink, &self.counters),
            },
            Command::Unwatch(id) => self.unwatch(id),
        }
        Ok(())
    }

    /// Reads what a socket still holds and closes it.
    fn unwatch(&mut self, id: SourceId) {
        let Some(at) = self.nflog.iter().position(|(nflog, _)| nflog.id == id) else { return };
        let (mut nflog, _) = self.nflog.swap_remove(at);
        self.news = true;
        for _ in 0..NFLOG_LAST_TURNS {
            match nflog.turn(&mut self.sink, &self.counters) {
                Ok(Turn::More) => {}
                Ok(Turn::Empty) => return,
                Err(error) => return fail(id, &error, &mut self.sink, &self.counters),
            }
        }
    }

    fn all_due(&mut self) {
        self.kmsg.iter_mut().for_each(|(_, due)| *due = true);
        self.nflog.iter_mut().for_each(|(_, due)| *due = true);
    }

    fn anything_due(&self) -> bool {
        self.kmsg.iter().any(|(_, due)| *due) || self.nflog.iter().any(|(_, due)| *due)
    }

    /// All sources are empty.
    fn caught_up(&mut self) {
        if self.news || !self.drains.is_empty() || self.next_tick.is_elapsed() {
            self.news = false;
            self.next_tick.as_mut().reset(Instant::now() + self.tick);
            self.sink.idle(monotonic_us());
        }
        for done in self.drains.drain(..) {
            let _ = done.send(());
        }
    }

    /// Sleeps until a source, a command or a timer calls.
    async fn wait(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_call(context)).await
    }

    fn poll_call(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.poll_each(context) {
            Ok(false) => Poll::Pending,
            Ok(true) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_each(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        let mut called = false;
        if let Some((kmsg, due)) = &mut self.kmsg {
            *due = kmsg.poll_woken(context)?;
            called |= *due;
        }
        // While attempts gather, a socket is not listened to: it wakes for each of them.
        let listening = if self.alert.is_resting() { 0 } else { self.nflog.len() };
        for (nflog, due) in self.nflog.iter_mut().take(listening) {
            *due = nflog.poll_woken(context)?;
            called |= *due;
        }
        if self.alert.poll_look(context)? {
            self.all_due();
            called = true;
        }
        match self.inbox.poll_recv(context) {
            Poll::Ready(Some(command)) => {
                self.carry_out(command)?;
                called = true;
            }
            // All handles are gone, the monitor's too.
            Poll::Ready(None) => {
                self.stopping = true;
                called = true;
            }
            Poll::Pending => {}
        }
        Ok(called | self.next_tick.as_mut().poll(context).is_ready())
    }
}

fn fail<S: Sink>(id: SourceId, error: &io::Error, sink: &mut S, counters: &Counters) {
    add(&counters.failed, 1);
    sink.source_failed(id, error);
}
