//! Rules of the virtio-mmio registers that depend on no state (virtio 1.2, sections 2.1, 2.2 and 4.2.2).
//!
//! Owns pure functions only.

use super::spec::{feature, register, status};
use crate::error::GuestError;
use crate::state::StateError;

/// Checks that the whole access lies in a configuration space of `len` bytes, and is aligned and of a width that
/// drivers use (section 4.2.2.2).
pub(super) fn check_config(offset: u64, width: usize, len: u64) -> Result<(), GuestError> {
    let at = register::CONFIG.saturating_add(offset);
    if !matches!(width, 1 | 2 | 4) || !offset.is_multiple_of(width as u64) {
        return Err(GuestError::BadWidth { offset: at, width });
    }
    match offset.checked_add(width as u64) {
        Some(end) if end <= len => Ok(()),
        _ => Err(GuestError::BadRegister { offset: at }),
    }
}

/// Whether a driver's features are among those offered, and it is no legacy driver.
pub(super) fn check_features(accepted: u64, offered: u64) -> Result<(), GuestError> {
    let refused = |reason| Err(GuestError::BadFeatures { accepted, offered, reason });
    if accepted & !offered != 0 {
        return refused("not all of them were offered");
    }
    if accepted & feature::VERSION_1 == 0 {
        return refused("VIRTIO_F_VERSION_1 is missing: legacy drivers are not served");
    }
    Ok(())
}

/// Whether the driver's bits can be set together: each step needs the one before (section 3.1.1).
pub(super) fn status_is_possible(bits: u32) -> bool {
    const STEPS: [(u32, u32); 3] = [
        (status::DRIVER, status::ACKNOWLEDGE),
        (status::FEATURES_OK, status::DRIVER),
        (status::DRIVER_OK, status::FEATURES_OK),
    ];
    STEPS.iter().all(|(bit, before)| bits & bit == 0 || bits & before != 0)
}

pub(super) fn impossible(field: &'static str, value: u64) -> StateError {
    StateError::Field { device: "virtio", field, value }
}

/// 32 of the 64 feature bits.
pub(super) fn half(features: u64, sel: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match sel {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

pub(super) fn set_low(value: &mut u64, low: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(low);
}

pub(super) fn set_high(value: &mut u64, high: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(high) << 32;
}

pub(super) fn is_write_only(offset: u64) -> bool {
    use register::{
        DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL, INTERRUPT_ACK, QUEUE_DESC_HIGH,
        QUEUE_DESC_LOW, QUEUE_DEVICE_HIGH, QUEUE_DEVICE_LOW, QUEUE_DRIVER_HIGH, QUEUE_DRIVER_LOW,
        QUEUE_NOTIFY, QUEUE_NUM, QUEUE_SEL, SHM_SEL,
    };
    matches!(
        offset,
        DEVICE_FEATURES_SEL
            | DRIVER_FEATURES
            | DRIVER_FEATURES_SEL
            | QUEUE_SEL
            | QUEUE_NUM
            | QUEUE_NOTIFY
            | INTERRUPT_ACK
            | QUEUE_DESC_LOW
            | QUEUE_DESC_HIGH
            | QUEUE_DRIVER_LOW
            | QUEUE_DRIVER_HIGH
            | QUEUE_DEVICE_LOW
            | QUEUE_DEVICE_HIGH
            | SHM_SEL
    )
}

pub(super) fn is_read_only(offset: u64) -> bool {
    use register::{
        CONFIG_GENERATION, DEVICE_FEATURES, DEVICE_ID, INTERRUPT_STATUS, MAGIC_VALUE, QUEUE_NUM_MAX,
        SHM_BASE_HIGH, SHM_BASE_LOW, SHM_LEN_HIGH, SHM_LEN_LOW, VENDOR_ID, VERSION,
    };
    matches!(
        offset,
        MAGIC_VALUE
            | VERSION
            | DEVICE_ID
            | VENDOR_ID
            | DEVICE_FEATURES
            | QUEUE_NUM_MAX
            | INTERRUPT_STATUS
            | CONFIG_GENERATION
            | SHM_LEN_LOW
            | SHM_LEN_HIGH
            | SHM_BASE_LOW
            | SHM_BASE_HIGH
    )
}
