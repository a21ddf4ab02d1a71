//! A guest's mistake as a value.
//!
//! Owns [`GuestError`]: why a device did not do what an access asked for. Never an error of the host, and
//! never a reason to end a VM: the bus counts it, logs it under a rate limit, and the guest goes on.

use ringlet_metrics::GuestErrorKind;

use crate::bus::Action;

/// Why a device refused an access, in part or as a whole. Offsets are relative to the start of the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    /// A virtio register that cannot be written in this device status.
    #[error("offset {offset:#x} cannot be written in device status {status:#x}")]
    BadState {
        /// Offset in bytes.
        offset: u64,
        /// Device status register (virtio 1.2, section 2.1).
        status: u8,
    },
    /// A value of the virtio status register that cannot follow the one that it has.
    #[error("device status {to:#x} cannot follow {from:#x}")]
    BadStatus {
        /// Device status register.
        from: u8,
        /// What was written.
        to: u32,
    },
    /// The driver accepted virtio features that it must not, or not those that it must.
    #[error("features {accepted:#x} of {offered:#x}: {reason}")]
    BadFeatures {
        /// What the driver accepted.
        accepted: u64,
        /// What the device offers.
        offered: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A virtio queue register of a queue that does not take it, or a queue that cannot be enabled.
    #[error("queue {queue}: {reason}")]
    BadQueue {
        /// Number of the queue, as the driver selected it.
        queue: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// A notification of a virtio queue that does not exist or is not running.
    #[error("notification of queue {queue}, which is not running")]
    StrayNotify {
        /// Number of the queue.
        queue: u32,
    },
}

impl GuestError {
    /// The same, of a part of a device that begins `base` bytes from the device's start.
    #[must_use]
    pub(crate) fn behind(mut self, base: u64) -> Self {
        match &mut self {
            Self::BadWidth { offset, .. }
            | Self::BadRegister { offset }
            | Self::BadValue { offset, .. }
            | Self::ReadOnly { offset }
            | Self::WriteOnly { offset }
            | Self::BadState { offset, .. } => *offset = offset.saturating_add(base),
            Self::BadIndex { .. }
            | Self::ReadOnlyIndex { .. }
            | Self::SerialOverrun
            | Self::DeliveryMode { .. }
            | Self::Vector { .. }
            | Self::BadStatus { .. }
            | Self::BadFeatures { .. }
            | Self::BadQueue { .. }
            | Self::StrayNotify { .. } => {}
        }
        self
    }

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
            Self::BadState { .. } | Self::BadStatus { .. } => GuestErrorKind::BadStatus,
            Self::BadFeatures { .. } => GuestErrorKind::BadFeatures,
            Self::BadQueue { .. } => GuestErrorKind::BadQueueConfig,
            Self::StrayNotify { .. } => GuestErrorKind::StrayNotify,
        }
    }

    /// What the access entails although it was refused: a redirection entry that is not served still takes
    /// the place of one that was.
    pub fn action(&self) -> Action {
        match self {
            Self::DeliveryMode { action, .. } | Self::Vector { action, .. } => action.clone(),
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

#[cfg(test)]
mod tests {
    use super::GuestError;

    #[test]
    fn offsets_of_a_part_are_told_from_the_start_of_the_device() {
        let text = |error: GuestError| error.behind(0x100).to_string();
        assert_eq!(text(GuestError::ReadOnly { offset: 3 }), "the register at offset 0x103 is read-only");
        assert_eq!(
            text(GuestError::BadWidth { offset: 32, width: 2 }),
            "no access of 2 bytes at offset 0x120"
        );
        assert_eq!(text(GuestError::SerialOverrun), GuestError::SerialOverrun.to_string());
    }
}
