//! Which tasks are to be polled next, and how a parked loop hears of that.
//!
//! Owns the queue of the next turn: the only part of the scheduler that other threads touch. Takes one lock, which is held
//! briefly.

use std::cell::RefCell;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use rustix::event::{EventfdFlags, eventfd};

use crate::clock::MonoTime;
use crate::doorbell::Watch;

/// Tasks that want to be polled; the only part of the scheduler that other threads touch.
#[derive(Debug)]
pub(crate) struct Ready {
    queue: Mutex<Queue>,
    /// An eventfd that becomes readable when the loop is woken by another thread.
    wake_up: Arc<OwnedFd>,
}

#[derive(Debug, Default)]
struct Queue {
    keys: Vec<usize>,
    /// Since when the first of `keys` waits.
    since: Option<MonoTime>,
    /// The loop is (about to be) parked and will not look at `keys` unless it is woken.
    parked: bool,
}

thread_local! {
    /// The loop that runs on this thread and the waker of its root future.
    static ROOT: RefCell<Option<(usize, Waker)>> = const { RefCell::new(None) };
}

impl Ready {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let wake_up = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Arc::new(Self { queue: Mutex::default(), wake_up }))
    }

    /// Tells the loop, once it is parked, that it is woken.
    pub(crate) fn watch(&self) -> io::Result<Watch> {
        Watch::readable(Arc::clone(&self.wake_up))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(self: &Arc<Self>, key: usize) {
        let parked = {
            let mut queue = self.lock();
            queue.since.get_or_insert_with(MonoTime::now);
            queue.keys.push(key);
            mem::take(&mut queue.parked)
        };
        if parked {
            self.wake_loop();
        }
    }

    /// Queues tasks that were left over in the turn that runs, before those that were woken meanwhile. They are still
    /// marked as queued.
    pub(crate) fn push_first(&self, mut keys: Vec<usize>) {
        if keys.is_empty() {
            return;
        }
        let mut queue = self.lock();
        queue.since.get_or_insert_with(MonoTime::now);
        keys.append(&mut queue.keys);
        queue.keys = keys;
    }

    /// Wakes the parked loop: cheaply from its own thread (a driver event), else through the eventfd.
    fn wake_loop(self: &Arc<Self>) {
        let me = Arc::as_ptr(self).addr();
        let here = ROOT.try_with(|root| match root.try_borrow().as_deref() {
            Ok(Some((loop_of_thread, waker))) if *loop_of_thread == me => {
                waker.wake_by_ref();
                true
            }
            _ => false,
        });
        if here != Ok(true) {
            self.ring();
        }
    }

    pub(crate) fn ring(&self) {
        // The counter is never drained (the watch is edge-triggered): it would overflow after 2^64 writes.
        let _ = rustix::io::write(self.wake_up.as_fd(), &1u64.to_ne_bytes());
    }

    /// Moves tasks that are queued and among `keys`, which are sorted, before all others. Both keep their order.
    pub(crate) fn put_first(&self, keys: &[usize]) {
        self.lock().keys.sort_by_cached_key(|key| keys.binary_search(key).is_err());
    }

    /// Takes the keys of the turn that begins, and says since when the first of them waits. `batch` must be empty;
    /// its capacity is used again.
    pub(crate) fn begin(&self, batch: &mut Vec<usize>) -> Option<MonoTime> {
        let mut queue = self.lock();
        queue.parked = false;
        mem::swap(&mut queue.keys, batch);
        queue.since.take()
    }

    /// Ends a turn; true if there is work for another one.
    pub(crate) fn end(&self) -> bool {
        let mut queue = self.lock();
        queue.parked = queue.keys.is_empty();
        !queue.parked
    }
}

/// The waker of one task.
#[derive(Debug)]
pub(crate) struct TaskWake {
    key: usize,
    /// Whether it is among those that are to be polled.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl TaskWake {
    pub(crate) fn new(key: usize, ready: &Arc<Ready>) -> Arc<Self> {
        Arc::new(Self { key, queued: AtomicBool::new(false), ready: Arc::clone(ready) })
    }

    pub(crate) fn key(&self) -> usize {
        self.key
    }

    /// The task is polled: who wakes it from now on wants it to be polled again.
    pub(crate) fn begin_poll(&self) {
        self.queued.store(false, Ordering::Release);
    }
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.push(self.key);
        }
    }
}

/// The root future of a loop, as long as this is there: a wake-up from its own thread needs no system call.
pub(crate) struct Root<'a>(&'a Arc<Ready>);

impl<'a> Root<'a> {
    pub(crate) fn new(ready: &'a Arc<Ready>) -> Self {
        Self(ready)
    }

    /// Takes note of its waker.
    pub(crate) fn set(&self, waker: &Waker) {
        ROOT.with_borrow_mut(|root| match root {
            Some((_, old)) if old.will_wake(waker) => {}
            _ => *root = Some((Arc::as_ptr(self.0).addr(), waker.clone())),
        });
    }
}

impl Drop for Root<'_> {
    fn drop(&mut self) {
        let _ = ROOT.try_with(|root| root.take());
    }
}
