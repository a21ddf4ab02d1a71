//! Bytes between a console and whoever sits at it.
//!
//! Owns a bounded byte queue with waiting on both ends: writers may be on any thread, the reader anywhere. Bytes
//! are never lost between the ends: who has no room waits. Never knows which end is the guest.

use std::collections::VecDeque;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Memory in bytes that an emptied pipe keeps.
const RETAINED: usize = 4096;

/// A pipe that holds `capacity` bytes (at least 1). Memory is taken as bytes come.
pub fn pipe(capacity: usize) -> (PipeWriter, PipeReader) {
    let shared = Arc::new(Shared {
        held: Mutex::new(Held {
            bytes: VecDeque::new(),
            capacity: capacity.max(1),
            writers: 1,
            reader: true,
        }),
        readable: Notify::new(),
        room: Notify::new(),
        room_for_thread: Condvar::new(),
    });
    (PipeWriter(Arc::clone(&shared)), PipeReader(shared))
}

/// The writing end. Clones write to the same pipe, which ends when the last of them is dropped.
pub struct PipeWriter(Arc<Shared>);

/// The reading end. Once it is dropped, writers find the pipe closed.
pub struct PipeReader(Arc<Shared>);

struct Shared {
    held: Mutex<Held>,
    readable: Notify,
    room: Notify,
    room_for_thread: Condvar,
}

struct Held {
    bytes: VecDeque<u8>,
    capacity: usize,
    writers: usize,
    reader: bool,
}

/// The reading end of a pipe is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads any more")]
pub struct Closed;

impl Held {
    fn put(&mut self, bytes: &[u8]) -> Result<usize, Closed> {
        if !self.reader {
            return Err(Closed);
        }
        let room = self.capacity.saturating_sub(self.bytes.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        grow(&mut self.bytes, taken.len(), self.capacity);
        self.bytes.extend(taken);
        Ok(taken.len())
    }
}

/// Makes room for `more` bytes, doubling the allocation but never beyond `capacity` if that suffices.
pub(super) fn grow(bytes: &mut VecDeque<u8>, more: usize, capacity: usize) {
    let needed = bytes.len().saturating_add(more);
    if needed > bytes.capacity() {
        let wanted = bytes.capacity().saturating_mul(2).max(64).min(capacity).max(needed);
        bytes.reserve_exact(wanted - bytes.len());
    }
}

impl PipeWriter {
    /// Takes bytes from the front of `bytes` as far as there is room, and returns how many: 0 if there is none.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, Closed> {
        let taken = self.0.lock().put(bytes)?;
        if taken > 0 {
            self.0.readable.notify_waiters();
        }
        Ok(taken)
    }

    /// Waits until there is room for a byte; returns for how many. Cancel-safe.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn room(&self) -> Result<usize, Closed> {
        let has_room = |held: &Held| match held.capacity - held.bytes.len() {
            _ if !held.reader => Some(Err(Closed)),
            0 => None,
            room => Some(Ok(room)),
        };
        self.0.wait(&self.0.room, has_room).await
    }

    /// Writes all of `bytes`, waiting for room where there is none. Dropped while it waits, it has written a
    /// part.
    ///
    /// # Errors
    /// [`Closed`]; a part may have been written.
    pub async fn write_all(&self, bytes: &[u8]) -> Result<(), Closed> {
        let mut rest = bytes;
        loop {
            rest = rest.get(self.try_write(rest)?..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            self.room().await?;
        }
    }

    /// As [`Self::write_all`], blocking the calling thread: never on a shard.
    ///
    /// # Errors
    /// [`Closed`]; a part may have been written.
    pub fn write_all_blocking(&self, bytes: &[u8]) -> Result<(), Closed> {
        let mut rest = bytes;
        let mut held = self.0.lock();
        loop {
            let taken = held.put(rest)?;
            rest = rest.get(taken..).unwrap_or_default();
            if taken > 0 {
                self.0.readable.notify_waiters();
            }
            if rest.is_empty() {
                return Ok(());
            }
            held = self.0.room_for_thread.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// True once the reading end is gone.
    pub fn is_closed(&self) -> bool {
        !self.0.lock().reader
    }
}

impl PipeReader {
    /// Waits until there is something to read; `false` if nothing is and the last writer is gone. Cancel-safe.
    pub async fn ready(&self) -> bool {
        let readable = |held: &Held| match held.bytes.is_empty() {
            true => (held.writers == 0).then_some(false),
            false => Some(true),
        };
        self.0.wait(&self.0.readable, readable).await
    }

    /// Bytes that can be read at once.
    pub fn available(&self) -> usize {
        self.0.lock().bytes.len()
    }

    /// Copies bytes from the front into `into`, which they stay in front of until they are [skipped](Self::skip);
    /// returns how many.
    pub fn peek(&self, into: &mut [u8]) -> usize {
        let held = self.0.lock();
        let mut copied = 0;
        for (to, from) in into.iter_mut().zip(&held.bytes) {
            *to = *from;
            copied += 1;
        }
        copied
    }

    /// Takes `count` bytes off the front, or what there is.
    pub fn skip(&self, count: usize) {
        let mut held = self.0.lock();
        let count = count.min(held.bytes.len());
        held.bytes.drain(..count);
        self.0.freed(held);
    }

    /// Appends everything that is there to `into`.
    pub fn take(&self, into: &mut Vec<u8>) {
        let mut held = self.0.lock();
        into.extend(held.bytes.drain(..));
        self.0.freed(held);
    }

    /// Waits for bytes and appends all that are there to `into`; `false` at the end. Cancel-safe: dropped while it
    /// waits, nothing is taken.
    pub async fn read(&self, into: &mut Vec<u8>) -> bool {
        let more = self.ready().await;
        self.take(into);
        more
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // Everything here is valid after every statement.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds what it looks for; `notify` tells when to look again.
    async fn wait<T>(&self, notify: &Notify, look: impl Fn(&Held) -> Option<T>) -> T {
        loop {
            // Enabled before the look, so that nothing is missed between the two.
            let mut notified = pin!(notify.notified());
            notified.as_mut().enable();
            if let Some(found) = look(&self.lock()) {
                return found;
            }
            notified.await;
        }
    }

    /// Room was made: tells those who wait for it.
    fn freed(&self, mut held: MutexGuard<'_, Held>) {
        if held.bytes.is_empty() {
            held.bytes.shrink_to(RETAINED);
        }
        drop(held);
        self.room.notify_waiters();
        self.room_for_thread.notify_all();
    }
}

impl Clone for PipeWriter {
    fn clone(&self) -> Self {
        self.0.lock().writers += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.0.lock().writers -= 1;
        self.0.readable.notify_waiters();
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut held = self.0.lock();
        held.reader = false;
        held.bytes.clear();
        self.0.freed(held);
    }
}

impl fmt::Debug for PipeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PipeReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.lock();
        write!(f, "pipe with {} of {} bytes", held.bytes.len(), held.capacity)
    }
}

#[cfg(test)]
#[path = "pipe_test.rs"]
mod tests;
