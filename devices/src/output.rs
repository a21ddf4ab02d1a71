//! Serial output on its way from vCPU threads to the shard.
//!
//! Owns a bounded byte buffer, allocated when the first byte comes, and what happens when it is full: the
//! vCPU waits and nothing is lost, or the oldest bytes go. Never waits, and never writes anywhere: the
//! shard fetches the bytes, and a vCPU thread decides how it waits.

use std::fmt;
use std::sync::{Arc, PoisonError};
#[cfg(not(all(test, ringlet_loom)))]
use std::sync::{Mutex, MutexGuard};

#[cfg(all(test, ringlet_loom))]
use loom::sync::{Mutex, MutexGuard};
use ringlet_metrics::VmMetrics;

/// What happens to a byte for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// It is refused; the vCPU waits for room and sends it again. Nothing is lost.
    Park,
    /// The oldest byte makes room for it and is counted as dropped.
    DropOldest,
}

/// The buffer is full and the byte was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the serial output is full")]
pub struct Full;

/// Bounded byte buffer: vCPU threads push, the shard takes.
pub struct SerialOutput {
    buffer: Mutex<Buffer>,
    on_data: Box<dyn Fn() + Send + Sync>,
    metrics: Arc<VmMetrics>,
}

impl SerialOutput {
    /// Capacity in bytes that suits a console: 64 KiB.
    pub const DEFAULT_CAPACITY: usize = 64 << 10;

    /// A buffer of `capacity` bytes (at least 1). `on_data` is called, without any lock of this type held,
    /// whenever the buffer stops being empty: it should ring the shard's doorbell and must not wait.
    pub fn new(
        capacity: usize,
        overflow: Overflow,
        on_data: impl Fn() + Send + Sync + 'static,
        metrics: Arc<VmMetrics>,
    ) -> Self {
        Self { buffer: Mutex::new(Buffer::new(capacity, overflow)), on_data: Box::new(on_data), metrics }
    }

    /// Appends a byte.
    ///
    /// # Errors
    /// [`Full`] with [`Overflow::Park`]: the byte was not taken; wait for [`SerialOutput::has_room`].
    pub fn push(&self, byte: u8) -> Result<(), Full> {
        self.append(byte)?.ring();
        Ok(())
    }

    /// True if the next byte will be taken. If not, the next [`SerialOutput::take`] tells its caller that
    /// somebody waits.
    pub fn has_room(&self) -> bool {
        self.lock().has_room()
    }

    /// Fetches everything that is buffered: `into` is cleared and takes the place of the buffer, so that
    /// in the steady state nothing is allocated. Returns true if a vCPU found the buffer full since the last
    /// call: wake it, it waits for [`SerialOutput::has_room`].
    pub fn take(&self, into: &mut Vec<u8>) -> bool {
        self.lock().take(into)
    }

    /// Bytes dropped so far ([`Overflow::DropOldest`]).
    pub fn dropped(&self) -> u64 {
        self.metrics.serial_dropped_bytes.get()
    }

    /// Appends a byte; the caller rings the doorbell once its own locks are released.
    pub(crate) fn append(&self, byte: u8) -> Result<Appended<'_>, Full> {
        let mut buffer = self.lock();
        let pushed = buffer.push(byte)?;
        // Under the lock: whoever takes the bytes finds the numbers that belong to them.
        self.metrics.serial_sent_bytes.inc();
        if pushed.dropped {
            self.metrics.serial_dropped_bytes.inc();
        }
        drop(buffer);
        Ok(Appended(pushed.first.then_some(self)))
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SerialOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialOutput").field("buffer", &self.buffer).finish_non_exhaustive()
    }
}

/// A byte is in the buffer; whoever fetches it may not know yet.
#[must_use = "the shard must be told"]
pub(crate) struct Appended<'a>(Option<&'a SerialOutput>);

impl Appended<'_> {
    /// Tells the shard, if the buffer was empty.
    pub(crate) fn ring(self) {
        if let Some(output) = self.0 {
            (output.on_data)();
        }
    }
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pushed {
    /// The buffer was empty.
    first: bool,
    /// An older byte was dropped.
    dropped: bool,
}

/// The buffer without its lock: every method is one atomic step, which is what the model test relies on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Buffer {
    /// The bytes; once full, a ring whose oldest byte is at `head`.
    bytes: Vec<u8>,
    head: usize,
    capacity: usize,
    overflow: Overflow,
    /// A vCPU found no room since the last take.
    waiting: bool,
}

impl Buffer {
    /// Memory in bytes that a buffer keeps once its bytes were taken.
    const RETAINED: usize = 4096;

    const fn new(capacity: usize, overflow: Overflow) -> Self {
        let capacity = if capacity == 0 { 1 } else { capacity };
        Self { bytes: Vec::new(), head: 0, capacity, overflow, waiting: false }
    }

    const fn is_full(&self) -> bool {
        self.bytes.len() >= self.capacity
    }

    fn has_room(&mut self) -> bool {
        let room = self.overflow == Overflow::DropOldest || !self.is_full();
        self.waiting |= !room;
        room
    }

    fn push(&mut self, byte: u8) -> Result<Pushed, Full> {
        if !self.has_room() {
            return Err(Full);
        }
        let pushed = Pushed { first: self.bytes.is_empty(), dropped: self.is_full() };
        if pushed.dropped {
            if let Some(oldest) = self.bytes.get_mut(self.head) {
                *oldest = byte;
            }
            self.head = (self.head + 1) % self.capacity;
        } else {
            self.grow();
            self.bytes.push(byte);
        }
        Ok(pushed)
    }

    /// Doubles a full allocation, but never beyond the capacity.
    fn grow(&mut self) {
        let (len, allocated) = (self.bytes.len(), self.bytes.capacity());
        if len == allocated {
            let wanted = allocated.saturating_mul(2).max(64).min(self.capacity);
            self.bytes.reserve_exact(wanted.saturating_sub(len));
        }
    }

    fn take(&mut self, into: &mut Vec<u8>) -> bool {
        into.clear();
        into.shrink_to(Self::RETAINED);
        std::mem::swap(&mut self.bytes, into);
        into.rotate_left(std::mem::take(&mut self.head));
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;

#[cfg(all(test, ringlet_loom))]
#[path = "output_loom_test.rs"]
mod loom_tests;
