use super::*;
use crate::layout::PML4_ADDR;
use ringlet_io::Backing;

fn sregs(protocol: Protocol) -> kvm_sregs {
    let mut sregs =
        kvm_sregs { apic_base: 0xFEE0_0900, cr2: 5, cr8: 6, cr0: 0x6000_0010, ..Default::default() };
    sregs.interrupt_bitmap[1] = 9;
    SregsInit::new(protocol, if protocol == Protocol::Linux64 { PML4_ADDR } else { 0 }).apply(&mut sregs);
    sregs
}

/// What the CPU would load for `selector` from the GDT in memory.
fn descriptor(ram: &GuestRam, selector: u16) -> kvm_segment {
    let raw = ram.read_u64(GDT_ADDR + u64::from(selector)).unwrap();
    let bits = |at: u32, len: u32| (raw >> at & ((1 << len) - 1)) as u8;
    let limit = (raw & 0xFFFF | (raw >> 48 & 0xF) << 16) as u32;
    let g = bits(55, 1);
    kvm_segment {
        base: (raw >> 16 & 0xFF_FFFF) | (raw >> 56) << 24,
        limit: if g == 1 { limit << 12 | 0xFFF } else { limit },
        selector,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g,
        ..Default::default()
    }
}

#[test]
fn segments_are_what_the_gdt_in_memory_says() {
    let ram = GuestRam::new(&[(0, 1 << 20)], Backing::Pages4K).unwrap();
    for protocol in [Protocol::Pvh, Protocol::Linux64] {
        write_gdt(&ram, protocol).unwrap();
        let sregs = sregs(protocol);
        for segment in [sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.tr] {
            assert_eq!(descriptor(&ram, segment.selector), segment, "{protocol:?}");
        }
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (GDT_ADDR, 47));
    }
}

#[test]
fn pvh_starts_in_flat_protected_mode_without_paging() {
    let sregs = sregs(Protocol::Pvh);
    assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x11, 0, 0, 0));
    assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.base, sregs.cs.limit), (0, 1, 0, u32::MAX));
    assert_eq!((sregs.tr.base, sregs.tr.limit, sregs.tr.type_), (0, 0x67, 11));
    let regs = general(Protocol::Pvh, 0x10_0010);
    assert_eq!((regs.rip, regs.rbx, regs.rsi, regs.rflags), (0x10_0010, START_INFO_ADDR, 0, 2));
}

#[test]
fn linux64_starts_in_long_mode_with_what_pvm_accepts() {
    let sregs = sregs(Protocol::Linux64);
    assert_eq!((sregs.cr0, sregs.cr3, sregs.efer), (0x8005_0033, PML4_ADDR, 0x500));
    assert_eq!(sregs.cr4, 0x20, "PAE only; PVM refuses PCIDE");
    assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18), "__BOOT_CS, __BOOT_DS");
    assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
    let regs = general(Protocol::Linux64, 0x10_0000);
    assert_eq!((regs.rip, regs.rbx, regs.rsi, regs.rsp), (0x10_0000, 0, BOOT_PARAMS_ADDR, BOOT_STACK_TOP));
}

#[test]
fn the_apic_and_pending_interrupts_are_left_alone() {
    let sregs = sregs(Protocol::Pvh);
    assert_eq!(
        (sregs.apic_base, sregs.interrupt_bitmap, sregs.cr2, sregs.cr8),
        (0xFEE0_0900, [0, 9, 0, 0], 0, 0)
    );
    assert_eq!((sregs.idt.base, sregs.idt.limit), (0, 0));
}
