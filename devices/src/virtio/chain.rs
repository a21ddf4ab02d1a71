//! A descriptor chain as an owned copy.
//!
//! Owns the guest ranges of one chain, all in RAM and in the order in which the driver gave them. They were copied
//! out of guest memory once and checked as a whole (see [`walk`](super::walk)); what the guest does to its
//! descriptors afterwards changes nothing here. Never holds a reference into guest memory.

use ringlet_io::{GuestRam, GuestRange};
use smallvec::SmallVec;

/// Ranges of guest memory. Those of a short chain lie in it, so that it takes no allocation.
pub type Ranges = SmallVec<[GuestRange; 4]>;

/// One validated chain: what the device may read, then what it may write.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// Position in the available ring that it was peeked at.
    position: u16,
    ranges: Ranges,
    /// How many of `ranges` the device reads; it writes the others.
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

/// An access outside a chain. A mistake of the device, or of a driver that offered too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes {from}+{len} of a part of {size} bytes")]
pub struct OutsideChain {
    /// First byte, counted from the start of the readable or writable part.
    pub from: u64,
    /// Number of bytes.
    pub len: u64,
    /// Length of the part in bytes.
    pub size: u64,
}

impl Chain {
    /// A chain of ranges that are known to be in RAM, of which the first `readable` are the device's to read.
    pub(super) fn new(head: u16, position: u16, ranges: Ranges, readable: usize) -> Self {
        let sum = |ranges: Option<&[GuestRange]>| {
            ranges.unwrap_or_default().iter().fold(0u32, |sum, range| sum.saturating_add(range.len))
        };
        let readable_len = sum(ranges.get(..readable));
        let writable_len = sum(ranges.get(readable..));
        Self { head, position, ranges, readable, readable_len, writable_len }
    }

    /// Index of the first descriptor, which names the chain in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// How many ranges it has.
    pub(super) fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// Where in the available ring it was peeked.
    pub(super) fn position(&self) -> u16 {
        self.position
    }

    /// Bytes that the device may read, at most 2^32 - 1 together with the writable ones.
    pub fn readable_len(&self) -> u64 {
        u64::from(self.readable_len)
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        u64::from(self.writable_len)
    }

    /// Bytes `from..from + len` of the readable part as guest ranges, for a lease; `None` if they are not all
    /// there.
    pub fn readable(&self, from: u64, len: u64) -> Option<Ranges> {
        cut(self.readable_ranges(), from, len)
    }

    /// Bytes `from..from + len` of the writable part as guest ranges; `None` if they are not all there.
    pub fn writable(&self, from: u64, len: u64) -> Option<Ranges> {
        cut(self.writable_ranges(), from, len)
    }

    /// Copies bytes of the readable part, from byte `from` on, into `buf`. A device copies every byte at most once:
    /// the guest may change them at any time.
    ///
    /// # Errors
    /// If they are not all there; nothing was copied.
    pub fn copy_out(&self, ram: &GuestRam, from: u64, buf: &mut [u8]) -> Result<(), OutsideChain> {
        let len = buf.len() as u64;
        let outside = OutsideChain { from, len, size: self.readable_len() };
        let mut rest = buf;
        for range in parts(self.readable_ranges(), from, len).ok_or(outside)? {
            let part = usize::try_from(range.len).map_err(|_| outside)?;
            let (head, tail) = rest.split_at_mut_checked(part).ok_or(outside)?;
            ram.read(range.gpa, head).map_err(|_| outside)?;
            rest = tail;
        }
        Ok(())
    }

    /// Copies `bytes` into the writable part, from its byte `from` on.
    ///
    /// # Errors
    /// If they do not all fit; nothing was copied.
    pub fn copy_in(&self, ram: &GuestRam, from: u64, bytes: &[u8]) -> Result<(), OutsideChain> {
        let len = bytes.len() as u64;
        let outside = OutsideChain { from, len, size: self.writable_len() };
        let mut rest = bytes;
        for range in parts(self.writable_ranges(), from, len).ok_or(outside)? {
            let part = usize::try_from(range.len).map_err(|_| outside)?;
            let (head, tail) = rest.split_at_checked(part).ok_or(outside)?;
            ram.write(range.gpa, head).map_err(|_| outside)?;
            rest = tail;
        }
        Ok(())
    }

    /// The readable part, range by range.
    pub fn readable_ranges(&self) -> &[GuestRange] {
        self.ranges.get(..self.readable).unwrap_or_default()
    }

    /// The writable part, range by range.
    pub fn writable_ranges(&self) -> &[GuestRange] {
        self.ranges.get(self.readable..).unwrap_or_default()
    }
}

/// Bytes `from..from + len` of `ranges`, if they are all there.
fn cut(ranges: &[GuestRange], from: u64, len: u64) -> Option<Ranges> {
    parts(ranges, from, len).map(Iterator::collect)
}

/// As [`cut`], range by range.
fn parts(ranges: &[GuestRange], from: u64, len: u64) -> Option<impl Iterator<Item = GuestRange> + '_> {
    let size: u64 = ranges.iter().map(|range| u64::from(range.len)).sum();
    from.checked_add(len).filter(|end| *end <= size)?;
    let (mut skip, mut left) = (from, len);
    Some(ranges.iter().filter_map(move |range| {
        let before = skip.min(u64::from(range.len));
        skip -= before;
        let part = left.min(u64::from(range.len) - before);
        left -= part;
        // A range ends in RAM, and `part` is not longer than it.
        let len = u32::try_from(part).ok().filter(|len| *len > 0)?;
        Some(GuestRange { gpa: range.gpa.saturating_add(before), len })
    }))
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod tests;
