//! Numbers of the virtio 1.2 specification that the core uses.
//!
//! Owns names only: register offsets (section 4.2.2), status bits (2.1), feature bits (6), descriptor and
//! ring flags (2.7). The values are those of `virtio-bindings`, in the types that they are used in.

use virtio_bindings::{virtio_config as config, virtio_ids as ids, virtio_mmio as mmio, virtio_ring as ring};

/// Longest queue that any device offers; a chain has at most as many descriptors as its queue is long.
pub const MAX_QUEUE_SIZE: u16 = 256;
/// Most queues that a device may have.
pub const MAX_QUEUES: u16 = 64;
/// Most pieces that one chain may fall into once it is split at the borders of RAM regions: what the kernel
/// takes in one `readv` (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// Length in bytes of a descriptor (section 2.7.5).
pub const DESCRIPTOR_LEN: u32 = 16;

/// Device types (section 5).
pub mod device_type {
    use super::ids;

    /// Network interface (section 5.1).
    pub const NET: u32 = ids::VIRTIO_ID_NET;
    /// Block device (section 5.2).
    pub const BLOCK: u32 = ids::VIRTIO_ID_BLOCK;
    /// Console device (section 5.3).
    pub const CONSOLE: u32 = ids::VIRTIO_ID_CONSOLE;
    /// Socket device (section 5.10).
    pub const VSOCK: u32 = ids::VIRTIO_ID_VSOCK;
    /// Entropy device (section 5.4).
    pub const ENTROPY: u32 = ids::VIRTIO_ID_RNG;
}

/// Feature bits that are no device's own, as masks.
pub mod feature {
    use super::{config, ring};

    /// VIRTIO_F_INDIRECT_DESC: a descriptor may point to a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// VIRTIO_F_EVENT_IDX: notifications and interrupts are asked for by ring position.
    pub const EVENT_IDX: u64 = 1 << ring::VIRTIO_RING_F_EVENT_IDX;
    /// VIRTIO_F_VERSION_1: not a legacy driver. Must be accepted.
    pub const VERSION_1: u64 = 1 << config::VIRTIO_F_VERSION_1;
    /// VIRTIO_F_ACCESS_PLATFORM: addresses go through an IOMMU. Never offered, so a driver that accepts it is
    /// refused.
    pub const ACCESS_PLATFORM: u64 = 1 << config::VIRTIO_F_ACCESS_PLATFORM;
    /// VIRTIO_F_RING_RESET: queues can be reset one at a time.
    pub const RING_RESET: u64 = 1 << config::VIRTIO_F_RING_RESET;

    /// What the core serves, and so every device offers.
    pub const CORE: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET;
}

/// Device status bits (section 2.1).
pub mod status {
    use super::config;

    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u32 = config::VIRTIO_CONFIG_S_ACKNOWLEDGE;
    /// The driver knows how to drive it.
    pub const DRIVER: u32 = config::VIRTIO_CONFIG_S_DRIVER;
    /// The driver is set up.
    pub const DRIVER_OK: u32 = config::VIRTIO_CONFIG_S_DRIVER_OK;
    /// Both agree on the features.
    pub const FEATURES_OK: u32 = config::VIRTIO_CONFIG_S_FEATURES_OK;
    /// Set by the device: it is broken until it is reset.
    pub const NEEDS_RESET: u32 = config::VIRTIO_CONFIG_S_NEEDS_RESET;
    /// The driver has given up.
    pub const FAILED: u32 = config::VIRTIO_CONFIG_S_FAILED;

    /// The bits that the driver writes.
    pub const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Bits of the interrupt status register (section 4.2.2).
pub mod isr {
    use super::mmio;

    /// A buffer was used.
    pub const USED: u32 = mmio::VIRTIO_MMIO_INT_VRING;
    /// The configuration changed, or the device needs a reset.
    pub const CONFIG: u32 = mmio::VIRTIO_MMIO_INT_CONFIG;
}

/// Descriptor flags (section 2.7.5).
pub mod descriptor {
    use super::ring;

    /// The chain goes on at `next`.
    pub const NEXT: u16 = ring::VRING_DESC_F_NEXT as u16;
    /// The device writes the buffer, and does not read it.
    pub const WRITE: u16 = ring::VRING_DESC_F_WRITE as u16;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = ring::VRING_DESC_F_INDIRECT as u16;
}

/// Flag in the available ring: the driver wants no interrupts (section 2.7.6).
pub const AVAIL_NO_INTERRUPT: u16 = ring::VRING_AVAIL_F_NO_INTERRUPT as u16;

/// Registers of the MMIO transport, as offsets in bytes (section 4.2.2).
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod register {
    use super::mmio;

    pub const MAGIC_VALUE: u64 = mmio::VIRTIO_MMIO_MAGIC_VALUE as u64;
    pub const VERSION: u64 = mmio::VIRTIO_MMIO_VERSION as u64;
    pub const DEVICE_ID: u64 = mmio::VIRTIO_MMIO_DEVICE_ID as u64;
    pub const VENDOR_ID: u64 = mmio::VIRTIO_MMIO_VENDOR_ID as u64;
    pub const DEVICE_FEATURES: u64 = mmio::VIRTIO_MMIO_DEVICE_FEATURES as u64;
    pub const DEVICE_FEATURES_SEL: u64 = mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL as u64;
    pub const DRIVER_FEATURES: u64 = mmio::VIRTIO_MMIO_DRIVER_FEATURES as u64;
    pub const DRIVER_FEATURES_SEL: u64 = mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL as u64;
    pub const QUEUE_SEL: u64 = mmio::VIRTIO_MMIO_QUEUE_SEL as u64;
    pub const QUEUE_NUM_MAX: u64 = mmio::VIRTIO_MMIO_QUEUE_NUM_MAX as u64;
    pub const QUEUE_NUM: u64 = mmio::VIRTIO_MMIO_QUEUE_NUM as u64;
    pub const QUEUE_READY: u64 = mmio::VIRTIO_MMIO_QUEUE_READY as u64;
    pub const QUEUE_NOTIFY: u64 = mmio::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
    pub const INTERRUPT_STATUS: u64 = mmio::VIRTIO_MMIO_INTERRUPT_STATUS as u64;
    pub const INTERRUPT_ACK: u64 = mmio::VIRTIO_MMIO_INTERRUPT_ACK as u64;
    pub const STATUS: u64 = mmio::VIRTIO_MMIO_STATUS as u64;
    pub const QUEUE_DESC_LOW: u64 = mmio::VIRTIO_MMIO_QUEUE_DESC_LOW as u64;
    pub const QUEUE_DESC_HIGH: u64 = mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH as u64;
    pub const QUEUE_DRIVER_LOW: u64 = mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW as u64;
    pub const QUEUE_DRIVER_HIGH: u64 = mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH as u64;
    pub const QUEUE_DEVICE_LOW: u64 = mmio::VIRTIO_MMIO_QUEUE_USED_LOW as u64;
    pub const QUEUE_DEVICE_HIGH: u64 = mmio::VIRTIO_MMIO_QUEUE_USED_HIGH as u64;
    pub const SHM_SEL: u64 = mmio::VIRTIO_MMIO_SHM_SEL as u64;
    pub const SHM_LEN_LOW: u64 = mmio::VIRTIO_MMIO_SHM_LEN_LOW as u64;
    pub const SHM_LEN_HIGH: u64 = mmio::VIRTIO_MMIO_SHM_LEN_HIGH as u64;
    pub const SHM_BASE_LOW: u64 = mmio::VIRTIO_MMIO_SHM_BASE_LOW as u64;
    pub const SHM_BASE_HIGH: u64 = mmio::VIRTIO_MMIO_SHM_BASE_HIGH as u64;
    /// Not in virtio-bindings (virtio 1.2, table 4.1).
    pub const QUEUE_RESET: u64 = 0x0C0;
    pub const CONFIG_GENERATION: u64 = mmio::VIRTIO_MMIO_CONFIG_GENERATION as u64;
    pub const CONFIG: u64 = mmio::VIRTIO_MMIO_CONFIG as u64;
}
