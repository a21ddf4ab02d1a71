//! I/O APIC in user space (Intel 82093AA, with the EOI register of version 0x20), 24 pins.
//!
//! The local APICs are KVM's. A pin's interrupts reach them through an irqfd whose MSI route follows the
//! pin's redirection entry, so delivering one is a single eventfd write; only this module builds MSI
//! addresses. A masked pin has no route.
//!
//! Served are the delivery modes fixed and lowest priority. SMI, INIT, ExtINT, SIPI and the reserved encoding
//! are dropped and counted: such an entry reads back as written and delivers nothing. So is NMI: no device
//! of ours has a reason to raise one, and a guest that needs NMIs (a watchdog, a crash dump) sends them from
//! its local APIC.
//!
//! Owns the registers and the level of each line behind one mutex, and the pins' eventfds, which it writes
//! after that mutex is released. Never talks to KVM: the runtime installs routes and reports EOIs.

mod entry;
mod line;
mod table;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ringlet_io::InterruptLine;

use crate::bus::{Action, BusDevice};
use crate::error::GuestError;
use crate::state::{IoapicState, StateError};
pub use line::{Injection, LineError, LineOut};
use table::Table;

/// Number of pins; pin n is GSI n.
pub const PINS: u8 = 24;

/// Guest-physical address of the registers.
pub const BASE: u64 = 0xFEC0_0000;
/// Length in bytes of the register window.
pub const LEN: u64 = 0x1000;

// Direct registers; each is accessed as an aligned 32-bit word.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const END_OF_INTERRUPT: u64 = 0x40;

/// The MSI route of one pin, as KVM_SET_GSI_ROUTING wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// GSI of the irqfd, 0 to 23.
    pub gsi: u32,
    /// MSI address (`address_lo`; the high half is 0).
    pub address: u64,
    /// MSI data.
    pub data: u32,
}

/// The I/O APIC of a VM.
pub struct Ioapic {
    table: Mutex<Table>,
    lines: [OnceLock<InterruptLine>; PINS as usize],
    /// Held from reading the routes until they are installed, so that two vCPUs do not install theirs in
    /// the wrong order.
    install: Mutex<()>,
}

impl Ioapic {
    /// An I/O APIC after reset: every pin masked and not connected.
    pub fn new() -> Self {
        Self {
            table: Mutex::new(Table::new()),
            lines: [const { OnceLock::new() }; PINS as usize],
            install: Mutex::new(()),
        }
    }

    /// Connects a device to `pin`: `interrupt` is the eventfd that is (or will be) the irqfd of GSI `pin`.
    ///
    /// # Errors
    /// If there is no such pin, or it is taken.
    pub fn line(self: &Arc<Self>, pin: u8, interrupt: InterruptLine) -> Result<LineOut, LineError> {
        let slot = self.lines.get(usize::from(pin)).ok_or(LineError::NoSuchPin(pin))?;
        slot.set(interrupt).map_err(|_| LineError::Taken(pin))?;
        Ok(LineOut::new(Arc::clone(self), pin))
    }

    /// What the vCPU thread does on [`Action::Routes`]: calls `install` with all routes, to give them to the
    /// kernel, then injects what could not be delivered before. Concurrent calls take turns.
    ///
    /// # Errors
    /// Those of `install`; pins whose routes are not installed stay silent until a later call succeeds.
    pub fn install_routes<E>(&self, install: impl FnOnce(&[Route]) -> Result<(), E>) -> Result<(), E> {
        let turn = self.install.lock().unwrap_or_else(PoisonError::into_inner);
        install(&self.routes())?;
        let owed = self.take_reinject();
        drop(turn);
        self.inject(owed);
        Ok(())
    }

    /// All routes now: unmasked pins with a delivery mode and a vector that are served. Part of
    /// [`Ioapic::install_routes`], which is what keeps concurrent callers in order; pins whose route
    /// changed inject nothing until [`Ioapic::take_reinject`].
    pub fn routes(&self) -> Vec<Route> {
        self.table().routes()
    }

    /// The routes of the last [`Ioapic::routes`] are installed: returns the bitmap of pins whose irqfd must
    /// be written ([`Ioapic::inject`]), because an interrupt was owed when there was no route.
    #[must_use = "the pins must be injected"]
    pub fn take_reinject(&self) -> u32 {
        self.table().installed()
    }

    /// KVM says that a vCPU ended the level interrupt `vector` (`KVM_EXIT_IOAPIC_EOI`): clears remote-IRR of
    /// every pin with that vector and returns the bitmap of those to inject again ([`Ioapic::inject`]),
    /// because they are still asserted.
    #[must_use = "the pins must be injected"]
    pub fn end_of_interrupt(&self, vector: u8) -> u32 {
        self.table().end_of_interrupt(vector)
    }

    /// Writes the irqfds of the pins in a bitmap; bits without a connected pin are ignored.
    pub fn inject(&self, pins: u32) {
        for (pin, line) in self.lines.iter().enumerate() {
            if let (true, Some(line)) = (pins >> pin & 1 == 1, line.get()) {
                line.trigger();
            }
        }
    }

    /// The state to save.
    pub fn save(&self) -> IoapicState {
        self.table().save()
    }

    /// Continues from a saved state. The routes must be installed afterwards
    /// ([`Ioapic::install_routes`]); until then nothing is injected.
    ///
    /// # Errors
    /// If the version is unknown, or a register holds what it never could.
    pub fn restore(&self, state: &IoapicState) -> Result<(), StateError> {
        let table = Table::try_from(state)?;
        *self.table() = table;
        Ok(())
    }

    /// A device moved its line; the result is fired once the caller holds no lock.
    fn signal(&self, pin: u8, asserted: bool, edge: bool) -> Injection<'_> {
        let inject = self.table().signal(pin, asserted, edge);
        Injection::new(self.lines.get(usize::from(pin)).and_then(OnceLock::get).filter(|_| inject))
    }

    /// An edge on a line that stays as it is.
    fn pulse(&self, pin: u8) -> Injection<'_> {
        let inject = self.table().pulse(pin);
        Injection::new(self.lines.get(usize::from(pin)).and_then(OnceLock::get).filter(|_| inject))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Ioapic {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Ioapic {
    fn name(&self) -> &'static str {
        "ioapic"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<Action, GuestError> {
        check_offset(offset)?;
        let width = data.len();
        let word: &mut [u8; 4] = data.try_into().map_err(|_| GuestError::BadWidth { offset, width })?;
        let value = match offset {
            SELECT => self.table().select.into(),
            WINDOW => self.table().read()?,
            _ => return Err(GuestError::WriteOnly { offset }),
        };
        *word = value.to_le_bytes();
        Ok(Action::None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Action, GuestError> {
        check_offset(offset)?;
        let word: [u8; 4] =
            data.try_into().map_err(|_| GuestError::BadWidth { offset, width: data.len() })?;
        let value = u32::from_le_bytes(word);
        let [low, ..] = word;
        match offset {
            SELECT => self.table().select = low,
            WINDOW => return self.table().write(value),
            _ => self.inject(self.end_of_interrupt(low)),
        }
        Ok(Action::None)
    }
}

impl fmt::Debug for Ioapic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ioapic").field("table", &self.table).finish_non_exhaustive()
    }
}

/// Checks that there is a register at `offset`.
fn check_offset(offset: u64) -> Result<(), GuestError> {
    match offset {
        SELECT | WINDOW | END_OF_INTERRUPT => Ok(()),
        _ => Err(GuestError::BadRegister { offset }),
    }
}

#[cfg(test)]
#[path = "ioapic_test.rs"]
mod tests;
