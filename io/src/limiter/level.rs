//! A level of limits on one shard (a device, a VM), and the requests that wait there.
//!
//! Owns the order of those who wait: the first of its lane goes first. Reads and writes wait for each other
//! only where both need the same meter. `!Send`, without locks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::Cost;
use super::limits::{Due, Lane, Limits, LimitsState, Meters};
use super::meter::LimitError;
use super::stats::LimiterStats;
use crate::clock::MonoTime;
use crate::timer::{Sleep, Timer};

/// The limits of a device or a VM. Clones are the same level; it belongs to a shard.
#[derive(Clone)]
pub struct Level(Rc<Inner>);

struct Inner {
    /// There is no meter: nothing is held back.
    open: Cell<bool>,
    meters: RefCell<Meters>,
    line: RefCell<Line>,
    stats: Arc<LimiterStats>,
}

impl Level {
    /// A level whose buckets are full at `now`.
    ///
    /// # Errors
    /// [`LimitError::RefillTime`].
    pub fn new(limits: &Limits, now: MonoTime) -> Result<Self, LimitError> {
        Ok(Self::with(Meters::new(limits, now)?))
    }

    /// A level that goes on from what [`Level::save`] gave. Limits without a state start full.
    ///
    /// # Errors
    /// [`LimitError`]: the limits cannot be, or cannot be in that state.
    pub fn restore(limits: &Limits, state: &LimitsState, now: MonoTime) -> Result<Self, LimitError> {
        Ok(Self::with(Meters::restore(limits, state, now)?))
    }

    /// A level without limits: a place to wait in order.
    pub(super) fn open() -> Self {
        Self::with(Meters::default())
    }

    fn with(meters: Meters) -> Self {
        let stats = Arc::new(LimiterStats::default());
        stats.changed(&meters);
        let open = Cell::new(meters.limits().is_empty());
        Self(Rc::new(Inner { open, meters: RefCell::new(meters), line: RefCell::default(), stats }))
    }

    /// What it admitted and held back.
    pub fn stats(&self) -> &Arc<LimiterStats> {
        &self.0.stats
    }

    /// The limits that hold.
    pub fn limits(&self) -> Limits {
        self.0.meters.borrow().limits()
    }

    /// What [`Level::restore`] goes on from.
    pub fn save(&self, now: MonoTime) -> LimitsState {
        self.0.meters.borrow().save(now)
    }

    /// Replaces the limits that `change` names, by full buckets, also for those who wait. The others stay as they
    /// are.
    ///
    /// # Errors
    /// [`LimitError::RefillTime`]: nothing is changed.
    pub fn change(&self, change: &Limits, now: MonoTime) -> Result<(), LimitError> {
        let mut meters = self.0.meters.borrow_mut();
        meters.change(change, now)?;
        self.0.open.set(meters.limits().is_empty());
        self.0.stats.changed(&meters);
        let alone = meters.has_total();
        drop(meters);
        self.0.line.borrow_mut().waiters.iter_mut().for_each(|waiter| waiter.alone = alone);
        self.wake();
        Ok(())
    }

    pub(super) fn due(&self, cost: Cost) -> Due {
        self.0.meters.borrow().due(cost)
    }

    /// Whether a request that comes now need not even be looked at.
    pub(super) fn is_open(&self) -> bool {
        self.0.open.get() && self.0.line.borrow().waiters.is_empty()
    }

    /// Whether a request that comes now would be the first in line.
    pub(super) fn is_free(&self, lane: Lane) -> bool {
        self.0.line.borrow().is_free(lane)
    }

    /// Charges a request that is admitted.
    pub(super) fn commit(&self, cost: Cost, at: MonoTime) {
        let mut meters = self.0.meters.borrow_mut();
        let _ = meters.take(cost, at);
        self.0.stats.admitted(cost, &meters);
    }

    /// Gets in line.
    pub(super) fn enter(&self, cost: Cost) -> Place {
        let alone = self.0.meters.borrow().has_total();
        let ticket = self.0.line.borrow_mut().enter(cost.lane(), alone);
        Place { level: self.clone(), ticket, cost, sleep: None, since: None }
    }

    /// Wakes those who may go on. Without a borrow while it does.
    fn wake(&self) {
        loop {
            let Some(waker) = self.0.line.borrow_mut().woken() else { return };
            waker.wake();
        }
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.0.line.borrow().waiters.len();
        f.debug_struct("Level").field("limits", &self.limits()).field("waiting", &waiting).finish()
    }
}

/// Who waits, in the order of asking.
#[derive(Default)]
struct Line {
    waiters: VecDeque<Waiter>,
    tickets: u64,
}

struct Waiter {
    ticket: u64,
    lane: Lane,
    /// The other lane may not pass it once it is the first of its own. So until its turn, where reads and writes
    /// share a meter; then, while it lacks what they share, and while it waits elsewhere.
    alone: bool,
    waker: Option<Waker>,
}

impl Line {
    fn enter(&mut self, lane: Lane, alone: bool) -> u64 {
        self.tickets += 1;
        self.waiters.push_back(Waiter { ticket: self.tickets, lane, alone, waker: None });
        self.tickets
    }

    fn is_free(&self, lane: Lane) -> bool {
        self.is_turn(lane, u64::MAX)
    }

    /// Whether nobody is before that ticket whom it may not pass: the first of its lane, and the first of the
    /// other one if that goes alone.
    fn is_turn(&self, lane: Lane, ticket: u64) -> bool {
        let first_of = |same: bool| self.waiters.iter().find(|waiter| (waiter.lane == lane) == same);
        let is_before = |waiter: &Waiter| waiter.ticket < ticket;
        !first_of(true).is_some_and(is_before)
            && !first_of(false).is_some_and(|first| first.alone && is_before(first))
    }

    fn of(&mut self, ticket: u64) -> Option<&mut Waiter> {
        self.waiters.iter_mut().find(|waiter| waiter.ticket == ticket)
    }

    /// The waker of somebody whose turn it is and who was not woken yet.
    fn woken(&mut self) -> Option<Waker> {
        let may_go = |waiter: &&Waiter| waiter.waker.is_some() && self.is_turn(waiter.lane, waiter.ticket);
        let next = self.waiters.iter().find(may_go)?.ticket;
        self.of(next)?.waker.take()
    }
}

/// A request's place in line, which it keeps until it is admitted or dropped.
pub(super) struct Place {
    level: Level,
    ticket: u64,
    cost: Cost,
    sleep: Option<Sleep>,
    /// Since when it waits, while it does.
    since: Option<MonoTime>,
}

impl Place {
    /// Waits for its turn, and for the tokens.
    pub(super) async fn ready(&mut self, timer: &Timer) {
        poll_fn(|cx| self.poll_ready(cx, timer)).await;
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>, timer: &Timer) -> Poll<()> {
        loop {
            if !self.level.0.line.borrow().is_turn(self.cost.lane(), self.ticket) {
                self.sleep = None;
                return self.wait(cx);
            }
            let (due, now) = (self.level.due(self.cost), MonoTime::now());
            if due.at <= now {
                // What it shares with the other lane is kept for it until it is charged.
                let shared = self.level.0.meters.borrow().has_total();
                self.keep(shared);
                self.waited();
                return Poll::Ready(());
            }
            self.keep(due.total > now);
            let sleep = match &mut self.sleep {
                Some(sleep) if sleep.deadline() == due.at => sleep,
                sleep => sleep.insert(timer.sleep_until(due.at)),
            };
            if Pin::new(sleep).poll(cx).is_pending() {
                return self.wait(cx);
            }
            self.sleep = None;
        }
    }

    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.since.is_none() {
            self.since = Some(MonoTime::now());
            self.level.0.stats.throttled.inc();
            self.level.0.stats.waiting.inc();
        }
        if let Some(waiter) = self.level.0.line.borrow_mut().of(self.ticket) {
            waiter.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Lets nobody pass, or those of the other lane.
    fn keep(&mut self, alone: bool) {
        let mut line = self.level.0.line.borrow_mut();
        let Some(waiter) = line.of(self.ticket) else { return };
        let opened = waiter.alone && !alone;
        waiter.alone = alone;
        drop(line);
        if opened {
            self.level.wake();
        }
    }

    fn waited(&mut self) {
        self.sleep = None;
        if let Some(since) = self.since.take() {
            self.level.0.stats.throttled_nanos.add(MonoTime::now().nanos_since(since));
            self.level.0.stats.waiting.dec();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waited();
        self.level.0.line.borrow_mut().waiters.retain(|waiter| waiter.ticket != self.ticket);
        self.level.wake();
    }
}

#[cfg(test)]
#[path = "level_test.rs"]
mod tests;
