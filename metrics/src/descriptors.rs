//! What connections of VMs have of the descriptors that they may have, as their owner tells it.
//!
//! Owns the form of the numbers. Never: counts, opens or closes anything.

use std::fmt;

/// Where the number of descriptors that connections have is read: of one VM, or of all of them together.
pub trait DescriptorSource: fmt::Debug + Send + Sync {
    /// The numbers of this moment. Called by a scrape: must not block.
    fn read(&self) -> DescriptorReading;
}

/// Descriptors of connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DescriptorReading {
    /// Taken at this moment.
    pub used: u64,
    /// At most so many; of a VM that is none of its own, but depends on what others take.
    pub max: Option<u64>,
}
