//! Closes what is left of ended VMs, so that nobody waits for it.
//!
//! Closing a VM takes 0.2 ms, but 15-23 for some time after something was registered with one of its buses (an
//! ioeventfd), so the reaper lets that time pass. It also joins the vCPU threads, which have finished by then. One
//! thread, started with the first ended VM; whoever makes VMs faster than it closes them helps.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringlet_metrics::Registry;

use crate::kvm::sys::block_asynchronous_signals;

/// Whoever makes a VM closes ended ones that are due for so long: the reaper cannot keep up.
const LATE: Duration = Duration::from_millis(20);
/// How many of them: more than it makes, so that their number does not grow.
const HELP: usize = 2;

/// What is left of an ended VM: dropped at `not_before` or later.
pub(crate) struct Corpse {
    pub(crate) threads: Vec<JoinHandle<()>>,
    /// `None`: nothing was registered with a bus, it can be closed at once.
    pub(crate) not_before: Option<Instant>,
    /// Everything whose drop may take time.
    pub(crate) remains: Box<dyn Send>,
}

/// Handle of the reaper. Dropping it closes all that is left and joins the thread.
pub(crate) struct Reaper {
    registry: Registry,
    waiting: Arc<Waiting>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What is to be closed.
#[derive(Default)]
struct Waiting {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// With the time from when on each can be closed. The grace time is the same for all, so they come due in the order
    /// in which they came, or nearly.
    corpses: VecDeque<(Instant, Corpse)>,
    /// No more will come.
    over: bool,
}

impl Reaper {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, waiting: Arc::default(), thread: Mutex::new(None) }
    }

    /// Counts one more VM to close: before its end is told, so that no VM has ended and is neither closed nor counted.
    pub(crate) fn reserve(&self) -> Place<'_> {
        self.registry.runtime().reaper_backlog.inc();
        Place(self)
    }

    /// Hands over what is left of a VM; see [`Place::reap`].
    pub(crate) fn reap(&self, corpse: Corpse) {
        self.reserve().reap(corpse);
    }

    /// Called by whoever makes a VM: closes some that the reaper is late with, which takes it a fraction of a millisecond
    /// each. So those that are not closed do not become more and more, however fast VMs come and go.
    pub(crate) fn help(&self) {
        for _ in 0..HELP {
            let late = Instant::now().checked_sub(LATE);
            let Some(corpse) = late.and_then(|late| self.waiting.lock().due(late)) else { return };
            close(corpse, &self.registry);
        }
    }
}

/// A place in the backlog.
#[must_use = "a VM that is counted is to be closed"]
pub(crate) struct Place<'a>(&'a Reaper);

impl Place<'_> {
    /// Hands over what is left of a VM. Never waits, unless there is no thread to be had: then it closes the VM
    /// itself.
    pub(crate) fn reap(self, corpse: Corpse) {
        let Self(Reaper { registry, waiting, thread }) = self;
        let mut thread = thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let spawned = spawn(Arc::clone(waiting), registry.clone());
            *thread = spawned.inspect_err(|error| tracing::error!(%error, "no reaper")).ok();
        }
        if thread.is_none() {
            drop(thread);
            return close(corpse, registry);
        }
        let due = corpse.not_before.unwrap_or_else(Instant::now);
        waiting.lock().corpses.push_back((due, corpse));
        waiting.changed.notify_one();
    }
}

fn spawn(waiting: Arc<Waiting>, registry: Registry) -> io::Result<JoinHandle<()>> {
    let builder = std::thread::Builder::new().name("ringlet-reaper".into()).stack_size(128 << 10);
    builder.spawn(move || {
        if let Err(error) = block_asynchronous_signals() {
            tracing::warn!(%error, "the reaper takes part in the host's signals");
        }
        bury(&waiting, &registry);
    })
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            self.waiting.lock().over = true;
            self.waiting.changed.notify_one();
            let _ = thread.join();
        }
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next that is due; `None` when no more will come.
    fn next(&self) -> Option<Corpse> {
        let mut queue = self.lock();
        while !queue.over {
            let now = Instant::now();
            if let Some(corpse) = queue.due(now) {
                return Some(corpse);
            }
            let next = queue.corpses.front().map(|(due, _)| due.saturating_duration_since(now));
            queue = match next {
                Some(wait) => {
                    self.changed.wait_timeout(queue, wait).map_or_else(|e| e.into_inner().0, |w| w.0)
                }
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
        None
    }
}

impl Queue {
    /// Takes the first, if it was due at `now`.
    fn due(&mut self, now: Instant) -> Option<Corpse> {
        let (due, _) = self.corpses.front()?;
        if *due <= now { self.corpses.pop_front().map(|(_, corpse)| corpse) } else { None }
    }
}

fn bury(waiting: &Waiting, registry: &Registry) {
    while let Some(corpse) = waiting.next() {
        close(corpse, registry);
    }
    let left = std::mem::take(&mut waiting.lock().corpses);
    // Waiting once for the last is quicker than closing each too early.
    if let Some(last) = left.iter().map(|(due, _)| *due).max() {
        std::thread::sleep(last.saturating_duration_since(Instant::now()));
    }
    left.into_iter().for_each(|(_, corpse)| close(corpse, registry));
}

fn close(corpse: Corpse, registry: &Registry) {
    for thread in corpse.threads {
        // A vCPU thread's panic has been turned into an outcome already.
        let _ = thread.join();
    }
    drop(corpse.remains);
    registry.runtime().reaper_backlog.dec();
}

#[cfg(test)]
#[path = "reaper_test.rs"]
mod tests;
