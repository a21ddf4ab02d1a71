//! The I/O APIC at 0xFEC0_0000: pins to vectors. See the 82093AA data sheet.

use crate::mmio;

/// Where its registers are.
pub const BASE: u64 = 0xfec0_0000;
const SELECT: u64 = BASE;
const WINDOW: u64 = BASE + 0x10;
const VERSION: u32 = 1;
const TABLE: u32 = 0x10;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;

/// How a pin signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By a rising edge, as Ringlet's tables declare its lines.
    Edge,
    /// By its level.
    Level,
}

/// Reads register `index`.
#[must_use]
pub fn read(index: u32) -> u32 {
    // SAFETY: registers of the I/O APIC.
    unsafe {
        mmio::write(SELECT, index);
        mmio::read(WINDOW)
    }
}

/// Writes register `index`.
pub fn write(index: u32, value: u32) {
    // SAFETY: registers of the I/O APIC.
    unsafe {
        mmio::write(SELECT, index);
        mmio::write(WINDOW, value);
    }
}

/// Number of pins.
#[must_use]
pub fn pins() -> u32 {
    (read(VERSION) >> 16 & 0xff) + 1
}

/// Sends interrupts of `pin` to the processor with APIC id `destination` on `vector`.
pub fn route(pin: u32, vector: u8, destination: u8, trigger: Trigger) {
    let level = if trigger == Trigger::Level { LEVEL } else { 0 };
    set_entry(pin, u64::from(destination) << 56 | level | u64::from(vector));
}

/// Masks `pin`.
pub fn mask(pin: u32) {
    set_entry(pin, MASKED);
}

/// Writes the redirection entry of `pin`: masked first, so that no half of it acts.
pub fn set_entry(pin: u32, entry: u64) {
    write(TABLE + 2 * pin, MASKED as u32);
    write(TABLE + 2 * pin + 1, (entry >> 32) as u32);
    write(TABLE + 2 * pin, entry as u32);
}

/// The redirection entry of `pin`.
#[must_use]
pub fn entry(pin: u32) -> u64 {
    u64::from(read(TABLE + 2 * pin + 1)) << 32 | u64::from(read(TABLE + 2 * pin))
}
