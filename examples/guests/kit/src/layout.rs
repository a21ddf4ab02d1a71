//! Where things lie in guest-physical memory. `kit-build/link.ld` must agree.
//!
//! ```text
//! 0x000000  null page, not mapped
//! 0x001000  boot information as the VMM left it, and the trampoline of further processors
//! 0x100000  one slot of 64 KiB for each processor: a page that is not mapped, 48 KiB of stack, its page (TSS, interrupt
//!           stacks, counters), 8 KiB of port permissions
//! 0x200000  the image
//! ```

/// First byte of the processors' slots.
pub(crate) const SLOTS: u64 = 0x10_0000;
/// Logarithm of the size of a processor's slot.
pub(crate) const SLOT_SHIFT: u32 = 16;
/// Most processors that the kit can run.
pub const MAX_CPUS: usize = 16;
/// First byte of the image.
pub(crate) const IMAGE: u64 = 0x20_0000;
/// End of processor 0's stack, and start of its page.
pub(crate) const STACK_TOP: u64 = SLOTS + 0xd000;
/// Size of a page in bytes.
pub(crate) const PAGE: u64 = 0x1000;

const _: () = assert!(SLOTS + ((MAX_CPUS as u64) << SLOT_SHIFT) == IMAGE);

unsafe extern "C" {
    static __image_end: u8;
}

/// End of the image, its bss included: page-aligned.
pub(crate) fn image_end() -> u64 {
    (&raw const __image_end).addr() as u64
}
