//! The rules of the I/O APIC, without lock, eventfds or bus.
//!
//! Owns the registers, the level of every line, and which routes the kernel may not know yet. Every method
//! is one step under the device's lock; what has to be injected is returned, never done.

use super::entry::{Entry, Refused};
use super::{PINS, Route};
use crate::bus::Action;
use crate::error::GuestError;
use crate::state::{IoapicState, StateError, check_version};

const PIN_COUNT: usize = PINS as usize;

// Indirect registers (82093AA, section 3.0).
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
/// Boot configuration, which version 0x20 added (82801BA data sheet, section 8.5).
const BOOT: u8 = 0x03;
const FIRST_ENTRY: u8 = 0x10;
const LAST_ENTRY: u8 = FIRST_ENTRY + 2 * PINS - 1;

/// Version 0x20, the first with an EOI register: Linux then ends a level interrupt with one write instead
/// of rewriting the entry twice, which would cost two route changes.
const VERSION_NUMBER: u32 = 0x20;
const ID_SHIFT: u32 = 24;
const ID_MASK: u8 = 0x0F;

/// Boot configuration, bit 0: interrupts are delivered as messages on the system bus.
const BOOT_MESSAGES: u32 = 1;

/// Registers and lines.
#[derive(Debug)]
pub(super) struct Table {
    /// IOREGSEL.
    pub(super) select: u8,
    id: u8,
    entries: [Entry; PIN_COUNT],
    /// Bit per pin: the device asserts its line.
    asserted: u32,
    /// Bit per pin: an edge could not be delivered and is owed.
    pending: u32,
    /// Bit per pin: the route changed after the last [`Table::routes`].
    dirty: u32,
    /// Bit per pin: the route is being installed. Until it is, an injection could go to the old route, or
    /// nowhere, so the pins of `dirty` and `installing` inject nothing; [`Table::installed`] makes up for it.
    installing: u32,
}

impl Table {
    /// After reset: everything masked, nothing asserted.
    pub(super) const fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [Entry::RESET; PIN_COUNT],
            asserted: 0,
            pending: 0,
            dirty: 0,
            installing: 0,
        }
    }

    /// Reads the selected register.
    pub(super) fn read(&self) -> Result<u32, GuestError> {
        match self.select {
            ID | ARBITRATION => Ok(u32::from(self.id) << ID_SHIFT),
            VERSION => Ok(VERSION_NUMBER | u32::from(PINS - 1) << 16),
            BOOT => Ok(BOOT_MESSAGES),
            index => {
                let (pin, high) = entry_half(index)?;
                let bits = self.entry(pin).bits();
                Ok(if high { (bits >> 32) as u32 } else { bits as u32 })
            }
        }
    }

    /// Writes the selected register.
    pub(super) fn write(&mut self, value: u32) -> Result<Action, GuestError> {
        match self.select {
            ID => self.id = (value >> ID_SHIFT) as u8 & ID_MASK,
            index @ (VERSION | ARBITRATION | BOOT) => return Err(GuestError::ReadOnlyIndex { index }),
            index => {
                let (pin, high) = entry_half(index)?;
                return self.write_entry(pin, high, value);
            }
        }
        Ok(Action::None)
    }

    /// Writes half of a redirection entry.
    fn write_entry(&mut self, pin: u8, high: bool, value: u32) -> Result<Action, GuestError> {
        let (before, mut after) = (self.entry(pin), self.entry(pin).written(high, value));
        let changed = before.msi() != after.msi();
        if changed {
            // KVM reports the end of an interrupt only for vectors that are routed: that of the old route
            // may never be reported, so it is not waited for.
            after = after.with_remote_irr(false);
            self.dirty |= bit(pin);
        }
        self.set_entry(pin, after);
        let action = if changed { Action::Routes } else { Action::None };
        match after.refused() {
            None => Ok(action),
            Some(Refused::Mode(mode)) => Err(GuestError::DeliveryMode { pin, mode, action }),
            Some(Refused::Vector(vector)) => Err(GuestError::Vector { pin, vector, action }),
        }
    }

    /// All routes, to be installed. [`Table::installed`] must follow once they are.
    pub(super) fn routes(&mut self) -> Vec<Route> {
        self.installing |= std::mem::take(&mut self.dirty);
        let route = |(pin, entry): (u32, &Entry)| {
            entry.msi().map(|msi| Route { gsi: pin, address: msi.address, data: msi.data })
        };
        (0..).zip(&self.entries).filter_map(route).collect()
    }

    /// The routes of the last [`Table::routes`] are installed: returns the pins to inject, because their
    /// line was asserted, or an edge came, when it could not be delivered.
    pub(super) fn installed(&mut self) -> u32 {
        let settled = std::mem::take(&mut self.installing);
        self.inject_owed(settled)
    }

    /// A device moved its line to `asserted`, with an edge even if it was asserted before if `edge`.
    /// Returns true if the pin must be injected.
    pub(super) fn signal(&mut self, pin: u8, asserted: bool, edge: bool) -> bool {
        let mask = bit(pin);
        let rising = asserted && self.asserted & mask == 0;
        self.asserted = if asserted { self.asserted | mask } else { self.asserted & !mask };
        let wanted = if self.entry(pin).is_level() { asserted || edge } else { rising || edge };
        if wanted {
            return self.pulse(pin);
        }
        if !asserted {
            // A line that was taken back is owed nothing.
            self.pending &= !mask;
        }
        false
    }

    /// An edge on a line that stays as it is. Returns true if the pin must be injected.
    pub(super) fn pulse(&mut self, pin: u8) -> bool {
        self.pending |= bit(pin);
        self.inject_owed(bit(pin)) != 0
    }

    /// The guest ended the interrupt `vector`: clears remote-IRR of every level pin with that vector, and
    /// returns those that must be injected again because they are still asserted.
    pub(super) fn end_of_interrupt(&mut self, vector: u8) -> u32 {
        let mut ended = 0;
        for (pin, entry) in (0_u8..).zip(&mut self.entries) {
            if entry.remote_irr() && entry.vector() == vector {
                *entry = entry.with_remote_irr(false);
                ended |= bit(pin);
            }
        }
        self.inject_owed(ended)
    }

    /// Of the pins in `candidates`, delivers those that want to interrupt and can; returns them.
    fn inject_owed(&mut self, candidates: u32) -> u32 {
        let ready = candidates & (self.asserted | self.pending) & !(self.dirty | self.installing);
        let mut injected = 0;
        for pin in (0..PINS).filter(|pin| ready & bit(*pin) != 0) {
            let entry = self.entry(pin);
            if entry.msi().is_none() || entry.remote_irr() {
                continue;
            }
            if entry.is_level() {
                self.set_entry(pin, entry.with_remote_irr(true));
            }
            self.pending &= !bit(pin);
            injected |= bit(pin);
        }
        injected
    }

    /// The state to save.
    pub(super) fn save(&self) -> IoapicState {
        IoapicState {
            version: IoapicState::VERSION,
            select: self.select,
            id: self.id,
            entries: self.entries.map(Entry::bits),
            asserted: self.asserted,
            pending: self.pending,
        }
    }

    fn entry(&self, pin: u8) -> Entry {
        self.entries.get(usize::from(pin)).copied().unwrap_or(Entry::RESET)
    }

    fn set_entry(&mut self, pin: u8, entry: Entry) {
        if let Some(slot) = self.entries.get_mut(usize::from(pin)) {
            *slot = entry;
        }
    }
}

impl TryFrom<&IoapicState> for Table {
    type Error = StateError;

    fn try_from(state: &IoapicState) -> Result<Self, StateError> {
        check_version("ioapic", state.version, IoapicState::VERSION)?;
        let field = |field, value| StateError::Field { device: "ioapic", field, value };
        if state.id & !ID_MASK != 0 {
            return Err(field("id", state.id.into()));
        }
        if state.asserted & !ALL_PINS != 0 {
            return Err(field("asserted", state.asserted.into()));
        }
        if state.pending & !ALL_PINS != 0 {
            return Err(field("pending", state.pending.into()));
        }
        let mut entries = [Entry::RESET; PIN_COUNT];
        for (entry, bits) in entries.iter_mut().zip(state.entries) {
            *entry = Entry::from_saved(bits).ok_or(field("entries", bits))?;
        }
        let IoapicState { version: _, select, id, entries: _, asserted, pending } = *state;
        // The kernel knows none of the routes yet.
        Ok(Self { select, id, entries, asserted, pending, dirty: ALL_PINS, installing: 0 })
    }
}

/// A bit for every pin.
const ALL_PINS: u32 = (1 << PINS) - 1;

/// The bit of a pin in a bitmap; none for a pin that does not exist.
const fn bit(pin: u8) -> u32 {
    if pin < PINS { 1 << pin } else { 0 }
}

/// Which half of which redirection entry an index register value selects.
fn entry_half(index: u8) -> Result<(u8, bool), GuestError> {
    match index {
        FIRST_ENTRY..=LAST_ENTRY => Ok(((index - FIRST_ENTRY) / 2, index % 2 == 1)),
        _ => Err(GuestError::BadIndex { index }),
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
