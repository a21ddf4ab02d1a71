//! Who pays for shard time: one VM, or the shard itself.
//!
//! Owns the VM's share of a turn and of the operations on files, its account of what the host buffers for it, and its
//! levels of limits by name. Never decides what happens to a VM that spent too much.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringlet_metrics::{LimiterSource, VmMetrics};
use tokio::sync::Semaphore;

use crate::buffers::Buffers;
use crate::hold::Hold;
use crate::limiter::{Level, Member, Shared};
use crate::timer::Timer;

/// Who is charged for the time that a task spends on the shard, and whose budget per turn it uses.
///
/// All tasks of a VM share one owner (clones are the same owner). `!Send`: owners belong to a shard.
#[derive(Clone)]
pub struct Owner(Rc<Inner>);

struct Inner {
    metrics: Option<Arc<VmMetrics>>,
    buffers: Buffers,
    share: RefCell<Share>,
    busy: Cell<u64>,
    /// A turn, and the nanoseconds spent in it.
    recent: Cell<(u64, u64)>,
    /// How many operations on files it may have under way; made with its first file.
    files: OnceCell<Arc<Semaphore>>,
    /// In the order in which they were made; there are few.
    levels: RefCell<Vec<(Box<str>, Level)>>,
    /// Its places among the VMs of its tenant, by what is shared there.
    members: RefCell<Vec<(&'static str, Member)>>,
    hold: Hold,
    /// How many wait for the end of what was begun.
    draining: Cell<u32>,
}

/// What an owner has left in one turn.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Share {
    pub(crate) turn: u64,
    pub(crate) left: u32,
    pub(crate) per_task: u32,
    pub(crate) waiting: u32,
}

impl Owner {
    /// An owner whose time is added to `metrics.shard_busy_nanos`.
    pub fn new(metrics: Arc<VmMetrics>) -> Self {
        Self::with_buffers(metrics, Buffers::unlimited())
    }

    /// As [`Self::new`], of a VM that has this account of what the host buffers for it.
    pub fn with_buffers(metrics: Arc<VmMetrics>, buffers: Buffers) -> Self {
        Self::limited(metrics, buffers, Hold::default())
    }

    /// As [`Self::with_buffers`], and nothing is begun for it beyond `hold`, which is in the terms of
    /// `metrics.shard_busy_nanos`.
    pub fn limited(metrics: Arc<VmMetrics>, buffers: Buffers, hold: Hold) -> Self {
        Self::with(Some(metrics), buffers, hold)
    }

    /// The shard itself, for housekeeping that belongs to no VM.
    pub fn shard() -> Self {
        Self::with(None, Buffers::unlimited(), Hold::default())
    }

    fn with(metrics: Option<Arc<VmMetrics>>, buffers: Buffers, hold: Hold) -> Self {
        Self(Rc::new(Inner {
            metrics,
            buffers,
            share: RefCell::default(),
            busy: Cell::new(0),
            recent: Cell::new((0, 0)),
            files: OnceCell::new(),
            levels: RefCell::default(),
            members: RefCell::default(),
            hold,
            draining: Cell::new(0),
        }))
    }

    /// Nanoseconds of shard time charged to this owner so far.
    pub fn busy_nanos(&self) -> u64 {
        self.0.busy.get()
    }

    /// What the host buffers for it.
    pub fn buffers(&self) -> &Buffers {
        &self.0.buffers
    }

    /// True if both are the same owner.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Time that its tasks took in this turn so far.
    pub(crate) fn used(&self, turn: u64) -> Duration {
        let (recent, nanos) = self.0.recent.get();
        Duration::from_nanos(if recent == turn { nanos } else { 0 })
    }

    /// Its tasks took `real` nanoseconds of a turn, and `cpu` nanoseconds of the thread's CPU time.
    pub(crate) fn charge(&self, turn: u64, real: u64, cpu: u64) {
        let (recent, used) = self.0.recent.get();
        let used = if recent == turn { used.saturating_add(real) } else { real };
        self.0.recent.set((turn, used));
        self.0.busy.set(self.0.busy.get().saturating_add(cpu));
        if let Some(metrics) = &self.0.metrics {
            metrics.shard_busy_nanos.add(cpu);
        }
    }

    /// While this lives, what was begun for the owner goes on though it is held: somebody waits for the end of it.
    pub fn drain(&self) -> Draining {
        self.0.draining.set(self.0.draining.get().saturating_add(1));
        self.0.hold.wake();
        Draining(self.clone())
    }

    /// True unless it has to be asked how far the event loop may go.
    pub(crate) fn is_free(&self) -> bool {
        !self.0.hold.is_set()
    }

    /// Whether something new may be begun for it now.
    pub(crate) fn may_begin_now(&self) -> bool {
        self.is_free() || self.0.hold.until(self.charged()).is_none()
    }

    /// Waits until something new may be begun for it.
    pub(crate) async fn may_begin(&self, timer: &Timer) {
        self.0.hold.passed(timer, || self.charged(), || false).await;
    }

    /// Waits until something that was begun may go on.
    pub(crate) async fn may_go_on(&self, timer: &Timer) {
        self.0.hold.passed(timer, || self.charged(), || self.0.draining.get() > 0).await;
    }

    /// As those know who keep its account.
    fn charged(&self) -> u64 {
        self.0.metrics.as_ref().map_or(self.busy_nanos(), |metrics| metrics.shard_busy_nanos.get())
    }

    /// Gives the owner a level of limits called `name`, whose numbers are exposed from then on.
    pub fn add_level(&self, name: &str, level: Level) -> Level {
        if let Some(metrics) = &self.0.metrics {
            metrics.register_limiter(name, Arc::clone(level.stats()) as Arc<dyn LimiterSource>);
        }
        self.0.levels.borrow_mut().push((name.into(), level.clone()));
        level
    }

    /// The level of limits called `name`, if there is one.
    pub fn existing_level(&self, name: &str) -> Option<Level> {
        let levels = self.0.levels.borrow();
        levels.iter().find(|(other, _)| **other == *name).map(|(_, level)| level.clone())
    }

    /// The owner's place below `tenant` where `what` is shared, with `weight`: the one that it has, if it has one.
    pub fn member(&self, what: &'static str, tenant: &Shared, weight: u32) -> Member {
        self.existing_member(what).unwrap_or_else(|| {
            let member = tenant.member(weight);
            self.0.members.borrow_mut().push((what, member.clone()));
            member
        })
    }

    /// The owner's place below its tenant where `what` is shared, if it has one.
    pub fn existing_member(&self, what: &str) -> Option<Member> {
        let members = self.0.members.borrow();
        members.iter().find(|(other, _)| *other == what).map(|(_, member)| member.clone())
    }

    pub(crate) fn file_operations(&self, make: impl FnOnce() -> Arc<Semaphore>) -> Arc<Semaphore> {
        Arc::clone(self.0.files.get_or_init(make))
    }

    pub(crate) fn share(&self) -> &RefCell<Share> {
        &self.0.share
    }
}

/// Somebody waits for the end of what was begun for an owner.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Draining(Owner);

impl Drop for Draining {
    fn drop(&mut self) {
        self.0.0.draining.set(self.0.0.draining.get().saturating_sub(1));
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("busy_nanos", &self.busy_nanos()).finish_non_exhaustive()
    }
}
