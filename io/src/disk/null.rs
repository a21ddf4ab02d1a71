//! The disk that forgets: for measuring everything but a disk.
//!
//! Reads as zeroes, which are written to guest memory like any disk's contents. Only where it was told so in as
//! many words, a read leaves guest memory as it is. Never touches memory of the host.

use std::io;

use super::{Disk, DiskFuture, DiskInfo, check, check_change};
use crate::budget::Budget;
use crate::lease::Lease;
use crate::owner::Owner;
use crate::shard::ShardContext;

/// Zeroes in bytes that one of the owner's requests per turn buys: however many requests are under way, all of an
/// owner's disks together write a bounded number in a turn.
const PIECE: u64 = 16 << 10;

/// A disk without contents.
pub(super) struct NullDisk {
    budget: Budget,
    info: DiskInfo,
    uninitialized_reads: bool,
}

impl NullDisk {
    pub(super) fn new(cx: &ShardContext, owner: &Owner, info: DiskInfo, uninitialized_reads: bool) -> Self {
        Self { budget: cx.budget(owner), info, uninitialized_reads }
    }

    async fn fill(&self, lease: &Lease, offset: u64) -> io::Result<()> {
        check(&self.info, offset, lease.len())?;
        if self.uninitialized_reads {
            return Ok(());
        }
        let mut done = 0;
        while done < lease.len() {
            let part = PIECE.min(lease.len() - done);
            lease.fill_zero(done, part).map_err(io::Error::other)?;
            done += part;
            if done < lease.len() {
                self.budget.go_on(1).await;
            }
        }
        Ok(())
    }
}

impl Disk for NullDisk {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn read(&self, lease: Lease, offset: u64) -> DiskFuture<'_, (io::Result<()>, Lease)> {
        Box::pin(async move { (self.fill(&lease, offset).await, lease) })
    }

    fn write(&self, lease: Lease, offset: u64) -> DiskFuture<'_, (io::Result<()>, Lease)> {
        Box::pin(async move { (check_change(&self.info, offset, lease.len()), lease) })
    }

    fn flush(&self) -> DiskFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, io::Result<()>> {
        Box::pin(async move { check_change(&self.info, offset, len) })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> DiskFuture<'_, io::Result<()>> {
        Box::pin(async move { check_change(&self.info, offset, len) })
    }

    fn refresh_size(&self) -> io::Result<u64> {
        Ok(self.info.size)
    }
}
