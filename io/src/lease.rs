//! Guest RAM that is lent to the kernel for one operation.
//!
//! A [`Lease`] is a list of addresses, never a pointer that this process follows and never a reference. It keeps
//! the memory mapped, and belongs to the operation until that has completed: the ring holds it, also when
//! nobody waits for the result any more. When a read has completed (or nobody knows how it ended), the pages that
//! the kernel may have written are marked in the bitmap of [`GuestRam`]; KVM's own log does not see them.

#![expect(
    unsafe_code,
    reason = "preadv and pwritev: the safe wrappers take slices, of which guest RAM has none"
)]

use std::fmt;
use std::io;
use std::mem::offset_of;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use crate::ram::{GuestMemory, GuestRam, RamError};

/// Most pieces that the kernel takes in one operation (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;
/// Most bytes that one operation moves; what is above that is the next one's. A ring copies what is in the page cache
/// on the thread that submits, so this bounds how long others on a shard wait for one request.
pub(crate) const MAX_TRANSFER: u64 = 128 << 10;

/// Pieces that lie in the lease itself, so that to lend a packet takes no allocation. Each makes whatever waits with
/// a lease larger.
const INLINE: usize = 2;

type Region = GuestRegionMmap<AtomicBitmap>;
type List = SmallVec<[Piece; INLINE]>;

/// Part of a request's memory, as the guest gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestRange {
    /// Guest-physical start.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
}

/// What the kernel does with leased memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseUse {
    /// It reads guest RAM: a disk write.
    Source,
    /// It writes guest RAM: a disk read.
    Target,
}

/// An `iovec`: memory as the kernel wants to be told of it. Only ever an address, so it is `Send`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    addr: usize,
    len: usize,
}

const _: () = assert!(
    size_of::<Piece>() == size_of::<libc::iovec>()
        && align_of::<Piece>() == align_of::<libc::iovec>()
        && offset_of!(Piece, addr) == offset_of!(libc::iovec, iov_base)
        && offset_of!(Piece, len) == offset_of!(libc::iovec, iov_len)
);

impl Piece {
    fn end(&self) -> usize {
        self.addr.saturating_add(self.len)
    }
}

/// Guest RAM for one operation: what [`GuestRam::lease`] gives, and what comes back with the result.
///
/// Bytes of a lease are numbered from 0, over all its ranges in their order. `Send`; keeps the RAM mapped.
pub struct Lease {
    /// `None` only in a lease that stands for one that was lost.
    memory: Option<Arc<GuestMemory>>,
    pieces: List,
    len: u64,
    use_: LeaseUse,
    exposed: Option<Exposed>,
}

/// What the kernel was told of: `len` bytes from byte `from` on.
#[derive(Debug, Clone, Copy)]
struct Exposed {
    from: u64,
    len: u64,
    /// The pieces that were cut to start and to end there, as they were before that.
    cuts: [Option<(usize, Piece)>; 2],
}

impl GuestRam {
    /// Lends the ranges to an operation of the kernel. They may overlap; what lies side by side becomes one piece.
    ///
    /// # Errors
    /// [`RamError::OutOfBounds`] if a byte is not in RAM, [`RamError::TooManyPieces`] above [`MAX_PIECES`].
    pub fn lease(&self, ranges: &[GuestRange], use_: LeaseUse) -> Result<Lease, RamError> {
        let memory = self.shared();
        let mut pieces = Pieces { list: List::with_capacity(ranges.len()), region: None };
        let mut len = 0u64;
        for range in ranges {
            pieces.add(memory, *range)?;
            len = len.saturating_add(u64::from(range.len));
        }
        if pieces.list.len() > MAX_PIECES {
            return Err(RamError::TooManyPieces { pieces: pieces.list.len() });
        }
        Ok(Lease { memory: Some(Arc::clone(memory)), pieces: pieces.list, len, use_, exposed: None })
    }
}

/// Pieces in the making.
struct Pieces {
    list: List,
    /// Where the last piece's region starts in the guest.
    region: Option<GuestAddress>,
}

impl Pieces {
    /// Adds a range, split where regions meet.
    fn add(&mut self, memory: &GuestMemory, range: GuestRange) -> Result<(), RamError> {
        let outside = || RamError::OutOfBounds { gpa: range.gpa, len: u64::from(range.len) };
        let mut gpa = range.gpa;
        let mut left = u64::from(range.len);
        while left > 0 {
            let region = memory.find_region(GuestAddress(gpa)).ok_or_else(outside)?;
            let offset = gpa - region.start_addr().0;
            let part = left.min(region.len() - offset);
            let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(part)) else {
                return Err(outside());
            };
            self.push(region.start_addr(), Piece { addr: region.as_ptr() as usize + offset, len });
            left -= part;
            if left > 0 {
                gpa = gpa.checked_add(part).ok_or_else(outside)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, region: GuestAddress, piece: Piece) {
        // Regions may be neighbours here that are none in the guest: a piece stays within one.
        let same = self.region.replace(region) == Some(region);
        match self.list.last_mut() {
            Some(last) if same && last.end() == piece.addr => last.len += piece.len,
            _ => self.list.push(piece),
        }
    }
}

impl Lease {
    /// Stands for a lease that is lost with the operation that had it.
    pub(crate) fn lost() -> Self {
        Self { memory: None, pieces: List::new(), len: 0, use_: LeaseUse::Source, exposed: None }
    }

    /// The same, with more memory behind it: what [`GuestRam::lease`] would give for all ranges.
    ///
    /// # Errors
    /// As [`GuestRam::lease`].
    pub fn and(mut self, ranges: &[GuestRange]) -> Result<Self, RamError> {
        let last = self.pieces.last().and_then(|last| self.locate(*last).ok());
        let region = last.map(|(region, _)| region.start_addr());
        let mut pieces = Pieces { list: std::mem::take(&mut self.pieces), region };
        for range in ranges {
            let outside = RamError::OutOfBounds { gpa: range.gpa, len: u64::from(range.len) };
            pieces.add(self.memory.as_deref().ok_or(outside)?, *range)?;
            self.len = self.len.saturating_add(u64::from(range.len));
        }
        if pieces.list.len() > MAX_PIECES {
            return Err(RamError::TooManyPieces { pieces: pieces.list.len() });
        }
        self.pieces = pieces.list;
        Ok(self)
    }

    /// The same, without its first `len` bytes.
    #[must_use]
    pub fn without(mut self, len: u64) -> Self {
        self.len = self.len.saturating_sub(len);
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let gone = self.pieces.iter().take_while(|piece| {
            let whole = piece.len <= left;
            left -= if whole { piece.len } else { 0 };
            whole
        });
        let gone = gone.count();
        self.pieces.drain(..gone);
        if let Some(first) = self.pieces.first_mut() {
            *first = Piece { addr: first.addr + left, len: first.len - left };
        }
        self
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it was taken for.
    pub fn lease_use(&self) -> LeaseUse {
        self.use_
    }

    /// True if every address from byte `from` on is a multiple of `address`, and every piece's length one of
    /// `length`: what direct I/O asks for. 0 and 1 ask for nothing.
    pub fn is_aligned(&self, from: u64, address: u32, length: u32) -> bool {
        let multiple = |value: usize, of: u32| of <= 1 || value.is_multiple_of(of as usize);
        self.parts(from, self.len.saturating_sub(from))
            .all(|(piece, _)| multiple(piece.addr, address) && multiple(piece.len, length))
    }

    /// Copies `bytes` into guest RAM, to the lease's bytes from `at` on, and marks the pages dirty.
    ///
    /// # Errors
    /// [`RamError::OutsideLease`], or [`RamError::LeaseUse`] if it is no target; nothing was copied.
    pub fn copy_in(&self, bytes: &[u8], at: u64) -> Result<(), RamError> {
        self.check(at, bytes.len() as u64, LeaseUse::Target)?;
        for (piece, place) in self.parts(at, bytes.len() as u64) {
            let (region, offset) = self.locate(piece)?;
            let part = bytes.get(place).unwrap_or_default();
            region.write_slice(part, offset).map_err(|_| not_mapped(piece))?;
        }
        Ok(())
    }

    /// Copies the lease's bytes from `at` on out of guest RAM.
    ///
    /// # Errors
    /// [`RamError::OutsideLease`], or [`RamError::LeaseUse`] if it is no source; nothing was copied.
    pub fn copy_out(&self, bytes: &mut [u8], at: u64) -> Result<(), RamError> {
        self.check(at, bytes.len() as u64, LeaseUse::Source)?;
        for (piece, place) in self.parts(at, bytes.len() as u64) {
            let (region, offset) = self.locate(piece)?;
            let part = bytes.get_mut(place).unwrap_or_default();
            region.read_slice(part, offset).map_err(|_| not_mapped(piece))?;
        }
        Ok(())
    }

    /// Writes zeroes to `len` of the lease's bytes from `at` on, and marks the pages dirty.
    ///
    /// # Errors
    /// As [`Lease::copy_in`].
    pub fn fill_zero(&self, at: u64, len: u64) -> Result<(), RamError> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        self.check(at, len, LeaseUse::Target)?;
        for (mut piece, _) in self.parts(at, len) {
            while piece.len > 0 {
                let (region, offset) = self.locate(piece)?;
                let part = ZEROES.get(..piece.len).unwrap_or(&ZEROES);
                region.write_slice(part, offset).map_err(|_| not_mapped(piece))?;
                piece = Piece { addr: piece.addr + part.len(), len: piece.len - part.len() };
            }
        }
        Ok(())
    }

    fn check(&self, at: u64, len: u64, wanted: LeaseUse) -> Result<(), RamError> {
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(RamError::OutsideLease { at, len, size: self.len });
        }
        if self.use_ != wanted && len > 0 {
            return Err(RamError::LeaseUse { wanted });
        }
        Ok(())
    }

    /// The memory of `len` bytes from byte `at` on, with each part's place among them.
    fn parts(&self, at: u64, len: u64) -> impl Iterator<Item = (Piece, Range<usize>)> + '_ {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let end = at.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        let mut next = 0usize;
        self.pieces.iter().filter_map(move |piece| {
            let start = next;
            next = next.saturating_add(piece.len);
            let (from, to) = (start.max(at), next.min(end));
            (from < to)
                .then(|| (Piece { addr: piece.addr + (from - start), len: to - from }, from - at..to - at))
        })
    }

    fn locate(&self, piece: Piece) -> Result<(&Region, MemoryRegionAddress), RamError> {
        let regions = self.memory.iter().flat_map(|memory| memory.iter());
        let mut found = regions.filter_map(|region| {
            let offset = piece.addr.checked_sub(region.as_ptr() as usize)? as u64;
            (offset < region.len()).then_some((region, MemoryRegionAddress(offset)))
        });
        found.next().ok_or_else(|| not_mapped(piece))
    }

    /// In how many pieces the memory is.
    pub(crate) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Address and length of each piece from byte `from` on, for a call that has returned before the lease is used
    /// otherwise. Of a target, what the call wrote is then told by [`Lease::written`].
    pub(crate) fn addresses(&self, from: u64) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.parts(from, self.len.saturating_sub(from)).map(|(piece, _)| (piece.addr, piece.len))
    }

    /// Marks the pages of `len` bytes from byte `at` on dirty.
    pub(crate) fn written(&self, at: u64, len: u64) {
        if len > 0 {
            self.mark_dirty(at, len);
        }
    }

    /// The pieces from byte `from` on, [`MAX_TRANSFER`] bytes at most, for the kernel: they stay where they are, and
    /// are the kernel's, until [`Lease::settle`].
    pub(crate) fn expose(&mut self, from: u64) -> (*const libc::iovec, u32) {
        if !self.pieces.spilled() {
            // What is in the lease itself would move with it.
            self.pieces.grow(INLINE + 1);
        }
        let len = self.len.saturating_sub(from).min(MAX_TRANSFER);
        let mut skip = usize::try_from(from).unwrap_or(usize::MAX);
        let mut left = usize::try_from(len).unwrap_or(0);
        let (mut first, mut count) = (self.pieces.len(), 0);
        let mut cuts = [None; 2];
        for (index, piece) in self.pieces.iter_mut().enumerate() {
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            if left == 0 {
                break;
            }
            if count == 0 {
                first = index;
            }
            count += 1;
            if skip > 0 {
                cuts[0] = Some((index, *piece));
                *piece = Piece { addr: piece.addr + skip, len: piece.len - skip };
                skip = 0;
            }
            if left < piece.len {
                cuts[1] = Some((index, *piece));
                piece.len = left;
            }
            left -= piece.len;
        }
        self.exposed = Some(Exposed { from, len, cuts });
        let rest = self.pieces.get(first..).unwrap_or_default();
        (rest.as_ptr().cast(), count)
    }

    /// The kernel is done with what was exposed: `count` bytes, or `None` if nobody knows.
    ///
    /// A transfer that came short or failed may have touched everything that it was told of (direct I/O writes
    /// whole blocks, and in any order), so all of that is marked.
    pub(crate) fn settle(&mut self, count: Option<usize>) {
        let Some(Exposed { from, len, cuts }) = self.exposed.take() else { return };
        // The last cut first: both may be of one piece.
        for (index, piece) in cuts.into_iter().rev().flatten() {
            if let Some(place) = self.pieces.get_mut(index) {
                *place = piece;
            }
        }
        // Nothing to read there: nothing was written.
        if self.use_ == LeaseUse::Target && count != Some(0) {
            self.mark_dirty(from, len);
        }
    }

    fn mark_dirty(&self, at: u64, len: u64) {
        for (piece, _) in self.parts(at, len) {
            if let Ok((region, offset)) = self.locate(piece)
                && let Ok(offset) = usize::try_from(offset.0)
            {
                region.get_mmap().bitmap().mark_dirty(offset, piece.len);
            }
        }
    }

    /// Reads from or writes to a file, as the lease's use says; blocks.
    pub(crate) fn transfer(
        &mut self,
        fd: BorrowedFd<'_>,
        from: u64,
        offset: u64,
    ) -> rustix::io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| rustix::io::Errno::INVAL)?;
        let (iovecs, count) = self.expose(from);
        let count = i32::try_from(count).map_err(|_| rustix::io::Errno::INVAL)?;
        let done = match self.use_ {
            // SAFETY: `iovecs` points to `count` iovecs (`Piece` has their layout) in `self.pieces`, which nobody
            // else reaches during the call. They name parts of guest RAM only, which `self.memory` keeps mapped
            // and to which no reference exists anywhere.
            LeaseUse::Target => unsafe { libc::preadv(fd.as_raw_fd(), iovecs, count, offset) },
            // SAFETY: as above.
            LeaseUse::Source => unsafe { libc::pwritev(fd.as_raw_fd(), iovecs, count, offset) },
        };
        let result = usize::try_from(done).map_err(|_| {
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            rustix::io::Errno::from_raw_os_error(errno)
        });
        self.settle(result.ok());
        result
    }
}

impl Drop for Lease {
    /// Of an operation that nobody waited for, nobody knows what it wrote.
    fn drop(&mut self) {
        self.settle(None);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("use", &self.use_)
            .field("len", &self.len)
            .field("pieces", &self.pieces.len())
            .finish_non_exhaustive()
    }
}

fn not_mapped(piece: Piece) -> RamError {
    RamError::OutsideLease { at: 0, len: piece.len as u64, size: 0 }
}

#[cfg(test)]
#[path = "lease_test.rs"]
mod tests;
