//! One operation on a descriptor, and all that the kernel needs until it has completed.
//!
//! Owns the memory of the operation meanwhile: bytes of ours, or a lease of guest RAM. Never runs it: that is
//! the engines' work.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use tokio::sync::OwnedSemaphorePermit;

use crate::lease::{Lease, MAX_TRANSFER};

/// The offset that means "at the stream's own position".
pub(crate) const CURRENT_POSITION: u64 = u64::MAX;

/// What an operation gives back: how many bytes, or why not, and its memory.
pub(crate) type Outcome = (io::Result<usize>, Memory);

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Read(u64),
    Write(u64),
    SyncAll,
    SyncData,
    Allocate { how: Allocation, offset: u64, len: u64 },
}

/// How the space of a file is changed ([`Ring::fallocate`](crate::Ring::fallocate)). The file keeps its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Gives the space back; it reads as zeroes.
    PunchHole,
    /// Makes it read as zeroes, and keeps the space.
    ZeroRange,
}

impl Allocation {
    pub(crate) fn flags(self) -> FallocateFlags {
        match self {
            Self::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Self::ZeroRange => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        }
    }
}

/// The memory of an operation.
#[derive(Debug)]
pub(crate) enum Memory {
    Ours(Vec<u8>),
    Guest(Lease),
}

impl Memory {
    /// What an operation has that needs none.
    pub(crate) const fn none() -> Self {
        Self::Ours(Vec::new())
    }

    /// Gives a buffer back.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Ours(buf) => buf,
            Self::Guest(_) => Vec::new(),
        }
    }

    /// Gives a lease back.
    pub(crate) fn into_lease(self) -> Lease {
        match self {
            Self::Guest(lease) => lease,
            Self::Ours(_) => Lease::lost(),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::none()
    }
}

/// One operation and all that it needs until it has completed.
pub(crate) struct Request {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) memory: Memory,
    /// Where in `memory` to start.
    pub(crate) start: usize,
    pub(crate) kind: Kind,
    pub(crate) places: Places,
}

impl Request {
    /// Most bytes that it moves.
    pub(crate) fn bytes(&self) -> u64 {
        let (Kind::Read(_) | Kind::Write(_)) = self.kind else { return 0 };
        let start = self.start as u64;
        match &self.memory {
            Memory::Ours(buf) => (buf.len() as u64).saturating_sub(start),
            Memory::Guest(lease) => lease.len().saturating_sub(start).min(MAX_TRANSFER),
        }
    }
}

/// The operation's place among those under way: on the shard, and among those of its owner.
pub(crate) struct Places {
    pub(crate) _shard: OwnedSemaphorePermit,
    pub(crate) _owner: Option<OwnedSemaphorePermit>,
}
