//! The page of each processor: task-state segment, interrupt stacks, counters. The offsets are entry.s's.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::layout::{MAX_CPUS, SLOT_SHIFT, SLOTS, STACK_TOP};

const CLOCK: u64 = 0x70;
const APIC: u64 = 0x74;
const TAKEN: u64 = 0x78;
const PENDING: u64 = 0x100;
/// Tops of the interrupt stacks, by their number in the TSS.
const INTERRUPT_STACKS: [u64; 4] = [0x800, 0x900, 0xb00, 0xe00];
/// Offset of the port permissions.
const TSS_PORTS: u64 = 0xe00;

/// How a processor's local APIC is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Apic {
    /// By model-specific registers.
    X2 = 1,
    /// By memory-mapped registers.
    Mmio = 2,
}

/// Number of this processor: its stack lies in its slot.
pub(crate) fn current_index() -> usize {
    let rsp: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags)) };
    let slot = (rsp.wrapping_sub(SLOTS) >> SLOT_SHIFT) as usize;
    if slot < MAX_CPUS { slot } else { 0 }
}

/// First byte of the page of processor `index`.
pub(crate) fn page(index: usize) -> u64 {
    STACK_TOP + ((index as u64) << SLOT_SHIFT)
}

/// A 32-bit cell in this processor's page.
fn cell(offset: u64) -> &'static AtomicU32 {
    let address = page(current_index()) + offset;
    // SAFETY: the page is always mapped, aligned, and never memory of anything else; stubs change these cells only
    // with single instructions on this same processor.
    unsafe { &*core::ptr::with_exposed_provenance::<AtomicU32>(address as usize) }
}

/// How this processor's local APIC is reached; `None` before [`set_apic`].
pub(crate) fn apic() -> Option<Apic> {
    match cell(APIC).load(Ordering::Relaxed) {
        1 => Some(Apic::X2),
        2 => Some(Apic::Mmio),
        _ => None,
    }
}

/// Says how this processor's local APIC is reached, by the interrupt stubs too.
pub(crate) fn set_apic(apic: Apic) {
    cell(APIC).store(apic as u32, Ordering::Relaxed);
}

/// Whether this processor registered its clock before; it counts as registered from now on.
pub(crate) fn clock_registered() -> bool {
    cell(CLOCK).swap(1, Ordering::Relaxed) != 0
}

/// Takes the count of interrupts on `vector` since the last call.
pub(crate) fn take_pending(vector: u8) -> u32 {
    cell(PENDING + 4 * u64::from(vector)).swap(0, Ordering::Relaxed)
}

/// Takes the count of interrupts since the last call.
pub(crate) fn take_taken() -> u32 {
    cell(TAKEN).swap(0, Ordering::Relaxed)
}

/// Makes the page of processor `index`, not 0, ready for it to start.
///
/// # Safety
/// The processor must not run.
pub(crate) unsafe fn prepare(index: usize) {
    let page = page(index);
    let write = |offset: u64, value: u64, width: usize| {
        let bytes = value.to_le_bytes();
        let target = core::ptr::with_exposed_provenance_mut::<u8>((page + offset) as usize);
        // SAFETY: within the processor's page, which nobody else uses.
        unsafe { target.copy_from_nonoverlapping(bytes.as_ptr(), width) };
    };
    for (number, stack) in (1..).zip(INTERRUPT_STACKS) {
        write(0x1c + 8 * number, page + stack, 8);
    }
    write(0x66, TSS_PORTS, 2);
}
