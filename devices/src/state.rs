//! Saved state of the devices of this crate.
//!
//! Owns the plain, versioned types that a snapshot stores. Never the types that a device runs on: those are
//! made from these by a validating `TryFrom`, which trusts a saved state exactly as far as the guest that
//! could have written it.

use serde::{Deserialize, Serialize};

/// Why a saved state is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The state was written by another version of the format.
    #[error("{device} state: version {found} is not supported (this is version {supported})")]
    Version {
        /// Which device.
        device: &'static str,
        /// Version in the state.
        found: u32,
        /// Version that can be read.
        supported: u32,
    },
    /// A field holds what the device could never have held.
    #[error("{device} state: {field} = {value:#x} is impossible")]
    Field {
        /// Which device.
        device: &'static str,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// Checks the version of a state.
pub(crate) fn check_version(device: &'static str, found: u32, supported: u32) -> Result<(), StateError> {
    if found == supported { Ok(()) } else { Err(StateError::Version { device, found, supported }) }
}

/// Saved I/O APIC: what the guest programmed, and which lines its devices hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicState {
    /// [`IoapicState::VERSION`].
    pub version: u32,
    /// IOREGSEL.
    pub select: u8,
    /// I/O APIC identification, 0 to 15.
    pub id: u8,
    /// The 24 redirection entries, with remote-IRR.
    pub entries: [u64; 24],
    /// Bit per pin: the device asserts the line.
    pub asserted: u32,
    /// Bit per pin: an edge waits for the pin to be unmasked.
    pub pending: u32,
}

impl IoapicState {
    /// Version of the format.
    pub const VERSION: u32 = 1;
}

/// Saved UART. Output that was not fetched is not part of it: fetch it before saving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// [`SerialState::VERSION`].
    pub version: u32,
    /// Divisor latch, high and low byte.
    pub divisor: u16,
    /// Interrupt enable register, bits 3:0.
    pub interrupt_enable: u8,
    /// Pending interrupts as vm-superio keeps them: 1 (none), or 2 (transmitter empty) and 4 (data) combined.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Received bytes that the guest has not read, at most 64.
    pub received: Vec<u8>,
}

impl SerialState {
    /// Version of the format.
    pub const VERSION: u32 = 1;
}

/// Saved CMOS: only the index register; the time is the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmosState {
    /// [`CmosState::VERSION`].
    pub version: u32,
    /// Index register, bits 6:0.
    pub index: u8,
}

impl CmosState {
    /// Version of the format.
    pub const VERSION: u32 = 1;
}
