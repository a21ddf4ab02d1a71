//! Requests per turn: an owner may spend [`REQUESTS_PER_TURN`] in one turn of the loop, shared fairly by
//! its tasks; what is above that waits for the next turn. So does, after the first few, what comes when the task was
//! polled for as long as its owner may take of a turn: nobody else can interrupt it.
//!
//! Owns a task's part of its owner's share. Never limits bytes or time by the second: that is the limiter's.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use crate::clock::MonoTime;
use crate::executor::{Executor, QUANTUM};
use crate::owner::{Owner, Share};
use crate::timer::Timer;

/// Requests that one owner (a VM, not a queue) may start in one turn.
pub const REQUESTS_PER_TURN: u32 = 64;

/// Requests that a task may start in a poll however long they take: without any two at once, a slow machine would serve
/// a queue one by one.
const LEAST_PER_POLL: u32 = 4;

/// One task's claim on its owner's share of each turn. Make one per task (per device queue).
pub struct Budget {
    owner: Owner,
    executor: Rc<Executor>,
    timer: Timer,
    turn: Cell<u64>,
    spent: Cell<u32>,
    waited: Cell<bool>,
    /// When something was last spent, as far as the clock was looked at.
    looked: Cell<MonoTime>,
}

impl Budget {
    pub(crate) fn new(owner: Owner, executor: Rc<Executor>, timer: Timer) -> Self {
        Self {
            owner,
            executor,
            timer,
            turn: Cell::new(0),
            spent: Cell::new(0),
            waited: Cell::new(false),
            looked: Cell::default(),
        }
    }

    /// Spends one request that is new: as [`Budget::spend`], but not while its owner may begin nothing
    /// ([`Hold`](crate::Hold)). For what is given up when the queue is stopped: that may be long before. Cancel-safe.
    pub async fn begin(&self) {
        if !self.owner.is_free() {
            self.owner.may_begin(&self.timer).await;
        }
        self.spend().await;
    }

    /// As [`Budget::begin`], if that need not wait; else nothing is spent.
    pub fn try_begin(&self) -> bool {
        self.owner.may_begin_now() && self.try_spend()
    }

    /// Spends `units` for what follows of a request that was begun: at once while something is left in this turn, else in
    /// a later one. Waits while its owner may begin nothing, unless it is drained.
    pub(crate) async fn go_on(&self, units: u32) {
        if units == 0 {
            return;
        }
        if !self.owner.is_free() {
            self.owner.may_go_on(&self.timer).await;
        }
        self.spend().await;
        // What is not there any more is not owed: more than a few units is the size of one operation.
        let mut share = self.owner.share().borrow_mut();
        share.left = share.left.saturating_sub(units - 1);
        self.spent.set(self.spent.get().saturating_add(units - 1));
    }

    /// Spends one request, whatever its owner may begin: at once while something is left in this turn, else in a
    /// later turn, after every other ready task and the I/O driver had theirs. Cancel-safe: dropped while waiting,
    /// nothing is spent.
    pub async fn spend(&self) {
        poll_fn(|cx| {
            if self.try_spend() {
                return Poll::Ready(());
            }
            // A task that is woken during a turn is polled in the next one, after a real park.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Spends one request if something is left for this task in this turn, and of the time that its poll may take.
    pub fn try_spend(&self) -> bool {
        let turn = self.executor.turn();
        if self.turn.replace(turn) != turn {
            self.spent.set(0);
            self.waited.set(false);
            self.looked.set(self.executor.poll_began());
        }
        let mut share = self.owner.share().borrow_mut();
        share.begin(turn);
        if share.left == 0 || self.spent.get() >= share.per_task || self.has_taken_long() {
            if !self.waited.replace(true) {
                share.waiting += 1;
                if self.spent.get() == 0 {
                    self.executor.note_unserved();
                }
            }
            return false;
        }
        share.left -= 1;
        self.spent.set(self.spent.get() + 1);
        self.executor.note_served();
        true
    }

    /// Whether the poll that runs has taken its owner's time of a turn, and some requests were started in it: each turn
    /// brings a task on, however slow the machine. Reads the clock only if nobody has since something was last spent.
    fn has_taken_long(&self) -> bool {
        if self.spent.get() < LEAST_PER_POLL {
            return false;
        }
        let now = MonoTime::read_after(self.looked.get());
        self.looked.set(now);
        now.since(self.executor.poll_began()) >= QUANTUM
    }
}

impl Share {
    /// Renews the share in a new turn. Tasks that went without in the turn before divide it equally, so
    /// that none of them can live at the cost of another of the same owner. Where they are more than there are
    /// requests, each has one, and those that had none are asked first in the next turn.
    fn begin(&mut self, turn: u64) {
        if self.turn == turn {
            return;
        }
        let claims = if turn == self.turn.wrapping_add(1) { self.waiting.max(1) } else { 1 };
        *self =
            Self { turn, left: REQUESTS_PER_TURN, per_task: (REQUESTS_PER_TURN / claims).max(1), waiting: 0 };
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("turn", &self.turn).field("spent", &self.spent).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "budget_test.rs"]
mod tests;
