//! A disk whose contents are those of a file, a block device or a memfd.
//!
//! Guest RAM is the buffer of every operation; a copy is made only where direct I/O is asked for and the guest's
//! addresses, offset or length are not aligned for it. Owns the file, and with it its lock. Never makes the file
//! longer, and never takes the end of it for zeroes.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tokio::sync::RwLock;

use super::bounce::{Bounce, Bounces, PIECE, Span};
use super::open::{Alignment, DiskFile, check_size};
use super::{Disk, DiskFuture, DiskInfo, check, check_change};
use crate::budget::Budget;
use crate::file::{Ring, RingFile};
use crate::lease::{Lease, MAX_TRANSFER};
use crate::operation::{Allocation, Kind};
use crate::owner::Owner;
use crate::shard::ShardContext;
use crate::vectored::LeaseResult;

/// Bytes that one of the owner's requests per turn buys where the kernel copies them on the loop's thread.
const COPIED: u64 = 16 << 10;
/// What I/O through the page cache asks for.
pub(super) const UNALIGNED: Alignment = Alignment { memory: 1, offset: 1 };

/// A disk on a descriptor.
pub(super) struct FileDisk {
    ring: Ring,
    file: RingFile,
    path: PathBuf,
    info: DiskInfo,
    size: Cell<u64>,
    alignment: Alignment,
    block_device: bool,
    /// Its contents go with it: there is nothing to flush.
    in_memory: bool,
    /// False once the host has refused `FALLOC_FL_ZERO_RANGE`.
    zero_range: Cell<bool>,
    bounces: Bounces,
    on_bounce: Box<dyn Fn()>,
    /// Pays for what a request does beyond its first [`COPIED`] bytes, so that a long one has no more of a turn than
    /// many short ones.
    budget: Budget,
    /// Held alone by what reads blocks to write parts of them, and shared by what writes.
    blocks: RwLock<()>,
}

impl FileDisk {
    pub(super) fn new(cx: &ShardContext, owner: &Owner, file: DiskFile, on_bounce: Box<dyn Fn()>) -> Self {
        let DiskFile { fd, path, info, direct, block_device } = file;
        let alignment = direct.unwrap_or(UNALIGNED);
        let file = match direct {
            Some(_) => cx.ring().direct_file_of(owner, fd),
            None => cx.ring().file_of(owner, fd),
        };
        Self { path, alignment, block_device, on_bounce, ..Self::on(cx, owner, file, info, false) }
    }

    /// A disk on a memfd.
    pub(super) fn in_memory(cx: &ShardContext, owner: &Owner, memfd: OwnedFd, info: DiskInfo) -> Self {
        Self::on(cx, owner, cx.ring().file_of(owner, memfd), info, true)
    }

    fn on(cx: &ShardContext, owner: &Owner, file: RingFile, info: DiskInfo, in_memory: bool) -> Self {
        Self {
            file,
            ring: cx.ring().clone(),
            path: PathBuf::from("memory"),
            info,
            size: Cell::new(info.size),
            alignment: UNALIGNED,
            block_device: false,
            in_memory,
            zero_range: Cell::new(true),
            bounces: Bounces::new(owner.buffers()),
            on_bounce: Box::new(|| ()),
            budget: cx.budget(owner),
            blocks: RwLock::new(()),
        }
    }

    /// Reads some bytes, to the lease's byte `done`.
    async fn read_some(&self, lease: Lease, done: u64, offset: u64) -> LeaseResult {
        if self.is_aligned(&lease, done, offset) {
            return self.ring.readv_at(&self.file, lease, done, offset).await;
        }
        (self.bounce_in(&lease, done, offset).await, lease)
    }

    async fn bounce_in(&self, lease: &Lease, done: u64, offset: u64) -> io::Result<usize> {
        let span = Span::new(offset, lease.len() - done, self.alignment);
        let mut bounce = self.bounces.buffer(span.len, self.alignment).await?;
        (self.on_bounce)();
        let got = self.fill(&mut bounce, span.start).await?.saturating_sub(span.head).min(span.wanted);
        let bytes = bounce.wanted(&span).get(..got).unwrap_or_default();
        lease.copy_in(bytes, done).map_err(io::Error::other)?;
        Ok(got)
    }

    /// Writes some bytes, from the lease's byte `done` on.
    async fn write_some(&self, lease: Lease, done: u64, offset: u64) -> LeaseResult {
        if self.is_aligned(&lease, done, offset) {
            let _shared = self.blocks.read().await;
            return self.ring.writev_at(&self.file, lease, done, offset).await;
        }
        let span = Span::new(offset, lease.len() - done, self.alignment);
        (self.on_bounce)();
        let copy = |part: &mut [u8]| lease.copy_out(part, done).map_err(io::Error::other);
        let result = self.write_span(&span, copy).await;
        (result.map(|()| span.wanted), lease)
    }

    /// Writes what `put` puts into a buffer. Blocks that are only written in part are read first, and nobody
    /// else writes meanwhile.
    async fn write_span(&self, span: &Span, put: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<()> {
        let mut bounce = self.bounces.buffer(span.len, self.alignment).await?;
        if span.is_whole() {
            let _shared = self.blocks.read().await;
            put(bounce.wanted(span))?;
            return self.empty(&mut bounce, span.start).await;
        }
        let _alone = self.blocks.write().await;
        if self.fill(&mut bounce, span.start).await? < span.len {
            return Err(self.shortened(span.start));
        }
        put(bounce.wanted(span))?;
        self.empty(&mut bounce, span.start).await
    }

    /// Reads a whole buffer, or up to the end of the file.
    async fn fill(&self, bounce: &mut Bounce<'_>, offset: u64) -> io::Result<usize> {
        let kind = |done| Kind::Read(offset + done as u64);
        self.move_all(bounce, kind).await
    }

    /// Writes a whole buffer.
    async fn empty(&self, bounce: &mut Bounce<'_>, offset: u64) -> io::Result<()> {
        let len = bounce.bytes.len() - bounce.start;
        let kind = |done| Kind::Write(offset + done as u64);
        if self.move_all(bounce, kind).await? < len {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Goes on until all of the buffer was moved, or nothing more is.
    async fn move_all(&self, bounce: &mut Bounce<'_>, kind: impl Fn(usize) -> Kind) -> io::Result<usize> {
        let len = bounce.bytes.len() - bounce.start;
        let mut done = 0;
        while done < len {
            let bytes = std::mem::take(&mut bounce.bytes);
            let result;
            (result, bounce.bytes) =
                self.ring.on_file(&self.file, bytes, bounce.start + done, kind(done)).await;
            match result {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// The sum over the pieces in which a range is moved if it is not whole blocks; `None` if it is.
    fn sum_of_pieces(&self, offset: u64, len: u64, of: impl Fn(&Span) -> usize) -> Option<u64> {
        let block = u64::from(self.alignment.offset);
        if offset.is_multiple_of(block) && len.is_multiple_of(block) {
            return None;
        }
        Some(Span::all(offset, len, self.alignment).map(|span| of(&span) as u64).sum())
    }

    fn is_aligned(&self, lease: &Lease, done: u64, offset: u64) -> bool {
        let Alignment { memory, offset: block } = self.alignment;
        block == 1 || (offset.is_multiple_of(u64::from(block)) && lease.is_aligned(done, memory, block))
    }

    fn shortened(&self, offset: u64) -> io::Error {
        let text = format!(
            "disk {}: the file ends before byte {offset}, though it had {} bytes: it was made shorter while in use",
            self.path.display(),
            self.size.get()
        );
        io::Error::new(io::ErrorKind::UnexpectedEof, text)
    }

    /// Waits for a share of a turn for the next operation of a request of `len` bytes, after the first `done`. Some was
    /// spent when the request was taken.
    async fn go_on(&self, done: u64, len: u64) {
        let next = len.saturating_sub(done).min(MAX_TRANSFER);
        let pieces = if self.alignment == UNALIGNED { next.div_ceil(COPIED) } else { 1 };
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        self.budget.go_on(pieces.saturating_sub(u32::from(done == 0))).await;
    }

    async fn read_all(&self, mut lease: Lease, offset: u64) -> LeaseResult<()> {
        let len = lease.len();
        if let Err(error) = check(&self.info(), offset, len) {
            return (Err(error), lease);
        }
        let mut done = 0;
        while done < len {
            self.go_on(done, len).await;
            let result;
            (result, lease) = self.read_some(lease, done, offset + done).await;
            match result {
                Ok(0) => return (Err(self.shortened(offset + done)), lease),
                Ok(count) => done += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), lease),
            }
        }
        (Ok(()), lease)
    }

    async fn write_all(&self, mut lease: Lease, offset: u64) -> LeaseResult<()> {
        let len = lease.len();
        if let Err(error) = check_change(&self.info(), offset, len) {
            return (Err(error), lease);
        }
        let mut done = 0;
        while done < len {
            self.go_on(done, len).await;
            let result;
            (result, lease) = self.write_some(lease, done, offset + done).await;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), lease),
                Ok(count) => done += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), lease),
            }
        }
        (Ok(()), lease)
    }

    async fn give_back(&self, offset: u64, len: u64) -> io::Result<()> {
        check_change(&self.info(), offset, len)?;
        let (offset, len) = if self.block_device { self.whole_blocks(offset, len) } else { (offset, len) };
        if len == 0 {
            return Ok(());
        }
        let _shared = self.blocks.read().await;
        self.ring.fallocate(&self.file, Allocation::PunchHole, offset, len).await
    }

    /// The whole blocks within a range: a device refuses parts of them.
    fn whole_blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        let block = u64::from(self.info.block_size);
        let end = (offset + len) - (offset + len) % block;
        let start = offset.next_multiple_of(block);
        (start, end.saturating_sub(start))
    }

    async fn zero(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        check_change(&self.info(), offset, len)?;
        if len == 0 {
            return Ok(());
        }
        if self.info.discard && (may_unmap || self.in_memory) {
            let _shared = self.blocks.read().await;
            if can(self.ring.fallocate(&self.file, Allocation::PunchHole, offset, len).await)? {
                return Ok(());
            }
        }
        if self.zero_range.get() {
            let _shared = self.blocks.read().await;
            let result = self.ring.fallocate(&self.file, Allocation::ZeroRange, offset, len).await;
            self.zero_range.set(!is_errno(&result, Errno::OPNOTSUPP));
            if can(result)? {
                return Ok(());
            }
        }
        self.zero_by_writing(offset, len).await
    }

    async fn zero_by_writing(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            self.go_on(done, len).await;
            let span = Span::new(offset + done, (len - done).min(PIECE), self.alignment);
            let zero = |part: &mut [u8]| {
                part.fill(0);
                Ok(())
            };
            self.write_span(&span, zero).await?;
            done += span.wanted as u64;
        }
        Ok(())
    }
}

/// `false` if the host cannot do it, for this file or this range.
fn can(result: io::Result<()>) -> io::Result<bool> {
    if is_errno(&result, Errno::OPNOTSUPP) || is_errno(&result, Errno::INVAL) {
        return Ok(false);
    }
    result.map(|()| true)
}

fn is_errno(result: &io::Result<()>, errno: Errno) -> bool {
    result.as_ref().err().and_then(Errno::from_io_error) == Some(errno)
}

impl Disk for FileDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo { size: self.size.get(), ..self.info }
    }

    fn read(&self, lease: Lease, offset: u64) -> DiskFuture<'_, (io::Result<()>, Lease)> {
        Box::pin(self.read_all(lease, offset))
    }

    fn write(&self, lease: Lease, offset: u64) -> DiskFuture<'_, (io::Result<()>, Lease)> {
        Box::pin(self.write_all(lease, offset))
    }

    fn flush(&self) -> DiskFuture<'_, io::Result<()>> {
        Box::pin(async {
            if self.in_memory || self.info.read_only {
                return Ok(());
            }
            self.ring.fdatasync(&self.file).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, io::Result<()>> {
        Box::pin(self.give_back(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> DiskFuture<'_, io::Result<()>> {
        Box::pin(self.zero(offset, len, may_unmap))
    }

    fn bytes_to_read(&self, offset: u64, len: u64) -> u64 {
        self.sum_of_pieces(offset, len, |span| span.len).unwrap_or(len)
    }

    fn bytes_to_write(&self, offset: u64, len: u64) -> u64 {
        let moved = |span: &Span| if span.is_whole() { span.len } else { 2 * span.len };
        self.sum_of_pieces(offset, len, moved).unwrap_or(len)
    }

    fn refresh_size(&self) -> io::Result<u64> {
        let size = seek(self.file.as_fd(), SeekFrom::End(0))?;
        let direct = Some(self.alignment).filter(|alignment| *alignment != UNALIGNED);
        check_size(&self.path, size, direct).map_err(io::Error::other)?;
        self.size.set(size);
        Ok(size)
    }
}

#[cfg(test)]
#[path = "file_test.rs"]
mod tests;
