//! A kit for Ringlet's guests: unikernels of one program, in Rust without `std`.
//!
//! It owns the machine from the first instruction: both boot entries (PVH and Linux 64-bit), rings, interrupt stubs,
//! page tables, console, memory, time, further processors, and the ways out; with the feature `virtio` also virtio over
//! MMIO, with `net` a TCP/IP stack, with `vsock` stream sockets to the host. It has no scheduler and no processes, and
//! touches no device that the program does not ask for.
//!
//! The program runs in **ring 3** with all of memory and all ports, and reaches ring 0 by `ud2` for the few things
//! that need it: on KVM backends that interpret ring 0 that is the difference between native speed and a few million
//! instructions a second, elsewhere it costs nothing. The word `ring0` on the command line keeps the program in
//! ring 0, for hosts where that is to be tried.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! use ringlet_guest::{Context, println};
//!
//! ringlet_guest::entry!(main);
//!
//! fn main(context: &Context) {
//!     println!("hello, {}", context.cmdline());
//! }
//! ```

#![no_std]

extern crate alloc;

mod boot;
pub mod cmdline;
pub mod cpu;
pub mod exception;
pub mod exit;
mod heap;
pub mod interrupts;
pub mod ioapic;
pub mod lapic;
mod layout;
mod mem;
pub mod memory;
pub mod mmio;
#[cfg(feature = "net")]
pub mod net;
mod paging;
mod percpu;
pub mod port;
pub mod serial;
pub mod smp;
pub mod sync;
pub mod time;
#[cfg(feature = "virtio")]
pub mod virtio;
#[cfg(feature = "vsock")]
pub mod vsock;

use core::arch::global_asm;

pub use boot::{Context, Protocol};
pub use exit::{exit, ready};
pub use layout::MAX_CPUS;

global_asm!(
    include_str!("entry.s"),
    slot_shift = const layout::SLOT_SHIFT,
    stack_top = const layout::STACK_TOP,
    image = const layout::IMAGE,
    max_cpus = const MAX_CPUS,
    gdt_limit = const 6 * 8 + 16 * MAX_CPUS - 1,
    marker = const cpu::MARKER,
    services = const cpu::SERVICES,
    halt = const cpu::HALT,
    apic_eoi = const lapic::APIC_EOI,
    x2apic_eoi = const lapic::X2APIC_EOI,
);

/// What a guest's main function may return: nothing (code 0) or the exit code.
pub trait ExitCode {
    /// The code for [`exit()`].
    fn code(self) -> u32;
}

impl ExitCode for () {
    fn code(self) -> u32 {
        0
    }
}

impl ExitCode for u32 {
    fn code(self) -> u32 {
        self
    }
}

/// Names the program's main function: `fn(&Context)` or `fn(&Context) -> u32`, whose result is the exit code.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// Where the kit finds the program.
        #[allow(unsafe_code)]
        // SAFETY: the one definition of this symbol, with the signature that the kit declares.
        #[unsafe(export_name = "ringlet_guest_main")]
        fn __ringlet_guest_main(context: &$crate::Context) -> u32 {
            $crate::ExitCode::code($main(context))
        }
    };
}

unsafe extern "Rust" {
    fn ringlet_guest_main(context: &Context) -> u32;
}

/// Where every processor arrives from ring 0. `kind` is 1 for PVH, 2 for Linux 64-bit, 0 for a further processor.
#[unsafe(no_mangle)]
extern "C" fn ringlet_start(kind: u32, info: u64, processor: u32) -> ! {
    if kind == 0 {
        smp::arrive(processor as usize);
    }
    // SAFETY: called once, by the boot processor, with what the VMM handed over.
    let context = unsafe { boot::adopt(kind, info) };
    choose_ring();
    memory::map_all();
    // SAFETY: `entry!` defines it with this signature.
    exit(unsafe { ringlet_guest_main(context) })
}

/// Leaves ring 3 if the command line says so.
pub(crate) fn choose_ring() {
    if boot::context().has_word("ring0") {
        cpu::enter_ring0();
    }
}
