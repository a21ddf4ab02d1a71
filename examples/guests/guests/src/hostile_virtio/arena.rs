//! The memory of an attack, in groups of four pages between pages that nobody may write: canaries.
//!
//! A group has one purpose, so that whatever nonsense a device is told, and however a rewritten descriptor is torn, a
//! device that keeps to the rules writes only to memory that was offered:
//! * tables: descriptors. Devices read them. What a descriptor may say depends on its place (see `chain`).
//! * avail: rings of offered chains, and on the last page headers of requests. Devices read them.
//! * used: rings that devices write. A ring begins on the first page, so the largest one stays inside.
//! * data: what descriptors let devices write.

use alloc::alloc::{Layout, alloc};
use core::ptr::with_exposed_provenance_mut;

const PAGE: u64 = 4096;
/// Pages of a group, without its canary.
const GROUP: u64 = 4;
/// Canaries before the first group and after the last.
const EDGE: u64 = 16;
/// Queues of a device that are attacked.
pub(crate) const QUEUES: u16 = 3;
/// Tables, avail, used, and two for data.
const GROUPS_PER_QUEUE: u64 = 5;
const GROUPS: u64 = QUEUES as u64 * GROUPS_PER_QUEUE;
const PAGES: u64 = 2 * EDGE + GROUPS * (GROUP + 1);

/// The memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arena {
    start: u64,
    seed: u64,
}

/// Which pages a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Those that are never offered.
    Canaries,
    /// Those that were offered, and are no longer.
    Withdrawn,
    /// Of these, the ones of one queue.
    Queue(u16),
}

impl Arena {
    /// Takes the memory from the heap, for good.
    pub(crate) fn new(seed: u64) -> Option<Self> {
        let layout = Layout::from_size_align((PAGES * PAGE) as usize, PAGE as usize).ok()?;
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return None;
        }
        let arena = Self { start: start.expose_provenance() as u64, seed };
        arena.fill(Part::Canaries);
        arena.fill(Part::Withdrawn);
        Some(arena)
    }

    /// First byte of a group.
    fn group(self, index: u64) -> u64 {
        self.start + (EDGE + index * (GROUP + 1) + 1) * PAGE
    }

    pub(crate) fn tables(self, queue: u16) -> u64 {
        self.group(u64::from(queue) * GROUPS_PER_QUEUE)
    }

    pub(crate) fn avail(self, queue: u16) -> u64 {
        self.group(u64::from(queue) * GROUPS_PER_QUEUE + 1)
    }

    /// Where request headers are.
    pub(crate) fn headers(self, queue: u16) -> u64 {
        self.avail(queue) + 3 * PAGE
    }

    pub(crate) fn used(self, queue: u16) -> u64 {
        self.group(u64::from(queue) * GROUPS_PER_QUEUE + 2)
    }

    /// One of the two groups for data.
    pub(crate) fn data(self, queue: u16, which: u64) -> u64 {
        self.group(u64::from(queue) * GROUPS_PER_QUEUE + 3 + which % 2)
    }

    /// A page that nobody may write.
    pub(crate) fn canary(self, which: u64) -> u64 {
        self.group(which % GROUPS) - PAGE
    }

    /// Whether page `index` belongs to a part.
    fn belongs(index: u64, part: Part) -> bool {
        let inner = index.checked_sub(EDGE).filter(|index| *index < GROUPS * (GROUP + 1));
        let group = inner.filter(|index| !index.is_multiple_of(GROUP + 1)).map(|index| index / (GROUP + 1));
        match part {
            Part::Canaries => group.is_none(),
            Part::Withdrawn => group.is_some(),
            Part::Queue(queue) => group.is_some_and(|group| group / GROUPS_PER_QUEUE == u64::from(queue)),
        }
    }

    /// The addresses of all words of a part.
    fn words(self, part: Part) -> impl Iterator<Item = u64> {
        (0..PAGES)
            .filter(move |&index| Self::belongs(index, part))
            .flat_map(move |index| (0..PAGE / 8).map(move |word| self.start + index * PAGE + word * 8))
    }

    /// What the word at `address` is to hold.
    fn pattern(self, address: u64) -> u64 {
        let word = (address ^ self.seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word ^ word >> 31
    }

    /// Writes the pattern.
    pub(crate) fn fill(self, part: Part) {
        self.words(part).for_each(|address| put(address, self.pattern(address)));
    }

    /// The first word that no longer holds the pattern, and what it holds.
    pub(crate) fn changed(self, part: Part) -> Option<(u64, u64)> {
        self.words(part)
            .map(|address| (address, get(address)))
            .find(|&(address, word)| word != self.pattern(address))
    }

    /// Zeroes the descriptors and rings of a queue.
    pub(crate) fn clear(self, queue: u16) {
        for group in [self.tables(queue), self.avail(queue), self.used(queue)] {
            (0..GROUP * PAGE / 8).for_each(|word| put(group + word * 8, 0));
        }
    }
}

/// Writes to the arena.
pub(crate) fn put<T: Copy>(address: u64, value: T) {
    // SAFETY: callers pass aligned addresses within the arena, which no Rust object occupies; devices and the other
    // processor may write there too, hence volatile.
    unsafe { with_exposed_provenance_mut::<T>(address as usize).write_volatile(value) };
}

/// Reads from the arena.
pub(crate) fn get<T: Copy>(address: u64) -> T {
    // SAFETY: as in `put`.
    unsafe { with_exposed_provenance_mut::<T>(address as usize).read_volatile() }
}
