//! Saved state of virtio devices: plain, versioned, and taken back only after the checks that a driver's own
//! writes would meet.
//!
//! Owns the types that a snapshot stores. Never the types that a device runs on.

use serde::{Deserialize, Serialize};

/// Where a stopped queue goes on. Any value is possible: what does not fit the rings in guest memory breaks
/// the queue, as if the driver had written it there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Next position in the available ring.
    pub next_avail: u16,
    /// Next position in the used ring.
    pub next_used: u16,
    /// The queue has latched an error.
    pub broken: bool,
}

/// What a kind of device has to save beside its registers and queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeviceState {
    /// Nothing: everything follows from the features and the backend.
    Stateless,
    /// Block device (virtio 1.2, section 5.2).
    Block {
        /// The writeback field: writes are cached until they are flushed.
        writeback: bool,
        /// A flush has failed, so that completed writes may be lost.
        lost: bool,
    },
    /// Console (section 5.3).
    Console {
        /// Columns of the terminal.
        columns: u16,
        /// Rows of the terminal.
        rows: u16,
        /// Bytes of the chain offered first for output that have been handed on already. Input that the driver has
        /// not taken stays at the host's end.
        sent: u32,
    },
    /// Network interface (section 5.1). Packets are the host's or the driver's, never the device's.
    Net {
        /// Its address.
        mac: [u8; 6],
        /// Pairs of queues that are used.
        pairs: u16,
        /// What received packets may leave unfinished, as feature bits.
        offloads: u64,
        /// The link, as the driver knows it.
        link_up: bool,
    },
    /// Socket device (section 5.10). Connections are reset when it is restored, of which the driver is told.
    Vsock {
        /// The guest's context ID, as the driver knows it; another one is told with the reset.
        cid: u64,
    },
}

/// Saved queue registers, as the driver wrote them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// QueueNum.
    pub size: u32,
    /// Guest-physical address of the descriptor area.
    pub descriptors: u64,
    /// Guest-physical address of the driver area.
    pub driver: u64,
    /// Guest-physical address of the device area.
    pub device: u64,
    /// QueueReady.
    pub ready: bool,
    /// The queue was reset or stopped since DRIVER_OK, and may be programmed anew.
    pub reset: bool,
}

/// Saved registers of the MMIO transport (section 4.2.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Device status.
    pub status: u8,
    /// Interrupt status.
    pub interrupt_status: u8,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// QueueSel.
    pub queue_sel: u32,
    /// One for each queue.
    pub queues: Vec<QueueRegisters>,
}

/// A saved device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    /// [`VirtioState::VERSION`].
    pub version: u32,
    /// Type of the device (section 5).
    pub device_type: u32,
    /// Its registers.
    pub transport: TransportState,
    /// Where each queue stands; `None` for one that is not running.
    pub queues: Vec<Option<QueueState>>,
    /// What is the device's own.
    pub device: DeviceState,
}

impl VirtioState {
    /// Version of the format.
    pub const VERSION: u32 = 1;
}
