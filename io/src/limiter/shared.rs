//! Limits above VMs, tenant and host: the only part of a limiter that several shards share.
//!
//! Owns the lock around [`Tree`], which is held for arithmetic only: never across an await, never while anybody
//! is woken.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
#[cfg(not(all(test, ringlet_loom)))]
use std::sync::{Mutex, MutexGuard};
use std::task::{Poll, Waker};

#[cfg(all(test, ringlet_loom))]
use loom::sync::{Mutex, MutexGuard};

use super::level::Level;
use super::limits::{Lane, Limits};
use super::meter::LimitError;
use super::stats::LimiterStats;
use super::tree::{Answer, ROOT, Tree};
use super::{Cost, CostKind, instant};
use crate::clock::MonoTime;
use crate::timer::{Sleep, Timer};

/// The limits of a tenant or of the host, for VMs on any shard. Clones are the same level.
///
/// What there is goes to those who want it in proportion to their weights; what one does not want is the others'.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

struct Inner {
    tree: Arc<Mutex<Tree>>,
    node: usize,
    stats: Arc<LimiterStats>,
    /// Stays as long as this level does.
    above: Option<Shared>,
}

impl Shared {
    /// A level with none above it, whose buckets are full at `now`.
    ///
    /// # Errors
    /// [`LimitError::RefillTime`].
    pub fn new(limits: &Limits, now: MonoTime) -> Result<Self, LimitError> {
        let tree = Tree::new(limits, now)?;
        Ok(Self::with(Arc::new(Mutex::new(tree)), ROOT, None))
    }

    /// A level below this one: a tenant, which has `weight` ([`WEIGHTS`](super::WEIGHTS)) here.
    ///
    /// # Errors
    /// [`LimitError::RefillTime`], or [`LimitError::Depth`]: this is a tenant itself.
    pub fn tenant(&self, limits: &Limits, weight: u32, now: MonoTime) -> Result<Self, LimitError> {
        let node = self.lock().add(self.0.node, weight, limits, now)?;
        Ok(Self::with(Arc::clone(&self.0.tree), node, Some(self.clone())))
    }

    fn with(tree: Arc<Mutex<Tree>>, node: usize, above: Option<Self>) -> Self {
        let stats = lock(&tree).stats(node);
        Self(Arc::new(Inner { tree, node, stats, above }))
    }

    /// A VM below this level, which has `weight` ([`WEIGHTS`](super::WEIGHTS)) here. It belongs to a shard.
    pub fn member(&self, weight: u32) -> Member {
        Member(Rc::new(Seat { flow: self.flow(weight), entry: Level::open() }))
    }

    fn flow(&self, weight: u32) -> Flow {
        let number = self.lock().join(self.0.node, weight);
        Flow { shared: self.clone(), number }
    }

    /// What it admitted and held back. A request that waited for the host is counted with its tenant.
    pub fn stats(&self) -> &Arc<LimiterStats> {
        &self.0.stats
    }

    /// The limits that hold.
    pub fn limits(&self) -> Limits {
        self.lock().limits(self.0.node)
    }

    /// Replaces the limits that `change` names, by full buckets, also for those who wait.
    ///
    /// # Errors
    /// [`LimitError::RefillTime`]: nothing is changed.
    pub fn change(&self, change: &Limits, now: MonoTime) -> Result<(), LimitError> {
        let (changed, woken) = {
            let mut tree = self.lock();
            (tree.change(self.0.node, change, now), tree.next_woken())
        };
        self.wake(woken);
        changed
    }

    /// Whether nobody could tell if this level ended and another one took its place: this is the last of its clones and
    /// members, nothing is owed, and all buckets are full.
    pub fn may_be_forgotten(&self, now: MonoTime) -> bool {
        Arc::strong_count(&self.0) == 1 && self.lock().is_as_new(self.0.node, now)
    }

    /// Changes the weight that this tenant has at the host. Without effect on the host.
    pub fn set_weight(&self, weight: u32) {
        self.lock().weigh_node(self.0.node, weight);
    }

    fn lock(&self) -> MutexGuard<'_, Tree> {
        lock(&self.0.tree)
    }

    /// Wakes the first of those whom the tree left to be woken, and the others. The lock is not held while it does.
    fn wake(&self, mut first: Option<Waker>) {
        while let Some(waker) = first {
            waker.wake();
            first = self.lock().next_woken();
        }
    }
}

fn lock(tree: &Mutex<Tree>) -> MutexGuard<'_, Tree> {
    // Arithmetic does not panic half way.
    tree.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.above.is_some() {
            lock(&self.tree).remove(self.node);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits()).finish_non_exhaustive()
    }
}

/// A VM's place below a [`Shared`] level. Clones are the same place; all limiters of a VM have one in common.
#[derive(Clone)]
pub struct Member(Rc<Seat>);

struct Seat {
    flow: Flow,
    /// Where the VM's requests wait for each other: only the first of each lane is in the queue above.
    entry: Level,
}

impl Member {
    /// Changes the weight of this VM.
    pub fn set_weight(&self, weight: u32) {
        self.0.flow.shared.lock().weigh(self.0.flow.number, weight);
    }

    /// The level that it is below.
    pub fn shared(&self) -> &Shared {
        &self.0.flow.shared
    }

    pub(super) fn entry(&self) -> &Level {
        &self.0.entry
    }

    /// Charges a request if it need not wait; gives the instant as of which. It is due at the VM at `due`.
    pub(super) fn admit_at_once(
        &self,
        cost: Cost,
        due: MonoTime,
        asked: MonoTime,
        now: MonoTime,
    ) -> Option<MonoTime> {
        self.0.flow.admit_at_once(cost, due, asked, now)
    }

    /// As [`Member::admit_at_once`] of a request whose size shows only when it is done, which then remains to be
    /// confirmed.
    pub(super) fn open_at_once(
        &self,
        kind: CostKind,
        due: MonoTime,
        asked: MonoTime,
        now: MonoTime,
    ) -> Option<(Application<'_>, MonoTime)> {
        self.0.flow.open_at_once(kind, due, asked, now)
    }

    /// Puts the VM's first request of a lane in the queue.
    pub(super) fn apply(&self, cost: Cost, asked: MonoTime) -> Application<'_> {
        self.0.flow.apply(cost, asked)
    }

    /// The same, of a request whose size shows only when it is done.
    pub(super) fn open(&self, kind: CostKind, asked: MonoTime) -> Application<'_> {
        self.0.flow.open(kind, asked)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("shared", self.shared()).finish_non_exhaustive()
    }
}

/// A flow of requests in the fair queue.
struct Flow {
    shared: Shared,
    number: usize,
}

impl Flow {
    fn admit_at_once(&self, cost: Cost, due: MonoTime, asked: MonoTime, now: MonoTime) -> Option<MonoTime> {
        let (admitted, woken) = {
            let mut tree = self.shared.lock();
            let asked = instant(tree.due(self.number, cost).max(due), asked, now).min(now);
            (tree.try_admit(self.number, cost, asked, now), tree.next_woken())
        };
        self.shared.wake(woken);
        admitted
    }

    fn open_at_once(
        &self,
        kind: CostKind,
        due: MonoTime,
        asked: MonoTime,
        now: MonoTime,
    ) -> Option<(Application<'_>, MonoTime)> {
        let least = Cost { kind, bytes: 0 };
        let (granted, woken) = {
            let mut tree = self.shared.lock();
            let asked = instant(tree.due(self.number, least).max(due), asked, now).min(now);
            (tree.try_open(self.number, kind, asked, now), tree.next_woken())
        };
        self.shared.wake(woken);
        granted.map(|at| (self.application(least.lane()), at))
    }

    fn apply(&self, cost: Cost, asked: MonoTime) -> Application<'_> {
        self.shared.lock().enter(self.number, cost, asked);
        self.application(cost.lane())
    }

    fn open(&self, kind: CostKind, asked: MonoTime) -> Application<'_> {
        self.shared.lock().enter_open(self.number, kind, asked);
        self.application(Cost { kind, bytes: 0 }.lane())
    }

    fn application(&self, lane: Lane) -> Application<'_> {
        Application { flow: self, lane, confirmed: false }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.lock().leave(self.number);
    }
}

/// A request in the queue. Dropped before it is confirmed, it has taken nothing.
pub(super) struct Application<'a> {
    flow: &'a Flow,
    lane: Lane,
    confirmed: bool,
}

impl Application<'_> {
    /// Waits until it is granted; gives the instant as of which it is charged.
    pub(super) async fn granted(&self, timer: &Timer) -> MonoTime {
        let mut sleep: Option<Sleep> = None;
        poll_fn(|cx| {
            loop {
                let next = match self.look(MonoTime::now(), cx.waker()) {
                    Answer::Granted(at) => return Poll::Ready(at),
                    Answer::Wait(next) => next,
                };
                let Some(next) = next else {
                    sleep = None;
                    return Poll::Pending;
                };
                let sleeping = match &mut sleep {
                    Some(sleep) if sleep.deadline() == next => sleep,
                    sleep => sleep.insert(timer.sleep_until(next)),
                };
                if Pin::new(sleeping).poll(cx).is_pending() {
                    return Poll::Pending;
                }
                sleep = None;
            }
        })
        .await
    }

    fn look(&self, now: MonoTime, waker: &Waker) -> Answer {
        let (answer, woken) = {
            let mut tree = self.flow.shared.lock();
            (tree.poll(self.flow.number, self.lane, now, waker), tree.next_woken())
        };
        self.flow.shared.wake(woken);
        answer
    }

    /// Takes what it was granted, or what it costs after all.
    pub(super) fn confirm(mut self, cost: Cost, now: MonoTime) {
        self.confirmed = true;
        let woken = {
            let mut tree = self.flow.shared.lock();
            tree.confirm(self.flow.number, cost, now);
            tree.next_woken()
        };
        self.flow.shared.wake(woken);
    }
}

impl Drop for Application<'_> {
    fn drop(&mut self) {
        if !self.confirmed {
            let woken = {
                let mut tree = self.flow.shared.lock();
                tree.withdraw(self.flow.number, self.lane, MonoTime::now());
                tree.next_woken()
            };
            self.flow.shared.wake(woken);
        }
    }
}

#[cfg(test)]
#[path = "shared_test.rs"]
mod tests;

#[cfg(all(test, ringlet_loom))]
#[path = "shared_loom_test.rs"]
mod loom_tests;
