//! A guest's mistake as a value.
//!
//! Owns [`GuestError`]: why a device did not do what an access asked for. Never an error of the host, and
//! never a reason to end a VM: the bus counts it, logs it under a rate limit, and the guest goes on.

use ringlet_metrics::GuestErrorKind;

use crate::bus::Action;

/// Why a device refused an access, in part or as a whole. Offsets are relative to the start of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// The register exists, but not in this width.
    #[error("no access of {width} bytes at offset {offset:#x}")]
    BadWidth {
        /// Offset in bytes.
        offset: u64,
        /// Width of the access in bytes.
        width: usize,
    },
    /// There is no register at this offset.
    #[error("no register at offset {offset:#x}")]
    BadRegister {
        /// Offset in bytes.
        offset: u64,
    },
    /// There is no register behind this value of an index register.
    #[error("no register behind index {index:#x}")]
    BadIndex {
        /// Value of the index register.
        index: u8,
    },
    /// A write to a read-only register behind an index register.
    #[error("the register behind index {index:#x} is read-only")]
    ReadOnlyIndex {
        /// Value of the index register.
        index: u8,
    },
    /// The register does not take this value.
    #[error("value {value:#x} means nothing at offset {offset:#x}")]
    BadValue {
        /// Offset in bytes.
        offset: u64,
        /// What was written.
        value: u64,
    },
    /// A write to a register that can only be read.
    #[error("the register at offset {offset:#x} is read-only")]
    ReadOnly {
        /// Offset in bytes.
        offset: u64,
    },
    /// A read of a register that can only be written.
    #[error("the register at offset {offset:#x} is write-only")]
    WriteOnly {
        /// Offset in bytes.
        offset: u64,
    },
    /// A byte was sent to a loopback whose FIFO is full.
    #[error("the receive FIFO is full")]
    SerialOverrun,
    /// An unmasked redirection entry asks for a delivery mode that is not served; the pin delivers nothing.
    #[error("pin {pin}: delivery mode {mode} ({name}) is not served", name = delivery_mode_name(*.mode))]
    DeliveryMode {
        /// I/O APIC pin, 0 to 23.
        pin: u8,
        /// Delivery mode field of the entry (82093AA, section 3.2.4), 0 to 7.
        mode: u8,
        /// What must be done nevertheless.
        action: Action,
    },
    /// An unmasked redirection entry has a vector below 16, which no local APIC accepts; the pin delivers
    /// nothing.
    #[error("pin {pin}: vector {vector:#x} is below 0x10")]
    Vector {
        /// I/O APIC pin, 0 to 23.
        pin: u8,
        /// Vector field of the entry.
        vector: u8,
        /// What must be done nevertheless.
        action: Action,
    },
}

impl GuestError {
    /// The kind under which the error is counted.
    pub fn kind(&self) -> GuestErrorKind {
        match self {
            Self::BadWidth { .. } => GuestErrorKind::BadWidth,
            Self::BadRegister { .. } | Self::BadIndex { .. } => GuestErrorKind::BadRegister,
            Self::BadValue { .. } | Self::Vector { .. } => GuestErrorKind::BadValue,
            Self::ReadOnly { .. } | Self::ReadOnlyIndex { .. } => GuestErrorKind::ReadOnly,
            Self::WriteOnly { .. } => GuestErrorKind::WriteOnly,
            Self::SerialOverrun => GuestErrorKind::SerialOverrun,
            Self::DeliveryMode { .. } => GuestErrorKind::IoapicDeliveryMode,
        }
    }

    /// What the access entails although it was refused: a redirection entry that is not served still takes
    /// the place of one that was.
    pub fn action(&self) -> Action {
        match self {
            Self::DeliveryMode { action, .. } | Self::Vector { action, .. } => *action,
            _ => Action::None,
        }
    }
}

/// Names of 82093AA, section 3.2.4, bits 10:8.
fn delivery_mode_name(mode: u8) -> &'static str {
    match mode {
        0 => "fixed",
        1 => "lowest priority",
        2 => "SMI",
        4 => "NMI",
        5 => "INIT",
        6 => "SIPI",
        7 => "ExtINT",
        _ => "reserved",
    }
}
