//! The last of what a console printed, in memory.
//!
//! Owns a bounded ring of bytes: the oldest make room for new ones and are counted. Never waits, and never changes
//! a byte: who shows the bytes to a terminal escapes them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pipe::grow;

/// The last bytes that a guest printed. Clones share them; any thread may read. Memory is taken as bytes come.
#[derive(Clone)]
pub struct ConsoleLog {
    kept: Arc<Mutex<Kept>>,
    capacity: usize,
}

#[derive(Default)]
struct Kept {
    bytes: VecDeque<u8>,
    dropped: u64,
}

impl ConsoleLog {
    /// Capacity in bytes that suits a VM: 64 KiB.
    pub const DEFAULT_CAPACITY: usize = 64 << 10;

    /// Keeps the last `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { kept: Arc::default(), capacity }
    }

    /// Appends `new`; returns how many bytes, old or new, had to go.
    pub fn append(&self, new: &[u8]) -> u64 {
        let mut kept = self.lock();
        let tail = new.get(new.len().saturating_sub(self.capacity)..).unwrap_or_default();
        let excess = (kept.bytes.len() + tail.len()).saturating_sub(self.capacity);
        kept.bytes.drain(..excess);
        grow(&mut kept.bytes, tail.len(), self.capacity);
        kept.bytes.extend(tail);
        let dropped = (excess + new.len() - tail.len()) as u64;
        kept.dropped += dropped;
        dropped
    }

    /// A copy of what is there, oldest first.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().bytes.iter().copied().collect()
    }

    /// Bytes that had to go so far.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Everything here is valid after every statement.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ConsoleLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.lock();
        write!(f, "log of {} bytes, {} dropped", kept.bytes.len(), kept.dropped)
    }
}

#[cfg(test)]
#[path = "log_test.rs"]
mod tests;
