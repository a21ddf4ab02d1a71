//! What the host buffers for a VM, as its owner tells it.
//!
//! Owns the form of the numbers. Never: counts, or knows what is buffered.

use std::fmt;

/// Where the numbers of a VM's account of buffers are read.
pub trait BufferSource: fmt::Debug + Send + Sync {
    /// The numbers of this moment. Called by a scrape: must not block.
    fn read(&self) -> BufferReading;
}

/// What the host buffers for a VM, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BufferReading {
    /// At most so many.
    pub max: u64,
    /// Taken at this moment.
    pub used: u64,
    /// Most that were ever taken at a time.
    pub peak: u64,
    /// How often something had to wait because there was no room for it.
    pub held_back: u64,
}
