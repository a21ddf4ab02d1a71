//! What comes after the walk: interrupts without end (but for a count), and devices that matter.

use core::arch::asm;

use ringlet_guest::{interrupts, ioapic, lapic, port};

use crate::random::Random;
use crate::space::{access_memory, drop_value};

/// Most accesses of any function here, those that stay in the kernel included.
pub(crate) const ACCESSES_MAX: u32 = 500;

/// Interrupts asked for.
const ROUNDS: u64 = 200;
/// Iterations that interrupts are waited for, spinning: after the walk nobody knows that they would end a halt.
const PATIENCE: u32 = 1000;

/// Timers that are due at once, again and again.
pub(crate) fn timer(random: &mut Random) {
    interrupts::while_running(true);
    for _ in 0..ROUNDS {
        lapic::arm_timer(random.below(4) * random.below(1000));
        pause();
    }
    interrupts::while_running(false);
}

/// Interrupts to itself on all vectors, non-maskable ones, and nonsense to processors that do not exist.
pub(crate) fn interprocessor(random: &mut Random) {
    let id = lapic::id();
    interrupts::while_running(true);
    for _ in 0..ROUNDS {
        match random.below(8) {
            0 => lapic::send_nmi(id),
            1 => lapic::send(absent(random), vector(random)),
            2 => lapic::send_init(absent(random)),
            3 => lapic::send_startup(absent(random), random.next() as u8),
            _ => lapic::send(id, vector(random)),
        }
        pause();
    }
    interrupts::while_running(false);
}

/// An APIC id that no processor of this guest has.
fn absent(random: &mut Random) -> u32 {
    0x80 + random.below(0x70) as u32
}

/// A vector that is not an exception's.
fn vector(random: &mut Random) -> u8 {
    let first = u64::from(interrupts::FIRST_VECTOR);
    (first + random.below(256 - first)) as u8
}

/// Redirection entries rewritten with anything: every pin, every delivery mode, masked and not, level and edge.
pub(crate) fn ioapic(random: &mut Random) {
    /// Each writes six registers.
    const REWRITES: u64 = 80;
    interrupts::while_running(true);
    for round in 0..REWRITES {
        let pin = (round % 24) as u32;
        let entry = if random.below(4) == 0 { u64::from(random.next() as u8) } else { random.value() };
        ioapic::set_entry(pin, entry);
    }
    for pin in [0, 4, 23] {
        ioapic::mask(pin);
    }
    interrupts::while_running(false);
}

/// Registers of devices that are really there, strings to ports, and memory around the end of RAM.
pub(crate) fn devices(random: &mut Random) {
    const PORTS: [u16; 14] =
        [0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x60, 0x61, 0x70, 0x71, 0xf5, 0xcf8];
    const WINDOWS: [u64; 5] = [0xd000_0000, 0xd000_1000, 0xd001_0000, 0xfec0_0000, 0xfee0_0000];
    for _ in 0..ROUNDS {
        let port = PORTS[random.below(PORTS.len() as u64) as usize];
        match random.below(4) {
            0 => port::outb(port, random.value() as u8),
            1 => drop_value(port::inb(port)),
            2 => port::outw(port, random.value() as u16),
            _ => drop_value(port::inl(port)),
        }
        let window = WINDOWS[random.below(WINDOWS.len() as u64) as usize];
        access_memory(window + random.below(0x200 / 4) * 4, 1 << random.below(4), random);
    }
    for port in [0x3f8, 0x60, 0xf5, 0x1234] {
        strings(port);
    }
}

/// String output and input, eight elements each. At least one KVM backend makes exits of several elements of them.
fn strings(port: u16) {
    let mut buffer = [0_u8; 8];
    // SAFETY: eight bytes out of the buffer, then eight into it.
    unsafe {
        asm!("rep outsb", inout("rsi") buffer.as_ptr() => _, inout("ecx") 8 => _, in("dx") port, options(nostack));
        asm!("rep insb", inout("rdi") buffer.as_mut_ptr() => _, inout("ecx") 8 => _, in("dx") port, options(nostack));
    }
}

/// Gives interrupts a moment to arrive, and forgets how many did.
fn pause() {
    for _ in 0..PATIENCE {
        core::hint::spin_loop();
    }
    let _ = interrupts::take(interrupts::TIMER_VECTOR);
}
