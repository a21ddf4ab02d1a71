//! i8042 keyboard controller, as far as a PC needs one to reset itself.
//!
//! Owns the two ports of the controller: no keyboard, no mouse, an output buffer that is always empty.
//! Never replies to a command: a driver that probes finds a controller that times out.

use crate::bus::{Action, BusDevice};
use crate::error::GuestError;

/// Status register: bit 4 keyboard not locked, bit 3 last write was a command, bit 2 self-test passed;
/// bit 1 (input buffer full) and bit 0 (output buffer full) clear, so a driver may always write and never
/// finds a byte to read.
const STATUS: u8 = 0x1C;
/// Command: pulse output line 0, which is the processor's reset line.
const COMMAND_RESET: u8 = 0xFE;

/// One of the two ports of the controller; it has no state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I8042 {
    /// Data port, one byte wide, at [`I8042::DATA_PORT`].
    Data,
    /// Status (read) and command (write) port, one byte wide, at [`I8042::COMMAND_PORT`].
    Command,
}

impl I8042 {
    /// I/O port of [`I8042::Data`].
    pub const DATA_PORT: u64 = 0x60;
    /// I/O port of [`I8042::Command`].
    pub const COMMAND_PORT: u64 = 0x64;
}

impl BusDevice for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<Action, GuestError> {
        let [byte] = data else { return Err(GuestError::BadWidth { offset, width: data.len() }) };
        match (self, offset) {
            (Self::Data, 0) => *byte = 0,
            (Self::Command, 0) => *byte = STATUS,
            _ => return Err(GuestError::BadRegister { offset }),
        }
        Ok(Action::None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Action, GuestError> {
        let &[value] = data else { return Err(GuestError::BadWidth { offset, width: data.len() }) };
        match (self, offset, value) {
            (Self::Command, 0, COMMAND_RESET) => Ok(Action::Reset),
            (_, 0, _) => Err(GuestError::BadValue { offset, value: value.into() }),
            _ => Err(GuestError::BadRegister { offset }),
        }
    }
}

#[cfg(test)]
#[path = "i8042_test.rs"]
mod tests;
