//! The shard's timers: one timerfd (`CLOCK_MONOTONIC`, an hrtimer) for any number of sleepers.
//!
//! Owns the timerfd and the sleepers' order. The timerfd is armed at most once a turn, and only when the
//! earliest deadline moved forward. Never rounds up to a tick, as `tokio::time` does (1 ms).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::clock::MonoTime;
use crate::doorbell::Watch;

/// The timer service of one shard. Clones are the same service; `!Send`.
#[derive(Clone)]
pub struct Timer(Rc<Inner>);

struct Inner {
    fd: Arc<OwnedFd>,
    watch: Watch,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Sleepers by deadline; the number tells sleepers of the same deadline apart, in order of arrival.
    sleepers: BTreeMap<(MonoTime, u64), Waker>,
    arrivals: u64,
    /// When the timerfd goes off; `None` once it did.
    armed: Option<MonoTime>,
}

impl Timer {
    /// Makes the timerfd and watches it in the current runtime.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let fd = Arc::new(fd);
        let watch = Watch::readable(Arc::clone(&fd))?;
        Ok(Self(Rc::new(Inner { fd, watch, state: RefCell::default() })))
    }

    /// Waits until the clock has reached `deadline`; never returns earlier. Cancel-safe.
    pub fn sleep_until(&self, deadline: MonoTime) -> Sleep {
        Sleep { timer: self.clone(), deadline, arrival: None }
    }

    /// Waits for `span`, counted from now (not from the first poll). Cancel-safe.
    pub fn sleep(&self, span: Duration) -> Sleep {
        self.sleep_until(MonoTime::now() + span)
    }

    /// Number of sleepers that wait at this moment.
    pub fn waiting(&self) -> usize {
        self.0.state.borrow().sleepers.len()
    }

    /// Takes note of the timerfd having gone off and listens for the next time.
    pub(crate) fn poll_clear(&self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.0.watch.poll_clear(cx)? {
            self.0.state.borrow_mut().armed = None;
        }
        Ok(())
    }

    /// Wakes every sleeper whose deadline is not after `now`, earliest first.
    pub(crate) fn fire(&self, now: MonoTime) {
        while let Some(waker) = self.next_due(now) {
            waker.wake();
        }
    }

    fn next_due(&self, now: MonoTime) -> Option<Waker> {
        let mut state = self.0.state.borrow_mut();
        let first = state.sleepers.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove())
    }

    /// Sets the timerfd for the earliest sleeper, or for `at_latest`, unless it goes off by then anyway.
    pub(crate) fn arm(&self, at_latest: Option<MonoTime>) -> io::Result<()> {
        let mut state = self.0.state.borrow_mut();
        let sleeper = state.sleepers.first_key_value().map(|(&(deadline, _), _)| deadline);
        let Some(earliest) = sleeper.into_iter().chain(at_latest).min() else { return Ok(()) };
        if state.armed.is_some_and(|armed| armed <= earliest) {
            return Ok(());
        }
        let spec =
            Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: timespec(earliest) };
        timerfd_settime(self.0.fd.as_fd(), TimerfdTimerFlags::ABSTIME, &spec)?;
        state.armed = Some(earliest);
        Ok(())
    }
}

/// The kernel's form of a deadline; zero would disarm, so it becomes one nanosecond.
fn timespec(at: MonoTime) -> Timespec {
    let nanos = at.as_nanos().max(1);
    Timespec {
        tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (nanos % 1_000_000_000).cast_signed(),
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// A wait for a point in time. Dropping it removes it from the timer.
#[derive(Debug)]
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    timer: Timer,
    deadline: MonoTime,
    arrival: Option<u64>,
}

impl Sleep {
    /// When this wait ends.
    pub fn deadline(&self) -> MonoTime {
        self.deadline
    }

    fn leave(&mut self) {
        if let Some(arrival) = self.arrival.take() {
            self.timer.0.state.borrow_mut().sleepers.remove(&(self.deadline, arrival));
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if MonoTime::now() >= self.deadline {
            self.leave();
            return Poll::Ready(());
        }
        let timer = self.timer.clone();
        let mut state = timer.0.state.borrow_mut();
        let arrival = *self.arrival.get_or_insert_with(|| {
            state.arrivals = state.arrivals.wrapping_add(1);
            state.arrivals
        });
        state.sleepers.insert((self.deadline, arrival), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
#[path = "timer_test.rs"]
mod tests;
