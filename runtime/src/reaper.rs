//! Closes what is left of ended VMs, so that nobody waits for it.
//!
//! Closing a VM takes 0.2 ms, but 15-23 for some time after something was registered with one of its buses (an
//! ioeventfd), so the reaper lets that time pass. It also joins the vCPU threads, which have finished by then. One
//! thread, started with the first ended VM.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringlet_metrics::Registry;

use crate::kvm::sys::block_asynchronous_signals;

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
    thread: Mutex<Option<(Sender<Corpse>, JoinHandle<()>)>>,
}

impl Reaper {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, thread: Mutex::new(None) }
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
}

/// A place in the backlog.
#[must_use = "a VM that is counted is to be closed"]
pub(crate) struct Place<'a>(&'a Reaper);

impl Place<'_> {
    /// Hands over what is left of a VM. Never waits, unless there is no thread to be had: then it closes the VM
    /// itself.
    pub(crate) fn reap(self, corpse: Corpse) {
        let Self(Reaper { registry, thread }) = self;
        let mut thread = thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            *thread = spawn(registry.clone()).inspect_err(|error| tracing::error!(%error, "no reaper")).ok();
        }
        let refused = match thread.as_ref() {
            Some((corpses, _)) => corpses.send(corpse).err().map(|refused| refused.0),
            None => Some(corpse),
        };
        drop(thread);
        if let Some(corpse) = refused {
            close(corpse, registry);
        }
    }
}

fn spawn(registry: Registry) -> io::Result<(Sender<Corpse>, JoinHandle<()>)> {
    let (sender, corpses) = channel();
    let builder = std::thread::Builder::new().name("ringlet-reaper".into()).stack_size(128 << 10);
    let thread = builder.spawn(move || {
        if let Err(error) = block_asynchronous_signals() {
            tracing::warn!(%error, "the reaper takes part in the host's signals");
        }
        bury(&corpses, &registry);
    })?;
    Ok((sender, thread))
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, handle)) = thread {
            drop(sender);
            let _ = handle.join();
        }
    }
}

fn bury(corpses: &Receiver<Corpse>, registry: &Registry) {
    let mut waiting: VecDeque<Corpse> = VecDeque::new();
    loop {
        let now = Instant::now();
        let due = |corpse: &Corpse| corpse.not_before.is_none_or(|at| at <= now);
        // The grace time is the same for all, so they come due in the order in which they came, or nearly.
        while waiting.front().is_some_and(due) {
            if let Some(corpse) = waiting.pop_front() {
                close(corpse, registry);
            }
        }
        let next = waiting.front().and_then(|corpse| corpse.not_before);
        let wait = next.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
        match corpses.recv_timeout(wait) {
            Ok(corpse) => waiting.push_back(corpse),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // Waiting once for the last is quicker than closing each too early.
    let last = waiting.iter().filter_map(|corpse| corpse.not_before).max();
    std::thread::sleep(last.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now())));
    waiting.into_iter().for_each(|corpse| close(corpse, registry));
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
