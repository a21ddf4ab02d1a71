//! A device's end of an interrupt line.
//!
//! Owns a handle to one pin. Never decides anything: the I/O APIC knows whether the pin is masked, routed,
//! edge or level.

use std::fmt;
use std::sync::Arc;

use ringlet_io::InterruptLine;

use super::{Ioapic, PINS};

/// Why a device cannot be connected to a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The I/O APIC has fewer pins.
    #[error("the I/O APIC has no pin {0} (it has {PINS})")]
    NoSuchPin(u8),
    /// Another device is connected to it.
    #[error("I/O APIC pin {0} is taken")]
    Taken(u8),
}

/// An interrupt line as its device sees it. Clones drive the same line.
#[derive(Clone)]
pub struct LineOut {
    ioapic: Arc<Ioapic>,
    pin: u8,
}

impl LineOut {
    pub(super) const fn new(ioapic: Arc<Ioapic>, pin: u8) -> Self {
        Self { ioapic, pin }
    }

    /// The pin, which is also the GSI.
    pub const fn pin(&self) -> u8 {
        self.pin
    }

    /// Asserts the line. An edge pin interrupts if the line was not asserted; a level pin unless an
    /// interrupt of it is still being handled. What a masked pin cannot deliver is delivered when it is
    /// unmasked, if the line is then still asserted.
    pub fn assert(&self) {
        self.update(true, false).fire();
    }

    /// Takes the line back.
    pub fn deassert(&self) {
        self.update(false, false).fire();
    }

    /// An edge, whether the line is asserted or not; the line stays as it is. While the pin is masked one
    /// edge is remembered, until it is unmasked or [`LineOut::deassert`] is called.
    pub fn pulse(&self) {
        self.ioapic.pulse(self.pin).fire();
    }

    /// Moves the line to `asserted`, and counts as an edge even without a transition if `edge`. For a device
    /// that calls under its own lock (so that the line follows its state in order): the interrupt itself is
    /// what is returned, to be fired after that lock is released.
    pub fn update(&self, asserted: bool, edge: bool) -> Injection<'_> {
        self.ioapic.signal(self.pin, asserted, edge)
    }
}

impl fmt::Debug for LineOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineOut").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// An interrupt that is decided and not yet sent.
#[must_use = "an injection that is not fired is lost"]
#[derive(Debug)]
pub struct Injection<'a>(Option<&'a InterruptLine>);

impl<'a> Injection<'a> {
    pub(super) const fn new(line: Option<&'a InterruptLine>) -> Self {
        Self(line)
    }

    /// Sends it, if there is one: one eventfd write, which never waits.
    pub fn fire(self) {
        if let Some(line) = self.0 {
            line.trigger();
        }
    }
}
