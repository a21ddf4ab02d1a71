//! Ways out, and the signal that a guest is ready.

use core::arch::asm;

use crate::port::{outb, outl};
use crate::{cpu, serial};

/// A 32-bit write is the exit code.
const EXIT: u16 = 0xf4;
/// Takes [`READY`] once the guest can serve.
const READY_PORT: u16 = 0xf5;
/// The value that Firecracker's boot timer also uses.
const READY: u8 = 123;
/// Command port of the keyboard controller.
const I8042: u16 = 0x64;
/// Its command to pulse the reset line.
const RESET: u8 = 0xfe;
/// Writes to port 0x80 that pass while a reset request is acted upon.
const PATIENCE: u32 = 1000;

/// Ends the machine with `code`. Where the exit port does nothing, the machine is reset; where that does nothing
/// either, it ends by a triple fault.
pub fn exit(code: u32) -> ! {
    outl(EXIT, code);
    reset()
}

/// Asks for an orderly reset, which ends a microVM.
pub fn reset() -> ! {
    outb(I8042, RESET);
    for _ in 0..PATIENCE {
        core::hint::spin_loop();
    }
    triple_fault()
}

/// Tells the VMM that the guest is up.
pub fn ready() {
    outb(READY_PORT, READY);
}

/// Ends the machine by a fault that nobody handles.
pub fn triple_fault() -> ! {
    // SAFETY: the IDT is gone afterwards, which is the point.
    unsafe { cpu::call_in_ring0(without_idt, 0) };
    cpu::park()
}

/// Loads an empty IDT and faults.
#[unsafe(naked)]
unsafe extern "C" fn without_idt(_: u64) {
    core::arch::naked_asm!("push 0", "push 0", "lidt [rsp]", "ud2")
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    serial::force();
    crate::println!("{info}");
    exit(101)
}

/// Halts with a busy loop that no interrupt ends: interrupts are off.
pub fn hang() -> ! {
    // SAFETY: spins in ring 0 with interrupts off.
    unsafe { cpu::call_in_ring0(spin_forever, 0) };
    cpu::park()
}

#[unsafe(naked)]
unsafe extern "C" fn spin_forever(_: u64) {
    core::arch::naked_asm!("cli", "2: pause", "jmp 2b")
}

/// The prebuilt `core` refers to these; nothing unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// See [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    // SAFETY: never reached; faults if it is.
    unsafe { asm!("ud2", options(noreturn)) }
}
