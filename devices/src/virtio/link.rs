//! The handshake of a slow register write: a vCPU asks, the worker answers.
//!
//! Owns the ticket of the write that is under way, and whether there is still a worker. Never waits: the vCPU
//! thread waits by [`Wait`](crate::Wait), in its own state machine.

use std::fmt;
use std::sync::Arc;
#[cfg(not(all(test, ringlet_loom)))]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(all(test, ringlet_loom))]
use loom::sync::atomic::{AtomicBool, Ordering};

/// One slow write: done or not.
#[derive(Debug, Default)]
pub(super) struct Ticket(AtomicBool);

impl Ticket {
    /// The write is done, with everything that it entails.
    pub(super) fn finish(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_done(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Between the register file and its worker.
pub(super) struct Link {
    /// The worker has stopped, with nothing in flight: nobody will answer, and nothing will write guest memory.
    gone: AtomicBool,
    /// Called after every answer, without a lock held.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Link {
    pub(super) fn new(wake: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { gone: AtomicBool::new(false), wake })
    }

    /// Lets waiting vCPUs look again.
    pub(super) fn wake(&self) {
        (self.wake)();
    }

    /// The worker stops, having drained. A worker that ends otherwise does not say so, and the vCPUs that
    /// wait for it wait until they are stopped: its requests may still write guest memory.
    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("gone", &self.is_gone()).finish_non_exhaustive()
    }
}
