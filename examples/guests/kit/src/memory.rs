//! Physical memory: the VMM's map, and which of it is free.

use core::fmt;

use crate::boot::context;
use crate::layout::{SLOTS, image_end};
use crate::paging;

/// A region of RAM that may be used, in e820 and PVH maps alike.
const USABLE: u32 = 1;
/// Most entries of a map that are read.
const ENTRIES_MAX: u32 = 1024;

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
}

impl Span {
    pub(crate) const EMPTY: Self = Self { start: 0, end: 0 };

    /// The span of `len` bytes at `start`.
    #[must_use]
    pub const fn of(start: u64, len: u64) -> Self {
        Self { start, end: start.saturating_add(len) }
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start < other.end && other.start < self.end
    }
}

/// One entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it is.
    pub span: Span,
    /// Its e820 type: 1 is usable RAM.
    pub kind: u32,
}

impl Region {
    /// Whether it is RAM that may be used.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        self.kind == USABLE
    }
}

/// The memory map as the VMM gave it: records of u64 address, u64 size, u32 type.
#[derive(Clone, Copy)]
pub struct MemoryMap {
    address: u64,
    entries: u32,
    stride: u32,
}

impl MemoryMap {
    pub(crate) const EMPTY: Self = Self { address: 0, entries: 0, stride: 0 };

    pub(crate) const fn new(address: u64, entries: u32, stride: u32) -> Self {
        Self { address, entries: if entries < ENTRIES_MAX { entries } else { ENTRIES_MAX }, stride }
    }

    /// Where the map itself lies.
    pub(crate) const fn span(&self) -> Span {
        Span::of(self.address, self.entries as u64 * self.stride as u64)
    }

    /// All entries, in the VMM's order.
    pub fn regions(&self) -> impl Iterator<Item = Region> + use<> {
        let Self { address, entries, stride } = *self;
        (0..entries).map(move |index| {
            let entry = core::ptr::with_exposed_provenance::<u8>(
                (address + u64::from(index) * u64::from(stride)) as usize,
            );
            // SAFETY: the map lies where the VMM said, in RAM that is never used for anything else.
            unsafe {
                let start = entry.cast::<u64>().read_unaligned();
                let len = entry.add(8).cast::<u64>().read_unaligned();
                Region { span: Span::of(start, len), kind: entry.add(16).cast::<u32>().read_unaligned() }
            }
        })
    }

    /// Usable RAM in bytes.
    #[must_use]
    pub fn usable(&self) -> u64 {
        self.regions().filter(|region| region.is_usable()).map(|region| region.span.len()).sum()
    }
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.regions()).finish()
    }
}

/// RAM above 1 MiB that neither the image nor what the VMM handed over occupies. The heap takes all of it at the first
/// allocation; a program that wants raw memory must not allocate.
pub fn free() -> impl Iterator<Item = Span> {
    let context = context();
    context.memory().regions().filter(|region| region.is_usable()).flat_map(move |region| {
        let mut rest = Span { start: region.span.start.max(SLOTS), end: region.span.end.min(paging::REACH) };
        core::iter::from_fn(move || {
            while !rest.is_empty() {
                let obstacle = reserved().filter(|span| span.overlaps(rest)).min_by_key(|span| span.start);
                let end = obstacle.map_or(rest.end, |span| span.start.max(rest.start));
                let piece = Span { start: rest.start, end };
                rest.start = obstacle.map_or(rest.end, |span| span.end);
                if !piece.is_empty() {
                    return Some(piece);
                }
            }
            None
        })
    })
}

/// A page below 1 MiB that holds nothing of the VMM's: for real-mode code.
pub(crate) fn low_page() -> Option<u64> {
    let occupied = |page: Span| reserved().any(|span| span.overlaps(page));
    (1..0xa0)
        .rev()
        .map(|number| Span::of(number << 12, 4096))
        .find(|&page| !occupied(page))
        .map(|page| page.start)
}

/// What is in use from the start.
fn reserved() -> impl Iterator<Item = Span> {
    let context = context();
    let initrd = context.initrd().map(|disk| Span::of(disk.as_ptr().addr() as u64, disk.len() as u64));
    let image = Span { start: SLOTS, end: image_end() };
    context.reserved.into_iter().chain([image]).chain(initrd)
}

/// Maps RAM that the prebuilt page tables do not reach.
pub(crate) fn map_all() {
    for region in context().memory().regions().filter(|region| region.is_usable()) {
        paging::map(region.span);
    }
}
