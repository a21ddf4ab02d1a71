use super::*;
use crate::layout::ram_regions;
use ringlet_io::Backing;

const MIB: u64 = 1 << 20;

/// Walks the tables as the CPU does, and says where `address` leads.
fn translate(ram: &GuestRam, cr3: u64, address: u64) -> Option<u64> {
    let pml4e = ram.read_u64(cr3 + (address >> 39 & 511) * 8).unwrap();
    let pdpte =
        ram.read_u64((pml4e & PRESENT != 0).then_some(pml4e & !0xFFF)? + (address >> 30 & 511) * 8).unwrap();
    assert_eq!(pdpte & LARGE, 0, "1 GiB pages are refused by PVM");
    let pde =
        ram.read_u64((pdpte & PRESENT != 0).then_some(pdpte & !0xFFF)? + (address >> 21 & 511) * 8).unwrap();
    assert_eq!(pde & (PRESENT | WRITABLE | LARGE), PRESENT | WRITABLE | LARGE);
    Some((pde & !(LARGE_PAGE - 1)) + address % LARGE_PAGE)
}

fn mapped_with(size: u64) -> (GuestRam, u64) {
    let ram = GuestRam::new(&ram_regions(size), Backing::Pages4K).unwrap();
    let low_end = size.min(MMIO_GAP_START);
    let cr3 = write_identity_map(&ram, low_end).unwrap();
    (ram, cr3)
}

#[test]
fn ram_and_devices_are_mapped_to_themselves() {
    for size in [2 * MIB, 128 * MIB, 1024 * MIB, 1026 * MIB, 3072 * MIB, 5120 * MIB] {
        let (ram, cr3) = mapped_with(size);
        let low_end = size.min(MMIO_GAP_START);
        for address in
            [0, 0x10_0000, low_end / 2 + 5, low_end - 1, 0xC000_0000, 0xD000_1004, 0xFEE0_0030, 0xFFFF_FFFF]
        {
            assert_eq!(translate(&ram, cr3, address), Some(address), "{address:#x} of {size:#x}");
        }
        assert_eq!(translate(&ram, cr3, 1 << 32), None, "only the first 4 GiB are mapped");
    }
}

#[test]
fn gibs_without_ram_and_devices_cost_no_page() {
    let (ram, cr3) = mapped_with(128 * MIB);
    assert_eq!(translate(&ram, cr3, 1 << 30), None);
    assert_eq!(translate(&ram, cr3, (3 << 30) - 1), None);
    assert_eq!(ram.take_host_dirty(), [PML4_ADDR, PDPT_ADDR, PD_ADDR, PD_ADDR + 3 * PAGE_SIZE]);
}
