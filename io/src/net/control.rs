//! The settings of a tap that is in use: what may be unfinished, and which queues are used.
//!
//! Owns the tap's descriptors, and closes them. Every call here waits for a lock of the kernel, so the helper's thread
//! makes them. At most two jobs of a tap are with the helper, one of them under way, whatever is asked of it meanwhile:
//! the last wish counts.

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::Notify;

use super::{Offloads, ioctl, tap::drop_packets};
use crate::helper::{Helper, TAPS};

/// What can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// What received packets may leave unfinished.
    pub(super) offloads: Offloads,
    /// How many of the queues get packets.
    pub(super) queues: usize,
}

/// The settings of one tap, for all its ports.
pub(super) struct Control {
    queues: Vec<Arc<OwnedFd>>,
    state: Mutex<State>,
    /// Signals that `done` has grown.
    changed: Notify,
    helper: Arc<Helper>,
}

struct State {
    wanted: Settings,
    applied: Settings,
    /// Wishes so far, and how many of them are settled.
    asked: u64,
    done: u64,
    /// What came of the last one.
    result: Result<(), Errno>,
    /// The helper has a job, which it has not begun.
    queued: bool,
}

impl Control {
    /// Takes over the queues of a tap, all in use, with no offloads.
    ///
    /// # Errors
    /// There can be no thread for them.
    pub(super) fn new(queues: Vec<Arc<OwnedFd>>) -> io::Result<Arc<Self>> {
        let settings = Settings { offloads: Offloads::NONE, queues: queues.len() };
        let state =
            State { wanted: settings, applied: settings, asked: 0, done: 0, result: Ok(()), queued: false };
        let helper = Helper::get(&TAPS)?;
        Ok(Arc::new(Self { queues, state: Mutex::new(state), changed: Notify::new(), helper }))
    }

    /// Changes what is wanted, and waits until the kernel has it.
    pub(super) async fn set(self: &Arc<Self>, change: impl FnOnce(&mut Settings)) -> io::Result<()> {
        let Some(wish) = self.ask(change) else { return Ok(()) };
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(result) = self.result_of(wish) {
                return result.map_err(io::Error::from);
            }
            changed.await;
        }
    }

    /// Number of the wish; `None`: it is so already.
    fn ask(self: &Arc<Self>, change: impl FnOnce(&mut Settings)) -> Option<u64> {
        let mut state = self.lock();
        change(&mut state.wanted);
        if state.done == state.asked && state.wanted == state.applied {
            return None;
        }
        state.asked += 1;
        if !mem::replace(&mut state.queued, true) {
            let control = Arc::clone(self);
            self.helper.run(move || control.work());
        }
        Some(state.asked)
    }

    fn result_of(&self, wish: u64) -> Option<Result<(), Errno>> {
        let state = self.lock();
        (state.done >= wish).then_some(state.result)
    }

    /// On the helper's thread: settles all wishes so far.
    fn work(&self) {
        let (wish, wanted, mut applied) = self.begin();
        let result = self.apply(wanted, &mut applied);
        self.finish(wish, applied, result);
    }

    /// Number of the last wish, what is wanted by then, and what is so.
    fn begin(&self) -> (u64, Settings, Settings) {
        let mut state = self.lock();
        state.queued = false;
        (state.asked, state.wanted, state.applied)
    }

    fn finish(&self, wish: u64, applied: Settings, result: io::Result<()>) {
        let result = result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let mut state = self.lock();
        (state.applied, state.done, state.result) = (applied, wish, result);
        drop(state);
        self.changed.notify_waiters();
    }

    fn apply(&self, wanted: Settings, applied: &mut Settings) -> io::Result<()> {
        while applied.queues < wanted.queues {
            self.use_queue(applied.queues, true)?;
            applied.queues += 1;
        }
        while applied.queues > wanted.queues {
            self.use_queue(applied.queues - 1, false)?;
            applied.queues -= 1;
        }
        if applied.offloads != wanted.offloads {
            let Some(first) = self.queues.first() else { return Ok(()) };
            ioctl::set_offloads(first.as_fd(), wanted.offloads.tap_bits())?;
            let before = mem::replace(&mut applied.offloads, wanted.offloads);
            if !before.is_within(wanted.offloads) {
                self.queues.iter().for_each(|queue| drop_packets(queue));
            }
        }
        Ok(())
    }

    fn use_queue(&self, index: usize, used: bool) -> io::Result<()> {
        self.queues.get(index).map_or(Ok(()), |queue| ioctl::use_queue(queue.as_fd(), used))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Control {
    /// Closing a tap that is not persistent deletes it, which takes longer than any other call.
    fn drop(&mut self) {
        let queues = mem::take(&mut self.queues);
        let closing = Closing::begin();
        self.helper.run(move || {
            drop(queues);
            drop(closing);
        });
    }
}

/// Taps of this process that somebody has let go of and that are not closed yet.
static CLOSING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());
/// How long whoever wants one of them waits at most: the kernel's lock may be held for long by others.
const CLOSING_LIMIT: Duration = Duration::from_secs(5);

struct Closing;

impl Closing {
    fn begin() -> Self {
        *CLOSING.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        *CLOSING.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        CLOSING.1.notify_all();
    }
}

/// Waits until taps are closed that are about to be; false if there is none. Not to be called on a shard.
pub(super) fn wait_for_closing() -> bool {
    let closing = CLOSING.0.lock().unwrap_or_else(PoisonError::into_inner);
    let any = *closing > 0;
    let waited = CLOSING.1.wait_timeout_while(closing, CLOSING_LIMIT, |closing| *closing > 0);
    drop(waited);
    any
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("queues", &self.queues).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
