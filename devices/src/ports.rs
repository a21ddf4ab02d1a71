//! The two ports by which a guest talks to its runtime: exit code and "ready".
//!
//! Owns their decoding. Never ends anything: it only says what the guest said.

use crate::bus::{Action, BusDevice};
use crate::error::GuestError;

/// Offset of the exit port: a 32-bit write is the exit code.
const EXIT: u64 = 0;
/// Offset of the ready port: the byte [`READY_VALUE`].
const READY: u64 = 1;
/// What "ready" is said with (the value that Firecracker's boot timer uses).
const READY_VALUE: u8 = 123;

/// Exit port 0xF4 and ready port 0xF5. One device, because a 32-bit write to 0xF4 spans both.
#[derive(Debug, Clone, Copy, Default)]
pub struct GuestPorts;

impl GuestPorts {
    /// First I/O port.
    pub const BASE: u64 = 0xF4;
    /// Number of I/O ports.
    pub const LEN: u64 = 4;
}

impl BusDevice for GuestPorts {
    fn name(&self) -> &'static str {
        "exit"
    }

    fn read(&self, offset: u64, _data: &mut [u8]) -> Result<Action, GuestError> {
        Err(match offset {
            EXIT | READY => GuestError::WriteOnly { offset },
            _ => GuestError::BadRegister { offset },
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Action, GuestError> {
        match (offset, data) {
            (EXIT, &[a, b, c, d]) => Ok(Action::Exit(u32::from_le_bytes([a, b, c, d]))),
            (READY, &[READY_VALUE]) => Ok(Action::Ready),
            (READY, &[value]) => Err(GuestError::BadValue { offset, value: value.into() }),
            (EXIT | READY, _) => Err(GuestError::BadWidth { offset, width: data.len() }),
            _ => Err(GuestError::BadRegister { offset }),
        }
    }
}

#[cfg(test)]
#[path = "ports_test.rs"]
mod tests;
