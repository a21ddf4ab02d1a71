//! The thread that a kick goes to, for as long as it is there.
//!
//! Owns the count of those who kick at this moment: a signal to a thread that is gone is not to be sent, so the thread
//! waits for them before it goes. Who kicks waits for nobody.

use std::sync::OnceLock;

#[cfg(not(all(test, ringlet_loom)))]
use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread::yield_now,
};

#[cfg(all(test, ringlet_loom))]
use loom::{
    sync::atomic::{AtomicU32, Ordering},
    thread::yield_now,
};

use super::control::KickTarget;

/// The thread has left, or is about to.
const GONE: u32 = 1 << 31;

/// A thread, from its arrival on.
pub(super) struct Target<T> {
    thread: OnceLock<T>,
    /// How many kick, and [`GONE`].
    kickers: AtomicU32,
}

impl<T: KickTarget> Target<T> {
    pub(super) fn new() -> Self {
        Self { thread: OnceLock::new(), kickers: AtomicU32::new(0) }
    }

    /// The thread is there.
    pub(super) fn arrive(&self, thread: T) {
        let _ = self.thread.set(thread);
    }

    /// Kicks the thread if it is there.
    pub(super) fn kick(&self) {
        if self.kickers.fetch_add(1, Ordering::SeqCst) & GONE == 0
            && let Some(thread) = self.thread.get()
        {
            thread.kick();
        }
        self.kickers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Called by the thread: nobody kicks it after this.
    pub(super) fn leave(&self) {
        self.kickers.fetch_or(GONE, Ordering::SeqCst);
        while self.kickers.load(Ordering::SeqCst) != GONE {
            yield_now();
        }
    }
}
