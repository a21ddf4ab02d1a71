use super::*;
use ringlet_io::{Backing, GuestRam};

#[test]
fn ram_up_to_3_gib_is_one_region_and_the_rest_goes_above_the_gap() {
    assert_eq!(ram_regions(0), []);
    assert_eq!(ram_regions(128 << 20), [(0, 128 << 20)]);
    assert_eq!(ram_regions(3 << 30), [(0, 3 << 30)]);
    assert_eq!(ram_regions((3 << 30) + 4096), [(0, 3 << 30), (4 << 30, 4096)]);
    assert_eq!(ram_regions(8 << 30), [(0, 3 << 30), (4 << 30, 5 << 30)]);
}

#[test]
fn regions_are_what_guest_ram_accepts_and_sum_to_the_size() {
    for size in [4096, 1 << 20, 3 << 30, 5 << 30] {
        let ram = GuestRam::new(&ram_regions(size), Backing::Pages4K).unwrap();
        assert_eq!(ram.size(), size);
    }
    assert_eq!(ram_regions(u64::MAX).iter().map(|r| r.1).sum::<u64>(), u64::MAX);
}

#[test]
fn virtio_windows_end_with_the_pins() {
    assert_eq!(virtio_mmio_addr(0), Some(0xD000_0000));
    assert_eq!(virtio_mmio_addr(16), Some(0xD001_0000));
    assert_eq!(virtio_mmio_addr(17), None);
    assert_eq!(virtio_mmio_addr(u64::MAX), None);
}
