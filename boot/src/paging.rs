//! Page tables for the Linux 64-bit entry: an identity map of RAM and device registers below 4 GiB.
//!
//! 2 MiB pages only: the PVM backend refuses 1 GiB pages. A page directory covers 1 GiB and costs a touched page,
//! so GiBs with neither RAM nor devices are left unmapped. PVH guests start without paging and get no tables.

use ringlet_io::{GuestRam, RamError};

use crate::layout::{MMIO_GAP_START, PAGE_SIZE, PD_ADDR, PD_COUNT, PDPT_ADDR, PML4_ADDR};

const ENTRIES: usize = 512;
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;

/// Writes the tables for RAM from 0 to `low_end` and returns the value of CR3.
pub(crate) fn write_identity_map(ram: &GuestRam, low_end: u64) -> Result<u64, RamError> {
    let table = PRESENT | WRITABLE | ACCESSED;
    let mut pdpt = [0; PD_COUNT as usize];
    for (gib, entry) in (0..PD_COUNT).zip(&mut pdpt) {
        let start = gib * GIB;
        if start >= low_end && start + GIB <= MMIO_GAP_START {
            continue;
        }
        let directory = PD_ADDR + gib * PAGE_SIZE;
        ram.write(directory, &page_directory(start))?;
        *entry = directory | table;
    }
    for (index, entry) in pdpt.into_iter().enumerate() {
        ram.write_u64(PDPT_ADDR + index as u64 * 8, entry)?;
    }
    ram.write_u64(PML4_ADDR, PDPT_ADDR | table)?;
    Ok(PML4_ADDR)
}

/// A directory of 512 large pages from `start` on.
fn page_directory(start: u64) -> [u8; ENTRIES * 8] {
    let mut bytes = [0; ENTRIES * 8];
    let flags = PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE;
    for (entry, address) in bytes.chunks_exact_mut(8).zip((start..).step_by(LARGE_PAGE as usize)) {
        entry.copy_from_slice(&(address | flags).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
#[path = "paging_test.rs"]
mod tests;
