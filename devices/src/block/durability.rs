//! When completed writes are durable (virtio 1.2, section 5.2.6.2).
//!
//! Owns the mode of the write cache, and flushes: one at a time, each for everybody who asked before it began.
//! Never starts one in cache mode `unsafe`. A flush that failed is remembered for good: the kernel reports a lost
//! page once and then forgets it, so a later flush that succeeds proves nothing.

use std::cell::Cell;
use std::future::Future;
use std::io;

use tokio::sync::Notify;

use super::error::BlockError;

/// What the host does for the durability of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cache {
    /// A flush makes durable what was written before it. If the driver did not negotiate flushes, or turned the
    /// write cache off, every write is durable before it completes.
    #[default]
    Writeback,
    /// Flushes are answered and not done, whatever the driver negotiated: a crash of the host loses data. For
    /// disks that are thrown away.
    Unsafe,
}

/// The write cache of one device.
#[derive(Debug)]
pub struct Durability {
    cache: Cache,
    /// The driver flushes; else every write is made durable.
    writeback: Cell<bool>,
    lost: Cell<bool>,
    running: Cell<bool>,
    /// Flushes begun; the last of them may be running.
    begun: Cell<u64>,
    /// The last flush that came to its end, well or not.
    ended: Cell<u64>,
    end: Notify,
}

impl Durability {
    /// A cache of which nothing is known to be lost, in writethrough mode: what a device is before its driver
    /// says that it flushes.
    pub fn new(cache: Cache) -> Self {
        Self {
            cache,
            writeback: Cell::new(false),
            lost: Cell::new(false),
            running: Cell::new(false),
            begun: Cell::new(0),
            ended: Cell::new(0),
            end: Notify::new(),
        }
    }

    /// Whether writes may complete before they are durable.
    pub fn is_writeback(&self) -> bool {
        self.writeback.get()
    }

    /// Sets the mode for writes that complete from now on.
    pub fn set_writeback(&self, writeback: bool) {
        self.writeback.set(writeback);
    }

    /// Whether a flush has failed, so that completed writes may be lost.
    pub fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Remembers a flush that failed in an earlier life of the device.
    pub fn set_lost(&self) {
        self.lost.set(true);
    }

    /// What a write does before it completes: nothing if the driver flushes, else a flush. `flush` starts one.
    ///
    /// # Errors
    /// As [`Durability::flush`].
    pub async fn settle<F>(&self, flush: impl Fn() -> F) -> Result<(), BlockError>
    where
        F: Future<Output = io::Result<()>>,
    {
        if self.is_writeback() { Ok(()) } else { self.flush(flush).await }
    }

    /// Makes durable whatever was written before the call. `flush` starts a flush of the disk; it is called at
    /// most once, and not at all if somebody else's flush begins after this call. May be dropped at any point.
    ///
    /// # Errors
    /// If that flush fails, or one failed before.
    pub async fn flush<F>(&self, flush: impl Fn() -> F) -> Result<(), BlockError>
    where
        F: Future<Output = io::Result<()>>,
    {
        if self.cache == Cache::Unsafe {
            return Ok(());
        }
        let wanted = self.begun.get() + 1;
        while self.ended.get() < wanted && !self.lost.get() {
            if self.running.get() {
                self.end.notified().await;
            } else {
                self.lead(flush()).await?;
            }
        }
        if self.lost.get() { Err(BlockError::FlushLost) } else { Ok(()) }
    }

    /// Runs a flush for everybody who waits.
    async fn lead(&self, flush: impl Future<Output = io::Result<()>>) -> Result<(), BlockError> {
        let _running = Running::new(self);
        let number = self.begun.get();
        let result = flush.await;
        self.ended.set(number);
        if result.is_err() {
            self.lost.set(true);
        }
        Ok(result?)
    }
}

/// A flush under way. Dropped before its end, it has flushed for nobody, and somebody else begins the next.
struct Running<'a>(&'a Durability);

impl<'a> Running<'a> {
    fn new(owner: &'a Durability) -> Self {
        owner.running.set(true);
        owner.begun.set(owner.begun.get() + 1);
        Self(owner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
        self.0.end.notify_waiters();
    }
}

#[cfg(test)]
#[path = "durability_test.rs"]
mod tests;
