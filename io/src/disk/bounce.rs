//! Memory of our own between guest RAM and a file, for what direct I/O cannot do in place.
//!
//! Owns the bound on that memory: however many requests a guest makes, a disk has at most [`BUFFERS`] such buffers, and
//! of those beyond the first as many as the VM's account has room for. Always zeroed before use.

use std::io;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::open::Alignment;
use crate::buffers::{Buffers, Room, Space};

/// Most bytes of one request that are copied at once.
pub(super) const PIECE: u64 = 128 << 10;
/// Buffers that a disk has at once.
pub(super) const BUFFERS: usize = 4;

/// The longest that a buffer can be, in bytes: a piece, widened to blocks at both ends, and moved to an aligned address.
pub(super) fn longest(alignment: Alignment) -> u64 {
    PIECE + 2 * u64::from(alignment.offset) + u64::from(alignment.memory)
}

/// The buffers of one disk.
pub(super) struct Bounces {
    places: Semaphore,
    room: Room,
}

/// Part of a file, widened to whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Where the blocks begin, in bytes.
    pub(super) start: u64,
    /// Their length.
    pub(super) len: usize,
    /// Bytes before what was asked for.
    pub(super) head: usize,
    /// What was asked for, at most [`PIECE`].
    pub(super) wanted: usize,
}

impl Span {
    /// The first piece of `len` bytes at `offset`; `offset + len` is at most `i64::MAX`.
    pub(super) fn new(offset: u64, len: u64, alignment: Alignment) -> Self {
        let block = u64::from(alignment.offset);
        let start = offset - offset % block;
        let wanted = len.min(PIECE);
        let end = (offset + wanted).next_multiple_of(block);
        // All less than a few hundred KiB.
        let small = |value: u64| usize::try_from(value).unwrap_or(0);
        Self { start, len: small(end - start), head: small(offset - start), wanted: small(wanted) }
    }

    /// All pieces of `len` bytes at `offset`.
    pub(super) fn all(offset: u64, len: u64, alignment: Alignment) -> impl Iterator<Item = Self> {
        let piece = move |done| Self::new(offset + done, len - done, alignment);
        let end = move |done: &u64| *done < len;
        std::iter::successors(Some(0), |done| Some(done + PIECE)).take_while(end).map(piece)
    }

    /// True if it is whole blocks by itself.
    pub(super) fn is_whole(&self) -> bool {
        self.head == 0 && self.wanted == self.len
    }
}

/// A buffer with an aligned address. It is handed to the ring as a `Vec` and a place in it.
pub(super) struct Bounce<'a> {
    pub(super) bytes: Vec<u8>,
    pub(super) start: usize,
    _place: (SemaphorePermit<'a>, Space),
}

impl Bounces {
    /// One buffer is reserved in `buffers` already; further ones are taken from it.
    pub(super) fn new(buffers: &Buffers) -> Self {
        Self { places: Semaphore::new(BUFFERS), room: Room::new(buffers) }
    }

    /// A zeroed buffer of `len` bytes, when there is a place for it.
    pub(super) async fn buffer(&self, len: usize, alignment: Alignment) -> io::Result<Bounce<'_>> {
        let place = self.places.acquire().await.map_err(io::Error::other)?;
        let align = usize::try_from(alignment.memory).unwrap_or(1).max(1);
        let space = self.room.enter((len + align) as u64).await;
        let mut bytes = vec![0; len + align];
        let start = bytes.as_ptr().align_offset(align).min(align);
        bytes.truncate(start + len);
        Ok(Bounce { bytes, start, _place: (place, space) })
    }
}

impl Bounce<'_> {
    /// The part of the buffer that a span's request is about.
    pub(super) fn wanted(&mut self, span: &Span) -> &mut [u8] {
        let from = self.start + span.head;
        self.bytes.get_mut(from..from + span.wanted).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "bounce_test.rs"]
mod tests;
