//! The page of each processor: task-state segment, interrupt stacks, counters. The offsets are entry.s's.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::layout::{MAX_CPUS, PAGE, SLOT_SHIFT, SLOTS, STACK_TOP};

const EOI: u64 = 0x74;
const PENDING: u64 = 0x100;

/// How this processor acknowledges interrupts.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Eoi {
    /// By a store to its memory-mapped APIC.
    Mmio = 0,
    /// By a write to MSR 0x80B.
    X2Apic = 1,
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
    debug_assert!(offset < PAGE && offset.is_multiple_of(4));
    // SAFETY: the page is always mapped, aligned, and never memory of anything else; stubs change these cells only
    // with single instructions on this same processor.
    unsafe { &*core::ptr::with_exposed_provenance::<AtomicU32>((page(current_index()) + offset) as usize) }
}

/// Says how interrupts are to be acknowledged from now on.
pub(crate) fn set_eoi(eoi: Eoi) {
    cell(EOI).store(eoi as u32, Ordering::Relaxed);
}

/// Takes the count of interrupts on `vector` since the last call.
pub(crate) fn take_pending(vector: u8) -> u32 {
    cell(PENDING + 4 * u64::from(vector)).swap(0, Ordering::Relaxed)
}
