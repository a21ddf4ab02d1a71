//! What the requests of a device take of the host's memory.
//!
//! Owns the sums: what one request takes, what is reserved for each queue when a VM is made, and what all queues can
//! take at most. Never counts what belongs to the guest: the data of a request stays in its memory.

use ringlet_io::GuestRange;

use super::device::Identity;
use super::state::{QueueRegisters, QueueState, VirtioState};

/// Bytes for each range of a chain in flight: in the chain and in its lease, each in a list that may be half empty.
const RANGE_BYTES: u64 = 4 * size_of::<GuestRange>() as u64;
/// Shorter lists lie in the chain and the lease; they count as if they were of so many, and did not.
const LEAST_RANGES: u64 = 4;
/// A queue has one chain that was only peeked, besides those in flight.
const PEEKED_BYTES: u64 = 2 * size_of::<GuestRange>() as u64;

/// What the requests of a device take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestMemory {
    /// A request without its chain.
    base: u64,
}

/// What a device takes of the host's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Reserved when its VM is made: a request and a peeked chain for each queue, its saved state, and what else it
    /// keeps.
    pub reserved: u64,
    /// What it can take besides, when every queue is full of the longest requests.
    pub further: u64,
}

impl RequestMemory {
    /// Of requests that take `base` bytes each, without their chains.
    pub(super) const fn new(base: u64) -> Self {
        Self { base }
    }

    /// A request with a chain of `ranges` ranges.
    pub(super) fn of_chain(self, ranges: usize) -> u64 {
        self.base + RANGE_BYTES * (ranges as u64).max(LEAST_RANGES)
    }
}

impl DeviceMemory {
    /// Of a device whose queues have as many requests in flight as they are long.
    pub(super) fn of_requests(identity: &Identity, request: RequestMemory) -> Self {
        let mut memory = Self::of_chains(identity);
        for &size in &identity.queue_sizes {
            let longest = request.of_chain(size.into());
            memory.reserved += longest;
            memory.further += longest * u64::from(size).saturating_sub(1);
        }
        memory
    }

    /// Of a device that serves one chain of a queue after the other and holds none of them.
    pub(crate) fn of_chains(identity: &Identity) -> Self {
        let peeked = |size: &u16| PEEKED_BYTES * u64::from(*size).max(LEAST_RANGES);
        let chains: u64 = identity.queue_sizes.iter().map(peeked).sum();
        let queue = size_of::<QueueRegisters>() + size_of::<Option<QueueState>>();
        let state = size_of::<VirtioState>() + queue * identity.queue_sizes.len();
        Self { reserved: chains + state as u64, further: 0 }
    }

    /// And so much that it keeps, and so much that it can take besides.
    #[must_use]
    pub const fn and(self, reserved: u64, further: u64) -> Self {
        Self { reserved: self.reserved + reserved, further: self.further + further }
    }
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
