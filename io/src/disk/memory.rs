//! A disk in the host's memory: a memfd of its own, sparse, that goes with the disk.
//!
//! Takes memory as it is written, and gives back what is discarded or zeroed. Never on any file system.

use std::io;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::DiskInfo;
use super::file::FileDisk;
use crate::owner::Owner;
use crate::shard::ShardContext;

/// Makes the memfd and a disk of it.
pub(super) fn attach(cx: &ShardContext, owner: &Owner, info: DiskInfo) -> io::Result<FileDisk> {
    let memfd = memfd_create("ringlet-disk", MemfdFlags::CLOEXEC)?;
    ftruncate(&memfd, info.size)?;
    Ok(FileDisk::in_memory(cx, owner, memfd, info))
}
