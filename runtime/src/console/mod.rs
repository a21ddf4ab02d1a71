//! Where guests' output goes: nowhere, into a stream, line by line into a shared one, or into memory.
//!
//! Guest bytes are raw only in a stream of one VM; lines are escaped (SEC-13).

mod pump;
mod sink;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use ringlet_devices::Overflow;

pub use pump::ConsoleInput;
pub(crate) use pump::{ConsoleParts, ConsolePump};
pub(crate) use sink::Sink;

/// Where a VM's output goes.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Console {
    /// Nowhere; it is counted only.
    #[default]
    Discard,
    /// To a stream, byte for byte. A guest that prints faster than the stream takes waits.
    Stream(StreamConsole),
    /// To a stream that several VMs share: whole lines, each with a prefix, control characters escaped. Output
    /// that the stream does not take in time is dropped, oldest first, and counted.
    Lines(LineConsole),
    /// Into memory: the last bytes.
    Buffer(ConsoleBuffer),
}

impl Console {
    /// What happens when the guest prints faster than the console takes.
    pub(crate) fn overflow(&self) -> Overflow {
        match self {
            Self::Stream(_) => Overflow::Park,
            Self::Discard | Self::Lines(_) | Self::Buffer(_) => Overflow::DropOldest,
        }
    }

    /// Bytes of memory that it takes at most, beside the batch that is handed to it.
    pub(crate) fn memory(&self) -> u64 {
        match self {
            Self::Discard | Self::Stream(_) => 0,
            Self::Lines(_) => sink::LINES_BYTES as u64,
            Self::Buffer(buffer) => buffer.capacity as u64,
        }
    }

    /// True if both keep what is printed in the same memory.
    pub(crate) fn shares_memory(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Buffer(one), Self::Buffer(other)) => Arc::ptr_eq(&one.held, &other.held),
            _ => false,
        }
    }

    /// Why output was lost, if it was: the stream could not be written. That nobody reads it any more is no loss.
    pub fn lost(&self) -> Option<&str> {
        match self {
            Self::Stream(console) => console.state.lost.get(),
            Self::Lines(console) => console.state.lost.get(),
            Self::Discard | Self::Buffer(_) => None,
        }
        .map(String::as_str)
    }

    /// Something was written to a stream, and its last line is not finished.
    pub fn is_in_line(&self) -> bool {
        matches!(self, Self::Stream(console) if console.state.in_line.load(Ordering::Relaxed))
    }
}

/// What became of the output.
#[derive(Debug, Default)]
pub(crate) struct StreamState {
    lost: OnceLock<String>,
    in_line: AtomicBool,
}

/// A console of bytes as they are. Clones share the stream.
#[derive(Debug, Clone)]
pub struct StreamConsole {
    stream: Arc<OwnedFd>,
    state: Arc<StreamState>,
}

impl StreamConsole {
    /// A console that writes to `stream`.
    pub fn new(stream: OwnedFd) -> Self {
        Self { stream: Arc::new(stream), state: Arc::default() }
    }
}

/// A console of prefixed lines. Clones share the stream, and their lines do not mix.
#[derive(Debug, Clone)]
pub struct LineConsole {
    stream: Arc<OwnedFd>,
    state: Arc<StreamState>,
    turn: Arc<tokio::sync::Mutex<()>>,
    prefix: String,
}

impl LineConsole {
    /// A console that writes to `stream`, without a prefix.
    pub fn new(stream: OwnedFd) -> Self {
        Self { stream: Arc::new(stream), state: Arc::default(), turn: Arc::default(), prefix: String::new() }
    }

    /// The same stream with each line preceded by `prefix`.
    pub fn with_prefix(&self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self.clone() }
    }
}

/// The last bytes of a VM's serial output, in memory. Clones share them.
#[derive(Debug, Clone)]
pub struct ConsoleBuffer {
    held: Arc<Mutex<Held>>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Held {
    bytes: VecDeque<u8>,
    first_byte_at: Option<Instant>,
}

impl Held {
    /// Makes room for `more` bytes, doubling the allocation but never beyond `capacity`.
    fn grow(&mut self, more: usize, capacity: usize) {
        let needed = self.bytes.len().saturating_add(more);
        if needed > self.bytes.capacity() {
            let wanted = self.bytes.capacity().saturating_mul(2).min(capacity).max(needed);
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
    }
}

impl ConsoleBuffer {
    /// Keeps the last `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { held: Arc::default(), capacity }
    }

    /// A copy of what is there, oldest first.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().bytes.iter().copied().collect()
    }

    /// When the first byte of all arrived here; `None` before that.
    pub fn first_byte_at(&self) -> Option<Instant> {
        self.lock().first_byte_at
    }

    pub(crate) fn append(&self, new: &[u8]) {
        if new.is_empty() {
            return;
        }
        let mut held = self.lock();
        held.first_byte_at.get_or_insert_with(Instant::now);
        let length = held.bytes.len();
        let new = new.get(new.len().saturating_sub(self.capacity)..).unwrap_or_default();
        let excess = (length + new.len()).saturating_sub(self.capacity);
        held.bytes.drain(..excess.min(length));
        held.grow(new.len(), self.capacity);
        held.bytes.extend(new);
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
