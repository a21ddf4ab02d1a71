//! What disks need of the ring: reads and writes of leased guest RAM, and changes to a file's space.
//!
//! A lease is handed over and comes back with the result; if nobody waits any more, it stays with the operation
//! until that has completed.

use std::io;

use crate::file::{Ring, RingFile, Sort};
use crate::lease::{Lease, LeaseUse};
use crate::operation::{Allocation, Kind, Memory};

/// What an operation on guest RAM gives back: how many bytes (or nothing), or why not, and the lease.
pub type LeaseResult<T = usize> = (io::Result<T>, Lease);

impl Ring {
    /// Reads from `offset` of the file into guest RAM, from the lease's byte `start` on; fewer bytes at the end of
    /// the file, or as the kernel likes.
    ///
    /// # Errors
    /// What `preadv(2)` says; `InvalidInput` if the lease is no target. The lease is lost (empty) only with a
    /// thread that panicked.
    pub async fn readv_at(&self, file: &RingFile, lease: Lease, start: u64, offset: u64) -> LeaseResult {
        self.transfer(file, lease, LeaseUse::Target, start, Kind::Read(offset)).await
    }

    /// Writes guest RAM to `offset` of the file, from the lease's byte `start` on; maybe not all.
    ///
    /// # Errors
    /// What `pwritev(2)` says; else as [`Ring::readv_at`] (the lease must be a source).
    pub async fn writev_at(&self, file: &RingFile, lease: Lease, start: u64, offset: u64) -> LeaseResult {
        self.transfer(file, lease, LeaseUse::Source, start, Kind::Write(offset)).await
    }

    async fn transfer(
        &self,
        file: &RingFile,
        lease: Lease,
        wanted: LeaseUse,
        start: u64,
        kind: Kind,
    ) -> LeaseResult {
        let (Kind::Read(offset) | Kind::Write(offset), Ok(start)) = (kind, usize::try_from(start)) else {
            return (Err(io::ErrorKind::InvalidInput.into()), lease);
        };
        if lease.lease_use() != wanted || i64::try_from(offset).is_err() {
            return (Err(io::ErrorKind::InvalidInput.into()), lease);
        }
        let (result, memory) = self.operate(file, Memory::Guest(lease), start, kind, Sort::File).await;
        (result, memory.into_lease())
    }

    /// Changes what space a part of the file takes, and makes it read as zeroes. The file keeps its size.
    ///
    /// # Errors
    /// What `fallocate(2)` says: `EOPNOTSUPP` where the file system or device cannot.
    pub async fn fallocate(&self, file: &RingFile, how: Allocation, offset: u64, len: u64) -> io::Result<()> {
        let kind = Kind::Allocate { how, offset, len };
        loop {
            match self.operate(file, Memory::none(), 0, kind, Sort::File).await.0 {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }
}

#[cfg(test)]
#[path = "vectored_test.rs"]
mod tests;
