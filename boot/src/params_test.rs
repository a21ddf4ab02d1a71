use super::*;
use crate::layout::{MEMMAP_MAX, ram_regions};
use ringlet_io::Backing;

fn info(initrd: Option<(u32, u32)>) -> GuestInfo {
    let memory = memory_map(0xC000_0000, &[(1 << 32, 1 << 30)]);
    GuestInfo { memory, cmdline_len: 11, initrd }
}

fn ram() -> GuestRam {
    GuestRam::new(&ram_regions(4 << 20), Backing::Pages4K).unwrap()
}

/// (address, length, type) as both protocols should show them.
const MAP: [(u64, u64, u32); 4] =
    [(0, 0x9_FC00, 1), (0x9_FC00, 0x6_0400, 2), (0x10_0000, 0xBFF0_0000, 1), (0x1_0000_0000, 0x4000_0000, 1)];

#[test]
fn the_memory_map_is_sorted_and_disjoint_and_fits() {
    let map = memory_map(1 << 30, &[(1 << 32, 1 << 20), (1 << 33, 1 << 20)]);
    assert!(map.len() <= MEMMAP_MAX);
    assert!(map.windows(2).all(|w| w[0].addr + w[0].len <= w[1].addr));
}

#[test]
fn the_zero_page_is_where_linux_reads_it() {
    let ram = ram();
    write_linux64(&ram, &info(Some((0x3F_F000, 77)))).unwrap();
    let u8_at = |offset: u64| {
        let mut byte = [0];
        ram.read(BOOT_PARAMS_ADDR + offset, &mut byte).unwrap();
        byte[0]
    };
    let u32_at = |offset| ram.read_u32(BOOT_PARAMS_ADDR + offset).unwrap();
    // Offsets: Linux Documentation/arch/x86/zero-page.rst and boot.rst.
    assert_eq!(u32_at(0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!((u8_at(0x1FE), u8_at(0x1FF), u8_at(0x210)), (0x55, 0xAA, 0xFF));
    assert_eq!((u32_at(0x218), u32_at(0x21C)), (0x3F_F000, 77), "ramdisk");
    assert_eq!((u32_at(0x228), u32_at(0x238)), (CMDLINE_ADDR as u32, 11), "command line");
    assert_eq!(u8_at(0x1E8), 4, "e820 entries");
    for (index, entry) in MAP.into_iter().enumerate() {
        let at = BOOT_PARAMS_ADDR + 0x2D0 + index as u64 * 20;
        let found =
            (ram.read_u64(at).unwrap(), ram.read_u64(at + 8).unwrap(), ram.read_u32(at + 16).unwrap());
        assert_eq!(found, entry);
    }
    assert_eq!(ram.take_host_dirty(), [BOOT_PARAMS_ADDR]);
}

#[test]
fn the_start_info_is_what_pvh_says() {
    let ram = ram();
    write_pvh(&ram, &info(Some((0x3F_F000, 77)))).unwrap();
    let u32_at = |offset| ram.read_u32(START_INFO_ADDR + offset).unwrap();
    let u64_at = |offset| ram.read_u64(START_INFO_ADDR + offset).unwrap();
    // Offsets: Xen public/arch-x86/hvm/start_info.h.
    assert_eq!((u32_at(0), u32_at(4), u32_at(8)), (0x336E_C578, 1, 0));
    assert_eq!((u32_at(12), u64_at(16)), (1, MODLIST_ADDR));
    assert_eq!((u64_at(24), u64_at(32)), (CMDLINE_ADDR, 0));
    assert_eq!((u64_at(40), u32_at(48)), (MEMMAP_ADDR, 4));
    for (index, entry) in MAP.into_iter().enumerate() {
        let at = MEMMAP_ADDR + index as u64 * 24;
        let found =
            (ram.read_u64(at).unwrap(), ram.read_u64(at + 8).unwrap(), ram.read_u32(at + 16).unwrap());
        assert_eq!(found, entry);
    }
    assert_eq!(
        (ram.read_u64(MODLIST_ADDR).unwrap(), ram.read_u64(MODLIST_ADDR + 8).unwrap()),
        (0x3F_F000, 77)
    );
}

#[test]
fn without_an_initrd_there_is_no_module() {
    let ram = ram();
    write_pvh(&ram, &info(None)).unwrap();
    assert_eq!(ram.read_u32(START_INFO_ADDR + 12).unwrap(), 0);
    assert_eq!(ram.read_u64(START_INFO_ADDR + 16).unwrap(), 0);
    write_linux64(&ram, &info(None)).unwrap();
    assert_eq!(ram.read_u64(BOOT_PARAMS_ADDR + 0x218).unwrap(), 0);
}
