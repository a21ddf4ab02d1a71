//! Initial registers of the boot vCPU: GDT, control registers, segments, general registers, MSRs.
//!
//! Sources: Linux Documentation/arch/x86/boot.rst ("64-bit Boot Protocol"), Xen docs/misc/pvh.pandoc ("x86/HVM
//! direct boot ABI"), Intel SDM volume 3.

use kvm_bindings::{kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use ringlet_io::{GuestRam, RamError};

use crate::kernel::Protocol;
use crate::layout::{BOOT_PARAMS_ADDR, BOOT_STACK_TOP, GDT_ADDR, GDT_ENTRIES, START_INFO_ADDR};

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// Selectors that the Linux boot protocol prescribes (`__BOOT_CS`, `__BOOT_DS`); PVH leaves them open.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// MSRs to set on every vCPU, boot processor or not. A backend may refuse some: none is essential.
///
/// `IA32_MISC_ENABLE`: fast string operations. `IA32_MTRR_DEF_TYPE`: MTRRs on, everything write-back.
pub const BOOT_MSRS: [kvm_msr_entry; 2] = [msr(0x1A0, 1), msr(0x2FF, 1 << 11 | 6)];

const fn msr(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, reserved: 0, data }
}

/// Special registers at entry. They change only a part of `kvm_sregs`: apply them to what KVM_GET_SREGS returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SregsInit {
    protocol: Protocol,
    cr3: u64,
}

impl SregsInit {
    pub(crate) fn new(protocol: Protocol, cr3: u64) -> Self {
        Self { protocol, cr3 }
    }

    /// Sets segments, descriptor tables, control registers and EFER. The APIC base and pending interrupts stay.
    pub fn apply(&self, sregs: &mut kvm_sregs) {
        let data = segment(DATA_SELECTOR, 0x3, 0);
        sregs.cs = segment(CODE_SELECTOR, 0xB, u8::from(self.protocol == Protocol::Linux64));
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr =
            kvm_segment { selector: TSS_SELECTOR, limit: 0x67, type_: 0xB, present: 1, ..Default::default() };
        sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
        sregs.gdt = kvm_dtable { base: GDT_ADDR, limit: (GDT_ENTRIES * 8 - 1) as u16, ..Default::default() };
        // No IDT: an exception before the guest has its own is a triple fault, not a jump to address 0.
        sregs.idt = kvm_dtable::default();
        (sregs.cr2, sregs.cr8) = (0, 0);
        sregs.cr3 = self.cr3;
        (sregs.cr0, sregs.cr4, sregs.efer) = match self.protocol {
            Protocol::Pvh => (CR0_PE | CR0_ET, 0, 0),
            Protocol::Linux64 => {
                (CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG, CR4_PAE, EFER_LME | EFER_LMA)
            }
        };
    }
}

/// A flat 4 GiB code or data segment; `long` is the L bit (64-bit code).
fn segment(selector: u16, type_: u8, long: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        l: long,
        db: 1 - long,
        g: 1,
        ..Default::default()
    }
}

/// The descriptor table that matches [`SregsInit::apply`].
fn gdt(protocol: Protocol) -> [u64; GDT_ENTRIES] {
    let code = match protocol {
        Protocol::Pvh => 0x00CF_9B00_0000_FFFF,
        Protocol::Linux64 => 0x00AF_9B00_0000_FFFF,
    };
    let data = 0x00CF_9300_0000_FFFF;
    let tss = 0x0000_8B00_0000_0067;
    [0, 0, code, data, tss, 0]
}

/// Writes the GDT.
pub(crate) fn write_gdt(ram: &GuestRam, protocol: Protocol) -> Result<(), RamError> {
    let mut bytes = [0; GDT_ENTRIES * 8];
    for (slot, descriptor) in bytes.chunks_exact_mut(8).zip(gdt(protocol)) {
        slot.copy_from_slice(&descriptor.to_le_bytes());
    }
    ram.write(GDT_ADDR, &bytes)
}

/// General registers at `entry`: the address of the boot information where the protocol wants it, and a small
/// stack, which neither protocol promises.
pub(crate) fn general(protocol: Protocol, entry: u64) -> kvm_regs {
    let mut regs = kvm_regs { rip: entry, rsp: BOOT_STACK_TOP, rflags: RFLAGS, ..Default::default() };
    match protocol {
        Protocol::Pvh => regs.rbx = START_INFO_ADDR,
        Protocol::Linux64 => regs.rsi = BOOT_PARAMS_ADDR,
    }
    regs
}

#[cfg(test)]
#[path = "regs_test.rs"]
mod tests;
