//! Page tables. The assembler prebuilt the first GiB; the rest is identity-mapped on demand, in pages of 2 MiB.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Span;
use crate::sync::SpinLock;

/// Addresses below this can be mapped.
pub(crate) const REACH: u64 = (DIRECTORIES as u64) << 30;
/// One page directory for each GiB.
const DIRECTORIES: usize = 64;
/// Present, writable, ring 3, accessed, dirty, 2 MiB.
const LARGE: u64 = 0xe7;
/// Present, writable, ring 3, accessed, dirty.
const SMALL: u64 = 0x67;
/// Present, writable, ring 3, accessed.
const TABLE: u64 = 0x27;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn empty() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn address(&self) -> u64 {
        (&raw const self.0).expose_provenance() as u64
    }
}

/// Directories 1 and up: zeroed memory that costs nothing until it is used.
static POOL: [Table; DIRECTORIES - 1] = [const { Table::empty() }; DIRECTORIES - 1];
static CHANGING: SpinLock<()> = SpinLock::new(());

unsafe extern "C" {
    static ringlet_pdpt: Table;
    static ringlet_pt0: Table;
}

/// Makes `span` accessible, in whole pages of 2 MiB; what lies beyond [`REACH`] is left out.
pub(crate) fn map(span: Span) {
    let first = (span.start >> 21).max(512);
    let last = span.end.min(REACH).div_ceil(1 << 21);
    if first >= last {
        return;
    }
    let _changing = CHANGING.lock();
    for page in first..last {
        POOL[(page >> 9) as usize - 1].0[(page & 511) as usize].store(page << 21 | LARGE, Ordering::Release);
    }
    // SAFETY: a table of entry.s, changed by atomic stores only.
    let pdpt = unsafe { &ringlet_pdpt };
    for gib in first >> 9..=(last - 1) >> 9 {
        pdpt.0[gib as usize].store(POOL[gib as usize - 1].address() | TABLE, Ordering::Release);
    }
}

/// Whether `address` can be reached without [`map`].
pub(crate) fn is_mapped(address: u64) -> bool {
    let page = address >> 21;
    if page < 512 {
        return true;
    }
    address < REACH && POOL[(page >> 9) as usize - 1].0[(page & 511) as usize].load(Ordering::Relaxed) != 0
}

/// Makes the null page accessible: some firmware leaves what it hands over there.
pub(crate) fn map_null_page() {
    // SAFETY: a table of entry.s, changed by atomic stores only.
    let table = unsafe { &ringlet_pt0 };
    table.0[0].store(SMALL, Ordering::Release);
}
