//! Interrupts as a guest without a scheduler wants them: the stubs count and acknowledge them, the program asks.

use crate::{cpu, lapic, percpu};

/// First vector that is not an exception's.
pub const FIRST_VECTOR: u8 = 32;
/// The vector of the local APIC's timer.
pub const TIMER_VECTOR: u8 = 0xe0;
/// The vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Takes the number of interrupts on `vector` that this processor took since the last call.
#[must_use]
pub fn take(vector: u8) -> u32 {
    percpu::take_pending(vector)
}

/// Halts this processor until it has taken an interrupt since the last wait; returns how many it took. What came
/// between the last wait and this one returns at once: nothing is missed.
pub fn wait() -> u32 {
    lapic::enable();
    cpu::wait()
}

/// Lets interrupts in while the program runs (`true`), or only while it waits (`false`, as it starts). They are only
/// counted either way. Some KVM backends let them in always.
pub fn while_running(on: bool) {
    lapic::enable();
    cpu::set_interrupts(on);
}
