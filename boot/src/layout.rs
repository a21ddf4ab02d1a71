//! The guest-physical memory map, in one place.
//!
//! ```text
//! 0x0000_0000  left zero (a guest may put real-mode vectors here)
//! 0x0000_1000  page tables: PML4, PDPT, up to four page directories      (Linux 64-bit entry only)
//! 0x0000_7000  boot_params, the "zero page"                              (Linux 64-bit entry only)
//! 0x0000_8000  GDT, hvm_start_info, module list, memory map: one page    (the last three for PVH only)
//! 0x0000_8400  command line, at most 4 KiB with its NUL
//! 0x0000_9400  boot stack, growing down from 0x0001_0000
//! 0x0001_0000  free below 640 KiB: the place for a guest's start-up code of further vCPUs
//! 0x0009_FC00  reserved up to 1 MiB (BIOS area)
//! 0x0010_0000  image segments, then free RAM, then the initrd at the top of low RAM
//! 0xC000_0000  no RAM up to 4 GiB: device registers
//! 0x1_0000_0000  the rest of RAM
//! ```
//!
//! The PVH structures, the GDT and a command line of up to 3 KiB share one page, because every page that the
//! host touches costs boot time.

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};

/// Page size in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Level-4 page table (one page).
pub const PML4_ADDR: u64 = 0x1000;
/// Level-3 page table (one page).
pub const PDPT_ADDR: u64 = 0x2000;
/// Level-2 page tables: the one for GiB `n` is at `PD_ADDR + n * PAGE_SIZE`, `n` below [`PD_COUNT`].
pub const PD_ADDR: u64 = 0x3000;
/// Level-2 page tables reserved: they identity-map the first 4 GiB.
pub const PD_COUNT: u64 = 4;
/// `boot_params` of the Linux boot protocol (one page).
pub const BOOT_PARAMS_ADDR: u64 = 0x7000;
/// Global descriptor table of both entries.
pub const GDT_ADDR: u64 = 0x8000;
/// Descriptors in the table.
pub const GDT_ENTRIES: usize = 6;
/// `hvm_start_info` of the PVH boot protocol.
pub const START_INFO_ADDR: u64 = 0x8040;
/// Its module list: the initrd, if there is one.
pub const MODLIST_ADDR: u64 = 0x8080;
/// Its memory map.
pub const MEMMAP_ADDR: u64 = 0x80C0;
/// Entries that fit into the memory map.
pub const MEMMAP_MAX: usize = 16;
/// The command line, NUL-terminated.
pub const CMDLINE_ADDR: u64 = 0x8400;
/// Bytes reserved for the command line, with its NUL. Linux keeps the first 2047 characters.
pub const CMDLINE_SIZE: u64 = 0x1000;
/// Initial stack pointer: the stack may grow down to the end of the command line.
pub const BOOT_STACK_TOP: u64 = 0x1_0000;
/// End of what boot may write below 1 MiB.
pub const BOOT_AREA_END: u64 = 0x1_0000;

/// End of conventional memory: from here to 1 MiB the memory map says "reserved".
pub const LOW_RAM_END: u64 = 0x9_FC00;
/// Lowest address of an image segment.
pub const IMAGE_START: u64 = 0x10_0000;

/// Start of the address range without RAM (3 GiB).
pub const MMIO_GAP_START: u64 = 0xC000_0000;
/// End of the address range without RAM (4 GiB).
pub const MMIO_GAP_END: u64 = 0x1_0000_0000;
/// First virtio-mmio register window.
pub const VIRTIO_MMIO_ADDR: u64 = 0xD000_0000;
/// Distance between, and size of, virtio-mmio register windows.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// virtio-mmio windows of a VM: what the IOAPIC's pins allow beside the legacy devices.
pub const VIRTIO_MMIO_COUNT: u64 = 17;
/// IOAPIC registers.
pub const IOAPIC_ADDR: u64 = 0xFEC0_0000;
/// Size of the IOAPIC's register window.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Local APIC registers (in the kernel; each vCPU sees its own).
pub const LAPIC_ADDR: u64 = 0xFEE0_0000;
/// Size of the local APIC's register window.
pub const LAPIC_SIZE: u64 = 0x1000;

/// Most vCPUs of a VM: 8-bit APIC ids, without the broadcast id and the IOAPIC's.
pub const MAX_VCPUS: u32 = 254;

const INFO_PAGE: u64 = GDT_ADDR & !(PAGE_SIZE - 1);

const _: () = {
    assert!(PML4_ADDR.is_multiple_of(PAGE_SIZE) && PML4_ADDR >= PAGE_SIZE);
    assert!(PDPT_ADDR == PML4_ADDR + PAGE_SIZE && PD_ADDR == PDPT_ADDR + PAGE_SIZE);
    assert!(PD_COUNT << 30 == MMIO_GAP_END);
    assert!(BOOT_PARAMS_ADDR.is_multiple_of(PAGE_SIZE) && BOOT_PARAMS_ADDR >= PD_ADDR + PD_COUNT * PAGE_SIZE);
    assert!(size_of::<boot_params>() as u64 == PAGE_SIZE && GDT_ADDR >= BOOT_PARAMS_ADDR + PAGE_SIZE);
    assert!(GDT_ADDR.is_multiple_of(8) && START_INFO_ADDR >= GDT_ADDR + GDT_ENTRIES as u64 * 8);
    assert!(
        START_INFO_ADDR.is_multiple_of(8) && MODLIST_ADDR.is_multiple_of(8) && MEMMAP_ADDR.is_multiple_of(8)
    );
    assert!(MODLIST_ADDR >= START_INFO_ADDR + size_of::<hvm_start_info>() as u64);
    assert!(MEMMAP_ADDR >= MODLIST_ADDR + size_of::<hvm_modlist_entry>() as u64);
    assert!(CMDLINE_ADDR >= MEMMAP_ADDR + (MEMMAP_MAX * size_of::<hvm_memmap_table_entry>()) as u64);
    assert!(CMDLINE_ADDR < INFO_PAGE + PAGE_SIZE, "the command line starts in the page of the rest");
    assert!(BOOT_STACK_TOP >= CMDLINE_ADDR + CMDLINE_SIZE + 0x4000, "room for a stack");
    assert!(BOOT_STACK_TOP.is_multiple_of(16) && BOOT_STACK_TOP <= BOOT_AREA_END);
    assert!(BOOT_AREA_END < LOW_RAM_END && LOW_RAM_END < IMAGE_START && IMAGE_START < MMIO_GAP_START);
    assert!(VIRTIO_MMIO_ADDR >= MMIO_GAP_START);
    assert!(VIRTIO_MMIO_ADDR + VIRTIO_MMIO_COUNT * VIRTIO_MMIO_STRIDE <= IOAPIC_ADDR);
    assert!(IOAPIC_ADDR + IOAPIC_SIZE <= LAPIC_ADDR && LAPIC_ADDR + LAPIC_SIZE <= MMIO_GAP_END);
};

/// Guest RAM of `size` bytes as `(guest-physical start, length)` regions: up to 3 GiB from address 0, the rest
/// from 4 GiB on. No region for a size of 0. Sizes are not rounded; RAM wants multiples of its page size.
pub fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    match size.checked_sub(MMIO_GAP_START) {
        _ if size == 0 => Vec::new(),
        None | Some(0) => vec![(0, size)],
        Some(high) => vec![(0, MMIO_GAP_START), (MMIO_GAP_END, high)],
    }
}

/// Register window of virtio-mmio device `index`; `None` from [`VIRTIO_MMIO_COUNT`] on.
pub fn virtio_mmio_addr(index: u64) -> Option<u64> {
    (index < VIRTIO_MMIO_COUNT).then(|| VIRTIO_MMIO_ADDR + index * VIRTIO_MMIO_STRIDE)
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod tests;
