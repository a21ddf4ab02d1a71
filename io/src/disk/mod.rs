//! Where the contents of a virtual disk live: a file, a block device, memory, or nowhere.
//!
//! [`DiskSource`] is opened by whoever assembles a VM (plain data and descriptors, `Send`) and attached on the
//! VM's shard, where it becomes a [`Disk`]. Owns the host's side of a disk: locks, alignment, short reads and
//! writes, the end of the file. Never knows what a sector of a guest's request is for, and never gives
//! a guest memory that it did not fill itself: what cannot be read is an error.

mod bounce;
mod file;
mod memory;
mod null;
mod open;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;

use crate::lease::Lease;
use crate::owner::Owner;
use crate::shard::ShardContext;

pub use open::{DiskError, DiskFile, DiskOptions};

/// Bytes of a sector: the unit of disk sizes, and of every request's offset and length.
pub const SECTOR: u64 = 512;

/// Buffers for copies that a disk has at once, at most; see [`DiskSource::bounce_bytes`].
pub const BOUNCE_BUFFERS: u64 = bounce::BUFFERS as u64;

/// Bytes that a disk takes at most for an operation under way: its future, and what the engine keeps of it. The tables of
/// its lease are not among them.
pub const OPERATION_BYTES: u64 = 3072;

/// A boxed future of a disk. Dropping it abandons the result, not what the kernel has begun.
pub type DiskFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What a disk can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskInfo {
    /// Bytes at this moment, a multiple of [`SECTOR`].
    pub size: u64,
    /// Bytes of a logical block: requests that are not multiples of it work, but cost more.
    pub block_size: u32,
    /// True if nothing may be changed.
    pub read_only: bool,
    /// True if [`Disk::discard`] gives space back.
    pub discard: bool,
    /// True if [`Disk::write_zeroes`] works (also where it has to write them one by one).
    pub write_zeroes: bool,
}

/// A disk on a shard. Operations run concurrently and end in any order.
///
/// Offsets and lengths are in bytes, multiples of [`SECTOR`], and within [`DiskInfo::size`]; else the operation
/// fails with `InvalidInput` and does nothing. On a disk that is read-only, all but reads and flushes fail with
/// `ReadOnlyFilesystem`.
pub trait Disk {
    /// What the disk can do, and its size at this moment.
    fn info(&self) -> DiskInfo;

    /// Reads from `offset` into all of the lease.
    ///
    /// # Errors
    /// What the host says; `UnexpectedEof` if the host's file has become shorter. Part of the lease may have been
    /// written then, with contents of the disk only.
    fn read(&self, lease: Lease, offset: u64) -> DiskFuture<'_, (io::Result<()>, Lease)>;

    /// Writes all of the lease to `offset`. Durable only after a [`Disk::flush`].
    ///
    /// # Errors
    /// What the host says; part of it may have been written.
    fn write(&self, lease: Lease, offset: u64) -> DiskFuture<'_, (io::Result<()>, Lease)>;

    /// Makes durable what was written (discarded, zeroed) by operations that had completed before.
    ///
    /// # Errors
    /// What `fdatasync(2)` says; after an error, nothing is known about earlier writes.
    fn flush(&self) -> DiskFuture<'_, io::Result<()>>;

    /// Tells that the contents are not needed any more; they may become zeroes.
    ///
    /// # Errors
    /// What the host says; `Unsupported` where it cannot.
    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, io::Result<()>>;

    /// Makes the range read as zeroes; gives its space back if `may_unmap` and the host can.
    ///
    /// # Errors
    /// What the host says; part of it may have been zeroed.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> DiskFuture<'_, io::Result<()>>;

    /// Bytes that the host moves for a read of this range, as limits count them: more than `len` where it can move whole
    /// blocks only.
    fn bytes_to_read(&self, _offset: u64, len: u64) -> u64 {
        len
    }

    /// Bytes that the host moves for a write of this range, in either direction: blocks that are written in part are
    /// read first.
    fn bytes_to_write(&self, _offset: u64, len: u64) -> u64 {
        len
    }

    /// Looks how large the disk is now, and gives its size in bytes.
    ///
    /// # Errors
    /// The host's file has a size that a disk cannot have. The old size stays.
    fn refresh_size(&self) -> io::Result<u64>;
}

/// A disk that is not attached to a shard yet.
#[derive(Debug)]
pub enum DiskSource {
    /// A file or block device.
    File(DiskFile),
    /// Sparse memory of the host, zeroes at first; gone with the disk.
    Memory {
        /// Bytes, a multiple of [`SECTOR`].
        size: u64,
        /// True if nothing may be changed.
        read_only: bool,
    },
    /// Forgets what is written, and reads as zeroes. For benchmarks.
    Null {
        /// Bytes, a multiple of [`SECTOR`].
        size: u64,
        /// True if writes are refused.
        read_only: bool,
        /// Reads leave in guest memory what is there, instead of zeroes. That is the guest's own, old data.
        uninitialized_reads: bool,
    },
}

impl DiskSource {
    /// What the disk will be able to do.
    pub fn info(&self) -> DiskInfo {
        match *self {
            Self::File(ref file) => file.info(),
            Self::Memory { size, read_only } | Self::Null { size, read_only, .. } => {
                volatile(size, read_only)
            }
        }
    }

    /// Bytes of the longest buffer that the disk may need to copy data through; 0 if it never copies. One of them is
    /// reserved for it in [`Owner::buffers`] by whoever makes the VM; it has up to [`BOUNCE_BUFFERS`].
    pub fn bounce_bytes(&self) -> u64 {
        match self {
            // Without direct I/O, where zeroes have to be written one by one.
            Self::File(DiskFile { direct: None, info: DiskInfo { read_only: true, .. }, .. })
            | Self::Memory { .. }
            | Self::Null { .. } => 0,
            Self::File(file) => bounce::longest(file.direct.unwrap_or(file::UNALIGNED)),
        }
    }

    /// Makes it a disk on this shard, whose operations are `owner`'s. `on_bounce` is told of each copy that the
    /// alignment of direct I/O forced.
    ///
    /// # Errors
    /// `InvalidInput` if the size of a disk without a file is 0 or no multiple of [`SECTOR`]; no memory for it.
    pub fn attach(
        self,
        cx: &ShardContext,
        owner: &Owner,
        on_bounce: impl Fn() + 'static,
    ) -> io::Result<Rc<dyn Disk>> {
        let info = self.info();
        if info.size == 0 || !info.size.is_multiple_of(SECTOR) || i64::try_from(info.size).is_err() {
            let text = format!("a disk cannot have {} bytes: give a multiple of {SECTOR}", info.size);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(match self {
            Self::File(file) => Rc::new(file::FileDisk::new(cx, owner, file, Box::new(on_bounce))),
            Self::Memory { .. } => Rc::new(memory::attach(cx, owner, info)?),
            Self::Null { uninitialized_reads, .. } => {
                Rc::new(null::NullDisk::new(cx, owner, info, uninitialized_reads))
            }
        })
    }
}

/// What a disk without a file can do.
const fn volatile(size: u64, read_only: bool) -> DiskInfo {
    DiskInfo { size, block_size: 512, read_only, discard: !read_only, write_zeroes: !read_only }
}

/// Refuses what is not made of whole sectors within the disk.
fn check(info: &DiskInfo, offset: u64, len: u64) -> io::Result<()> {
    let inside = offset.checked_add(len).is_some_and(|end| end <= info.size);
    if inside && offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR) {
        return Ok(());
    }
    Err(io::ErrorKind::InvalidInput.into())
}

/// As [`check`], for what changes the disk.
fn check_change(info: &DiskInfo, offset: u64, len: u64) -> io::Result<()> {
    if info.read_only {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    check(info, offset, len)
}

impl fmt::Debug for dyn Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Disk").field(&self.info()).finish()
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
