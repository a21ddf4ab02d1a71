//! 16550A UART on vm-superio.
//!
//! Owns the registers and the 64-byte receive FIFO, behind one mutex. Sends what the guest transmits to a
//! [`SerialOutput`]; a byte for which that has no room is not taken, and the access asks the vCPU thread to
//! wait and repeat it, because the crate's line status always says "transmitter empty". Never reads or
//! writes a file, and rings no doorbell and no interrupt while its mutex is held.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringlet_metrics::VmMetrics;
use vm_superio::Trigger;
use vm_superio::serial::{Error as UartError, NoEvents, Serial as VmSuperioSerial, SerialState as UartState};

use crate::bus::{Action, BusDevice};
use crate::error::GuestError;
use crate::ioapic::{Injection, LineOut};
use crate::output::{Appended, SerialOutput};
use crate::state::{SerialState, StateError, check_version};

/// Bytes that the receive FIFO holds (vm-superio's, four times a real 16550A's).
const FIFO_SIZE: usize = 64;
/// Number of registers.
const REGISTERS: u64 = 8;

// Register offsets and bits (PC16550D data sheet, section 8).
const DATA: u8 = 0;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_CONTROL_DLAB: u8 = 0x80;
const MODEM_CONTROL_LOOP: u8 = 0x10;
const ENABLE_DATA: u8 = 0x01;
const ENABLE_EMPTY: u8 = 0x02;
const ENABLE_VALID: u8 = 0x0F;
const PENDING_NONE: u8 = 0x01;
const PENDING_EMPTY: u8 = 0x02;
const PENDING_DATA: u8 = 0x04;
const LINE_STATUS_DATA: u8 = 0x01;

/// A UART; called by vCPU threads (as a [`BusDevice`]) and by the shard ([`Serial::input`]).
pub struct Serial {
    inner: Mutex<Inner>,
    output: Arc<SerialOutput>,
    line: LineOut,
    on_drained: Box<dyn Fn() + Send + Sync>,
    metrics: Arc<VmMetrics>,
}

/// What the mutex guards.
struct Inner {
    uart: Uart,
    /// Input was refused for want of room; tell the shard when there is some.
    feeder_waits: bool,
}

impl Serial {
    /// I/O port of the first PC serial port.
    pub const BASE: u64 = 0x3F8;
    /// Number of I/O ports.
    pub const LEN: u64 = REGISTERS;
    /// Interrupt of the first PC serial port (I/O APIC pin and GSI).
    pub const PIN: u8 = 4;

    /// A UART after reset. `on_drained` is called, without a lock held, when [`Serial::input`] accepted less
    /// than it was given and the guest has since emptied the FIFO: it should ring the shard's doorbell and
    /// must not wait.
    pub fn new(
        line: LineOut,
        output: Arc<SerialOutput>,
        on_drained: impl Fn() + Send + Sync + 'static,
        metrics: Arc<VmMetrics>,
    ) -> Self {
        let inner = Inner { uart: Uart::default(), feeder_waits: false };
        Self { inner: Mutex::new(inner), output, line, on_drained: Box::new(on_drained), metrics }
    }

    /// Gives the guest bytes to receive; returns how many were accepted. The rest stays the caller's: it is
    /// told by `on_drained` when to offer it again. In loopback mode nothing is accepted.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.lock();
        let accepted = inner.uart.receive(bytes);
        inner.feeder_waits |= accepted < bytes.len();
        let effects = self.settle(&mut inner, None);
        drop(inner);
        self.metrics.serial_received_bytes.add(accepted as u64);
        self.perform(effects);
        accepted
    }

    /// How many bytes [`Serial::input`] would accept now, 0 to 64.
    pub fn room(&self) -> usize {
        let mut inner = self.lock();
        if inner.uart.is_loopback() { 0 } else { inner.uart.0.fifo_capacity() }
    }

    /// True while an enabled interrupt waits for the guest to acknowledge it: the level of the UART's
    /// interrupt output.
    pub fn asserted(&self) -> bool {
        self.lock().uart.asserted()
    }

    /// The state to save. Output that was not fetched yet is not in it.
    pub fn save(&self) -> SerialState {
        let state = self.lock().uart.0.state();
        SerialState {
            version: SerialState::VERSION,
            divisor: u16::from_be_bytes([state.baud_divisor_high, state.baud_divisor_low]),
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            modem_control: state.modem_control,
            scratch: state.scratch,
            received: state.in_buffer,
        }
    }

    /// Continues from a saved state; an interrupt that is pending in it is raised again.
    ///
    /// # Errors
    /// If the version is unknown, or a register holds what it never could.
    pub fn restore(&self, state: &SerialState) -> Result<(), StateError> {
        let uart = Uart::try_from(state)?;
        let mut inner = self.lock();
        inner.uart = uart;
        let effects = self.settle(&mut inner, None);
        drop(inner);
        self.perform(effects);
        Ok(())
    }

    /// After anything that changed the UART: moves its interrupt line (in the order of the changes, hence
    /// under the lock) and notes what must be done after the lock is released.
    fn settle<'a>(&'a self, inner: &mut Inner, appended: Option<Appended<'a>>) -> Effects<'a> {
        let edge = inner.uart.0.interrupt_evt().0.take();
        let injection = self.line.update(inner.uart.asserted(), edge);
        let drained = inner.feeder_waits && inner.uart.is_drained();
        inner.feeder_waits &= !drained;
        Effects { injection, appended, drained }
    }

    /// Does what had to wait for the lock to be released.
    fn perform(&self, effects: Effects<'_>) {
        effects.injection.fire();
        if let Some(appended) = effects.appended {
            appended.ring();
        }
        if effects.drained {
            (self.on_drained)();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn name(&self) -> &'static str {
        "serial"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<Action, GuestError> {
        let width = data.len();
        let [byte] = data else { return Err(GuestError::BadWidth { offset, width }) };
        let register = register(offset)?;
        let mut inner = self.lock();
        *byte = inner.uart.0.read(register);
        let effects = self.settle(&mut inner, None);
        drop(inner);
        self.perform(effects);
        Ok(Action::None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Action, GuestError> {
        let &[value] = data else { return Err(GuestError::BadWidth { offset, width: data.len() }) };
        let register = register(offset)?;
        let mut inner = self.lock();
        match inner.uart.target(register) {
            Target::Line if !self.output.has_room() => return Ok(Action::WaitForSerial),
            Target::Fifo if inner.uart.0.fifo_capacity() == 0 => return Err(GuestError::SerialOverrun),
            Target::Line | Target::Fifo | Target::Register => {}
        }
        let Some(sent) = inner.uart.write(register, value) else {
            let effects = self.settle(&mut inner, None);
            drop(inner);
            self.perform(effects);
            return Ok(Action::None);
        };
        // Still under the lock, so that the bytes of two vCPUs keep their order.
        let appended = self.output.append(sent);
        let action = if appended.is_ok() { Action::None } else { Action::WaitForSerial };
        let effects = self.settle(&mut inner, appended.ok());
        drop(inner);
        self.perform(effects);
        Ok(action)
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("output", &self.output)
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}

/// What an access entails once the lock is released.
#[must_use]
struct Effects<'a> {
    injection: Injection<'a>,
    appended: Option<Appended<'a>>,
    drained: bool,
}

/// The register at an offset.
fn register(offset: u64) -> Result<u8, GuestError> {
    match u8::try_from(offset) {
        Ok(register) if offset < REGISTERS => Ok(register),
        _ => Err(GuestError::BadRegister { offset }),
    }
}

/// Where a written byte goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Out of the machine.
    Line,
    /// Into the receive FIFO (loopback).
    Fifo,
    /// Into a register.
    Register,
}

/// vm-superio's UART, with an interrupt that is a note and an output that is one byte.
struct Uart(VmSuperioSerial<Edge, NoEvents, Sent>);

impl Default for Uart {
    fn default() -> Self {
        Self(VmSuperioSerial::new(Edge::default(), Sent::default()))
    }
}

impl Uart {
    /// Writes a register; returns the byte that this transmits, if it does.
    fn write(&mut self, register: u8, value: u8) -> Option<u8> {
        match self.0.write(register, value) {
            Ok(()) | Err(UartError::IOError(_) | UartError::FullFifo) => {}
            Err(UartError::Trigger(never)) => match never {},
        }
        self.0.writer_mut().0.take()
    }

    /// Puts bytes into the receive FIFO; returns how many fitted.
    fn receive(&mut self, bytes: &[u8]) -> usize {
        self.0.enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// Where a write to `register` would go.
    fn target(&mut self, register: u8) -> Target {
        if register != DATA || self.0.read(LINE_CONTROL) & LINE_CONTROL_DLAB != 0 {
            Target::Register
        } else if self.is_loopback() {
            Target::Fifo
        } else {
            Target::Line
        }
    }

    fn is_loopback(&mut self) -> bool {
        self.0.read(MODEM_CONTROL) & MODEM_CONTROL_LOOP != 0
    }

    /// True if the guest has read everything and more may be given to it.
    fn is_drained(&mut self) -> bool {
        self.0.fifo_capacity() == FIFO_SIZE && !self.is_loopback()
    }

    fn asserted(&self) -> bool {
        let state = self.0.state();
        let pending = |pending: u8, enabled: u8| {
            state.interrupt_identification & pending != 0 && state.interrupt_enable & enabled != 0
        };
        pending(PENDING_DATA, ENABLE_DATA) || pending(PENDING_EMPTY, ENABLE_EMPTY)
    }
}

impl TryFrom<&SerialState> for Uart {
    type Error = StateError;

    fn try_from(state: &SerialState) -> Result<Self, StateError> {
        check_version("serial", state.version, SerialState::VERSION)?;
        let field = |field, value| StateError::Field { device: "serial", field, value };
        if state.interrupt_enable & !ENABLE_VALID != 0 {
            return Err(field("interrupt_enable", state.interrupt_enable.into()));
        }
        let pending = state.interrupt_identification;
        if pending != PENDING_NONE && (pending == 0 || pending & !(PENDING_EMPTY | PENDING_DATA) != 0) {
            return Err(field("interrupt_identification", pending.into()));
        }
        if state.received.len() > FIFO_SIZE {
            return Err(field("received", state.received.len() as u64));
        }
        VmSuperioSerial::from_state(&uart_state(state), Edge::default(), NoEvents, Sent::default())
            .map(Self)
            .map_err(|_| field("received", state.received.len() as u64))
    }
}

/// The crate's form of a state; what follows from other fields is computed, not trusted.
fn uart_state(state: &SerialState) -> UartState {
    let [baud_divisor_high, baud_divisor_low] = state.divisor.to_be_bytes();
    let initial = UartState::default();
    let data = if state.received.is_empty() { 0 } else { LINE_STATUS_DATA };
    UartState {
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable: state.interrupt_enable,
        interrupt_identification: state.interrupt_identification,
        line_control: state.line_control,
        line_status: initial.line_status | data,
        modem_control: state.modem_control,
        modem_status: initial.modem_status,
        scratch: state.scratch,
        in_buffer: state.received.clone(),
    }
}

/// Notes that vm-superio wanted an interrupt.
#[derive(Default)]
struct Edge(Cell<bool>);

impl Trigger for Edge {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// Keeps the byte that vm-superio transmits.
#[derive(Default)]
struct Sent(Option<u8>);

impl io::Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.last().copied();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
