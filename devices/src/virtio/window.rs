//! How much of a device's work may be in flight at once, in bytes.
//!
//! Owns the places. Descriptors of a queue may all name the same memory, so neither the size of guest RAM nor that of
//! the queues bounds what a driver can hand over; but a pause, a reset and an end of the VM wait for all that is in
//! flight. What does not fit stays the driver's until something completes. Never a limit of speed: that is the
//! limiter's.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of requests of one device, all its queues together, that may be in flight.
pub(super) const WINDOW_BYTES: u64 = 64 << 20;
/// What places are counted in.
const UNIT: u64 = 4096;

/// The places of one device. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Window(Arc<Semaphore>);

/// A place in the window, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Window {
    /// A window in which nothing is.
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(units(WINDOW_BYTES) as usize)))
    }

    /// Waits for a place of `bytes`, in the order of asking. What is larger than the window has it for itself.
    /// Cancel-safe.
    pub(super) async fn enter(&self, bytes: u64) -> Place {
        let wanted = units(bytes.min(WINDOW_BYTES));
        // The semaphore is never closed.
        Place { _permit: Arc::clone(&self.0).acquire_many_owned(wanted).await.ok() }
    }
}

/// Units that `bytes` take, of at most [`WINDOW_BYTES`].
fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "window_test.rs"]
mod tests;
