//! The shard's scheduler: turns, and who pays for them.
//!
//! A *turn* polls every task that was ready when it began, each once. Tasks woken meanwhile belong to the
//! next turn. Between two turns the thread really parks, because only a park submits what was pushed to
//! the ring (tokio's `yield_now` and self-wakes skip the hook that does): if work is left, the loop first
//! writes to its own eventfd, so the park returns at once, but the kernel had its chance.
//!
//! Owns the tasks and the clock readings between their polls. Never blocks, never runs two turns without
//! giving the I/O driver a turn of its own.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ringlet_metrics::ShardMetrics;
use slab::Slab;

use crate::busy_poll::{BusyPoll, Turn};
use crate::charge::{Account, Ledger, cpu_time, thread_nanos};
use crate::clock::MonoTime;
use crate::file::Ring;
use crate::owner::Owner;
use crate::ready::{Ready, Root, TaskWake};
use crate::task::{JoinResult, Task, joinable};
use crate::timer::Timer;

/// How long the loop parks at most while file operations are under way. A park submits what the kernel
/// refused for the moment (EAGAIN: no memory for it), which tokio-uring would otherwise not try again.
const LONGEST_PARK: Duration = Duration::from_millis(100);

/// Time that an owner's tasks may take of one turn before the others of them wait for the next. A poll is not
/// interrupted, so a turn may have this and one poll of each owner.
pub(crate) const QUANTUM: Duration = Duration::from_micros(250);

/// A task's future with the result type erased (the result goes to its [`Task`] handle).
pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    wake: Arc<TaskWake>,
    aborted: bool,
    /// `None` while the task is being polled.
    body: Option<Body>,
}

struct Body {
    future: LocalFuture,
    waker: Waker,
    owner: Owner,
    /// Its CPU time is measured, because it took long.
    suspected: bool,
}

/// A poll of a task that is over.
struct Polled {
    owner: Owner,
    /// It was measured, and this is what the thread had used before.
    before: Option<u64>,
}

/// The tasks of one shard.
pub(crate) struct Executor {
    tasks: RefCell<Slab<Slot>>,
    batch: RefCell<Vec<usize>>,
    ready: Arc<Ready>,
    turn: Cell<u64>,
    /// When the poll that runs began.
    poll_began: Cell<MonoTime>,
    /// The task that is polled, ...
    current: Cell<usize>,
    /// ... and whether it had a request in this poll.
    served: Cell<bool>,
    /// Tasks that asked for a request in this turn and had none.
    unserved: RefCell<Vec<usize>>,
    closed: Cell<bool>,
    account: Account,
    busy_poll: RefCell<BusyPoll>,
    metrics: Arc<ShardMetrics>,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tasks = self.tasks.try_borrow().map_or(0, |tasks| tasks.len());
        f.debug_struct("Executor").field("tasks", &tasks).field("turn", &self.turn).finish_non_exhaustive()
    }
}

impl Executor {
    /// `ledger` is where the loop's ring notes what it submits.
    pub(crate) fn new(
        metrics: Arc<ShardMetrics>,
        ledger: Rc<Ledger>,
        busy_poll: BusyPoll,
    ) -> io::Result<Self> {
        Ok(Self {
            tasks: RefCell::default(),
            batch: RefCell::default(),
            ready: Ready::new()?,
            turn: Cell::new(0),
            poll_began: Cell::default(),
            current: Cell::default(),
            served: Cell::default(),
            unserved: RefCell::default(),
            closed: Cell::new(false),
            account: Account::new(ledger),
            busy_poll: RefCell::new(busy_poll),
            metrics,
        })
    }

    /// The number of the current turn, counted from 1.
    pub(crate) fn turn(&self) -> u64 {
        self.turn.get()
    }

    /// When the poll that runs began.
    pub(crate) fn poll_began(&self) -> MonoTime {
        self.poll_began.get()
    }

    /// The task that is polled had a request.
    pub(crate) fn note_served(&self) {
        self.served.set(true);
    }

    /// None is left for the task that is polled. If it had none at all it comes before those that had, in the next turn, if
    /// it is woken before this one ends: so tasks that are more than the requests of a turn take turns.
    pub(crate) fn note_unserved(&self) {
        if !self.served.get() {
            self.unserved.borrow_mut().push(self.current.get());
        }
    }

    /// Number of tasks that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Adds a task, to be polled from the next turn on. After [`Executor::close`] it is dropped instead.
    pub(crate) fn spawn<T: 'static>(
        &self,
        owner: &Owner,
        future: impl Future<Output = T> + 'static,
    ) -> Task<T> {
        let (join, body) = joinable(future);
        if self.closed.get() {
            return Task::new(join, None);
        }
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let wake = TaskWake::new(entry.key(), &self.ready);
        let body = Body {
            future: body,
            waker: Waker::from(Arc::clone(&wake)),
            owner: owner.clone(),
            suspected: false,
        };
        entry.insert(Slot { wake: Arc::clone(&wake), aborted: false, body: Some(body) });
        drop(tasks);
        wake.wake_by_ref();
        Task::new(join, Some(wake))
    }

    /// Drops a task's future: at once, or after the poll that is under way.
    pub(crate) fn abort(&self, wake: &Arc<TaskWake>) {
        let body = {
            let mut tasks = self.tasks.borrow_mut();
            match tasks.get_mut(wake.key()) {
                Some(slot) if Arc::ptr_eq(&slot.wake, wake) => {
                    slot.aborted = true;
                    let body = slot.body.take();
                    if body.is_some() {
                        tasks.remove(wake.key());
                    }
                    body
                }
                _ => None,
            }
        };
        // Outside the borrow: what a future drops may spawn, wake or abort.
        drop(body);
    }

    /// Drops all tasks and refuses new ones.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        let tasks = mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
    }

    /// Runs turns until `main` has ended. While it submits operations on files, a turn comes at least every
    /// [`LONGEST_PARK`].
    pub(crate) async fn run<T>(
        &self,
        main: Task<T>,
        timer: &Timer,
        ring: &Ring,
    ) -> io::Result<JoinResult<T>> {
        let watch = self.ready.watch()?;
        let root = Root::new(&self.ready);
        std::future::poll_fn(|cx| {
            root.set(cx.waker());
            watch.poll_clear(cx)?;
            timer.poll_clear(cx)?;
            let turn = self.run_turn(timer);
            if let Some(result) = main.take() {
                return Poll::Ready(Ok(result));
            }
            timer.arm(ring.is_submitting().then(|| turn.began + LONGEST_PARK))?;
            let (leaves_work, awaits_files) = (self.ready.end(), ring.awaits_files());
            let comes_back = self.looks_again(&Turn { leaves_work, awaits_files, ..turn }) || leaves_work;
            if comes_back {
                self.ready.ring();
            }
            self.account.begin_park(comes_back);
            Poll::Pending
        })
        .await
    }

    /// Runs one turn.
    fn run_turn(&self, timer: &Timer) -> Turn {
        self.turn.set(self.turn.get().wrapping_add(1));
        let start = MonoTime::now();
        let parked = self.account.end_park(start, self.turn());
        timer.fire(start);
        let mut batch = mem::take(&mut *self.batch.borrow_mut());
        if let Some(since) = self.ready.begin(&mut batch) {
            self.metrics.queue_delay.observe(start.since(since));
        }
        if parked > 0 && !batch.is_empty() && batch.iter().all(|key| self.has_had_its_share(*key)) {
            // The park was their turn, and nobody else waits.
            self.turn.set(self.turn.get().wrapping_add(1));
        }
        let (mut before, mut is_free, mut worked) = (start, true, false);
        let mut deferred = Vec::new();
        for key in batch.drain(..) {
            if self.has_had_its_share(key) {
                deferred.push(key);
                continue;
            }
            self.poll_began.set(before);
            self.current.set(key);
            self.served.set(false);
            let Some(polled) = self.poll_task(key) else { continue };
            let after = MonoTime::now();
            (worked, is_free) = (true, is_free && polled.owner.is_free());
            self.charge(key, &polled, after.nanos_since(before));
            before = after;
        }
        self.put_unserved_first();
        self.ready.push_first(deferred);
        self.metrics.busy_nanos.add(before.nanos_since(start).saturating_add(parked));
        *self.batch.borrow_mut() = batch;
        Turn { began: start, ended: before, worked, leaves_work: false, awaits_files: false, is_free }
    }

    /// Moves the tasks that had no request before all others that were woken in this turn.
    fn put_unserved_first(&self) {
        let mut unserved = self.unserved.borrow_mut();
        if !unserved.is_empty() {
            unserved.sort_unstable();
            self.ready.put_first(&unserved);
            unserved.clear();
        }
    }

    /// Whether the loop looks for work behind this turn, instead of sleeping.
    fn looks_again(&self, turn: &Turn) -> bool {
        let mut busy_poll = self.busy_poll.borrow_mut();
        self.metrics.polling_nanos.add_duration(busy_poll.looked_for(turn));
        busy_poll.looks(turn)
    }

    /// Whether the owner of a task has used up its time in this turn.
    fn has_had_its_share(&self, key: usize) -> bool {
        let tasks = self.tasks.borrow();
        let body = tasks.get(key).and_then(|slot| slot.body.as_ref());
        body.is_some_and(|body| body.owner.used(self.turn()) >= QUANTUM)
    }

    /// Charges a poll that took `real` nanoseconds to who pays for the task.
    fn charge(&self, key: usize, polled: &Polled, real: u64) {
        polled.owner.charge(self.turn(), real, cpu_time(real, polled.before));
        let was = polled.before.is_some();
        let suspected = self.account.suspects(was, real);
        if suspected != was
            && let Some(body) = self.tasks.borrow_mut().get_mut(key).and_then(|slot| slot.body.as_mut())
        {
            body.suspected = suspected;
        }
    }

    /// Polls one task; `None` if it is gone.
    fn poll_task(&self, key: usize) -> Option<Polled> {
        let mut body = {
            let mut tasks = self.tasks.borrow_mut();
            let slot = tasks.get_mut(key)?;
            let body = slot.body.take()?;
            slot.wake.begin_poll();
            body
        };
        let before = body.suspected.then(thread_nanos);
        let done = body.future.as_mut().poll(&mut Context::from_waker(&body.waker)).is_ready();
        let owner = body.owner.clone();
        let finished = {
            let mut tasks = self.tasks.borrow_mut();
            match tasks.get_mut(key) {
                Some(slot) if !done && !slot.aborted => {
                    slot.body = Some(body);
                    None
                }
                Some(_) => {
                    tasks.remove(key);
                    Some(body)
                }
                None => Some(body),
            }
        };
        drop(finished);
        Some(Polled { owner, before })
    }
}
