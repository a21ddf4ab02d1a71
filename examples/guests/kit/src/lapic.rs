//! The local APIC: x2APIC by MSRs where CPUID has it, else memory-mapped at 0xFEE0_0000. See Intel SDM volume 3,
//! chapter "Advanced programmable interrupt controller".

use crate::interrupts::{SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::percpu::{self, Apic};
use crate::{cpu, mmio, time};

const BASE: u64 = 0xfee0_0000;
/// Where the end of an interrupt is said, by memory ...
pub(crate) const APIC_EOI: u64 = BASE + 0xb0;
/// ... and by model-specific register.
pub(crate) const X2APIC_EOI: u32 = 0x80b;
const APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_X2: u64 = 1 << 10;
const TSC_DEADLINE: u32 = 0x6e0;

/// Registers, as numbered in x2APIC mode: MSR 0x800 + number, or 16 × number from the base.
const ID: u32 = 0x02;
const TASK_PRIORITY: u32 = 0x08;
const SPURIOUS: u32 = 0x0f;
const COMMAND: u32 = 0x30;
const COMMAND_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_LINT0: u32 = 0x35;
const INITIAL_COUNT: u32 = 0x38;
const CURRENT_COUNT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;

/// Ticks of the counting timer per second, undivided: KVM's and QEMU's.
pub(crate) const TIMER_HZ: u64 = 1_000_000_000;

const MASKED: u32 = 1 << 16;
const DEADLINE_MODE: u32 = 2 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
const SOFTWARE_ENABLE: u32 = 1 << 8;
const DELIVERY_PENDING: u32 = 1 << 12;
const LEVEL_ASSERT: u32 = 1 << 14;
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;

/// Enables this processor's local APIC, once; legacy interrupts (LINT0) stay masked.
pub fn enable() {
    if percpu::apic().is_some() {
        return;
    }
    let features = cpu::cpuid(1, 0);
    let base = cpu::rdmsr(APIC_BASE).unwrap_or(BASE | APIC_BASE_ENABLE);
    // SAFETY: turns the APIC on, or switches it to MSRs; no memory is affected.
    let x2 = features.ecx & 1 << 21 != 0
        && unsafe { cpu::wrmsr(APIC_BASE, base | APIC_BASE_ENABLE | APIC_BASE_X2) }.is_ok();
    percpu::set_apic(if x2 { Apic::X2 } else { Apic::Mmio });
    write(LVT_LINT0, MASKED);
    write(TASK_PRIORITY, 0);
    write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
}

/// Whether this processor's APIC is driven by MSRs; enables it.
#[must_use]
pub fn is_x2apic() -> bool {
    enable();
    percpu::apic() == Some(Apic::X2)
}

/// This processor's APIC id.
#[must_use]
pub fn id() -> u32 {
    if is_x2apic() { read(ID) } else { read(ID) >> 24 }
}

/// Reads register `number` (x2APIC numbering, so 0x0F is the spurious-interrupt register).
#[must_use]
pub fn read(number: u32) -> u32 {
    if percpu::apic() == Some(Apic::X2) {
        cpu::rdmsr(0x800 + number).unwrap_or(0) as u32
    } else {
        // SAFETY: a register of the APIC.
        unsafe { mmio::read(BASE + 16 * u64::from(number)) }
    }
}

/// Writes register `number`. What it refuses is lost.
pub fn write(number: u32, value: u32) {
    if percpu::apic() == Some(Apic::X2) {
        // SAFETY: registers of the APIC change no memory.
        let _ = unsafe { cpu::wrmsr(0x800 + number, u64::from(value)) };
    } else {
        // SAFETY: a register of the APIC.
        unsafe { mmio::write(BASE + 16 * u64::from(number), value) };
    }
}

/// Sends the interrupt command `low` to the processor with APIC id `destination`.
pub fn command(destination: u32, low: u32) {
    if is_x2apic() {
        // SAFETY: interrupts are only counted by the kit's stubs.
        let _ = unsafe { cpu::wrmsr(0x800 + COMMAND, u64::from(destination) << 32 | u64::from(low)) };
        return;
    }
    write(COMMAND_HIGH, destination << 24);
    write(COMMAND, low);
    while read(COMMAND) & DELIVERY_PENDING != 0 {
        core::hint::spin_loop();
    }
}

/// Sends the interrupt `vector` to the processor with APIC id `destination`.
pub fn send(destination: u32, vector: u8) {
    command(destination, LEVEL_ASSERT | u32::from(vector));
}

/// Sends a non-maskable interrupt, which is counted on vector 2.
pub fn send_nmi(destination: u32) {
    command(destination, LEVEL_ASSERT | DELIVERY_NMI);
}

/// Resets the processor with APIC id `destination`: it waits for [`send_startup`].
pub fn send_init(destination: u32) {
    command(destination, LEVEL_ASSERT | DELIVERY_INIT);
}

/// Starts a processor after [`send_init`], in real mode at the start of physical page `page` (below 1 MiB).
pub fn send_startup(destination: u32, page: u8) {
    command(destination, LEVEL_ASSERT | DELIVERY_STARTUP | u32::from(page));
}

/// Has this processor interrupted on [`TIMER_VECTOR`] after `nanoseconds`, once: by the TSC deadline where there is
/// one, else by the counting timer.
pub fn arm_timer(nanoseconds: u64) {
    enable();
    if cpu::cpuid(1, 0).ecx & 1 << 24 != 0 {
        write(LVT_TIMER, DEADLINE_MODE | u32::from(TIMER_VECTOR));
        let deadline = cpu::rdtsc() + time::ticks(nanoseconds, time::tsc_hz());
        // SAFETY: arms a timer.
        let _ = unsafe { cpu::wrmsr(TSC_DEADLINE, deadline) };
        return;
    }
    write(DIVIDE, DIVIDE_BY_1);
    write(LVT_TIMER, u32::from(TIMER_VECTOR));
    let count = time::ticks(nanoseconds, TIMER_HZ);
    write(INITIAL_COUNT, u32::try_from(count).unwrap_or(u32::MAX).max(1));
}

/// Lets the timer count `count` ticks, spinning; returns how many it really counted.
pub(crate) fn count(count: u32) -> u32 {
    enable();
    write(DIVIDE, DIVIDE_BY_1);
    write(LVT_TIMER, MASKED | u32::from(TIMER_VECTOR));
    write(INITIAL_COUNT, u32::MAX);
    loop {
        let counted = u32::MAX - read(CURRENT_COUNT);
        if counted >= count {
            return counted.max(1);
        }
    }
}
