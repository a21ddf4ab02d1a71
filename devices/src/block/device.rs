//! The device: configuration space, features, queues.
//!
//! Owns one task per running queue and what they share. Never parses a request, and never waits.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use ringlet_io::disk::{Disk, DiskInfo};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::config::{Layout, WRITEBACK_OFFSET, bit};
use super::durability::{Cache, Durability};
use super::handler::{Handler, Shared};
use super::report::LogLimits;
use super::request::{ID_LEN, Rules, SECTOR_SIZE};
use crate::error::GuestError;
use crate::state::StateError;
use crate::virtio::spec::device_type;
use crate::virtio::{
    ConfigSpace, DeviceMemory, DeviceState, HostEvent, Identity, LocalBoxFuture, QueueParts, QueueState,
    QueueTask, VirtioDevice,
};

/// What a driver reads by get-id: up to 20 bytes, padded with NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Serial([u8; ID_LEN as usize]);

impl Serial {
    /// The first 20 bytes of `text`.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; ID_LEN as usize];
        bytes.iter_mut().zip(text.bytes()).for_each(|(target, byte)| *target = byte);
        Self(bytes)
    }

    /// As the driver reads it.
    pub const fn bytes(&self) -> &[u8; ID_LEN as usize] {
        &self.0
    }
}

/// What somebody who adds a disk to a VM decides. Plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOptions {
    /// Identifier within the VM, such as `disk0`.
    pub id: String,
    /// Answer to get-id.
    pub serial: Serial,
    /// Number of queues, at least 1.
    pub queues: u16,
    /// Largest size of each queue: a power of two, at most
    /// [`MAX_QUEUE_SIZE`](crate::virtio::spec::MAX_QUEUE_SIZE).
    pub queue_size: u16,
    /// What a flush does.
    pub cache: Cache,
}

impl BlockOptions {
    /// What a device with these options on such a disk is to its driver.
    pub fn identity(&self, info: &DiskInfo) -> Identity {
        Identity {
            id: self.id.clone(),
            device_type: device_type::BLOCK,
            features: self.layout(info).features(),
            queue_sizes: vec![self.queue_size; usize::from(self.queues)],
        }
    }

    /// The configuration space of such a device, before a driver has seen it.
    pub fn config(&self, info: &DiskInfo) -> ConfigSpace {
        ConfigSpace::new(self.layout(info).bytes(true))
    }

    /// What such a device takes of the host's memory, without its disk's copies.
    pub fn memory(&self, info: &DiskInfo) -> DeviceMemory {
        QueueTask::memory::<Handler>(&self.identity(info))
    }

    fn layout(&self, info: &DiskInfo) -> Layout {
        Layout {
            capacity: capacity(info),
            block_size: info.block_size,
            queues: self.queues,
            depth: self.queue_size,
            read_only: info.read_only,
            discard: info.discard,
            write_zeroes: info.write_zeroes,
        }
    }
}

/// Sectors of the whole blocks of a disk.
fn capacity(info: &DiskInfo) -> u64 {
    let block = u64::from(info.block_size).max(SECTOR_SIZE);
    info.size / block * (block / SECTOR_SIZE)
}

/// A virtio block device.
pub struct BlockDevice {
    identity: Identity,
    layout: Layout,
    config: ConfigSpace,
    features: u64,
    shared: Rc<Shared>,
    queues: Vec<Option<QueueTask>>,
}

impl BlockDevice {
    /// A device on `disk` that no driver has seen. `config` is what [`BlockOptions::config`] gave, or a clone.
    pub fn new(options: &BlockOptions, config: ConfigSpace, disk: Rc<dyn Disk>) -> Self {
        let info = disk.info();
        let layout = options.layout(&info);
        let shared = Rc::new(Shared {
            disk,
            serial: options.serial,
            rules: Cell::new(rules(&layout, 0)),
            durability: Durability::new(options.cache),
            limits: LogLimits::default(),
        });
        let device = Self {
            identity: options.identity(&info),
            layout,
            config,
            features: 0,
            shared,
            queues: (0..options.queues).map(|_| None).collect(),
        };
        // The disk may have another size than when the space was made.
        device.config.update(|space| fill(space, &layout, true));
        device
    }

    fn has(&self, feature: u32) -> bool {
        self.features & bit(feature) != 0
    }

    /// Sets the mode of the write cache, and what the driver reads of it.
    fn set_writeback(&self, writeback: bool) {
        self.shared.durability.set_writeback(writeback);
        self.config.update(|space| fill(space, &self.layout, writeback));
    }

    /// Takes over a new size of the disk, and tells the driver.
    fn resize(&mut self) {
        if let Err(error) = self.shared.disk.refresh_size() {
            tracing::error!(device = self.identity.id, "the size of the disk cannot be read: {error}");
            return;
        }
        let capacity = capacity(&self.shared.disk.info());
        if capacity == self.layout.capacity {
            return;
        }
        tracing::info!(device = self.identity.id, from = self.layout.capacity, to = capacity, "new capacity");
        self.layout.capacity = capacity;
        self.shared.rules.set(rules(&self.layout, self.features));
        let writeback = self.shared.durability.is_writeback();
        self.config.publish(|space| fill(space, &self.layout, writeback));
    }
}

/// Writes a configuration space anew.
fn fill(space: &mut [u8], layout: &Layout, writeback: bool) {
    space.iter_mut().zip(layout.bytes(writeback)).for_each(|(target, byte)| *target = byte);
}

/// What requests are checked against once the driver accepted `features`.
fn rules(layout: &Layout, features: u64) -> Rules {
    Rules {
        capacity: layout.capacity,
        read_only: layout.read_only,
        discard: features & bit(VIRTIO_BLK_F_DISCARD) != 0,
        write_zeroes: features & bit(VIRTIO_BLK_F_WRITE_ZEROES) != 0,
    }
}

impl VirtioDevice for BlockDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn negotiate(&mut self, features: u64) -> Result<(), GuestError> {
        self.features = features;
        self.shared.rules.set(rules(&self.layout, features));
        // Without flushes there is nothing that could make a cached write durable (section 5.2.5.2).
        self.set_writeback(self.has(VIRTIO_BLK_F_FLUSH));
        Ok(())
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestError> {
        if offset != WRITEBACK_OFFSET || !self.has(VIRTIO_BLK_F_CONFIG_WCE) {
            return Err(GuestError::ReadOnly { offset });
        }
        match data {
            [0] => self.set_writeback(false),
            [1] if self.has(VIRTIO_BLK_F_FLUSH) => self.set_writeback(true),
            [value] => return Err(GuestError::BadValue { offset, value: u64::from(*value) }),
            _ => return Err(GuestError::BadWidth { offset, width: data.len() }),
        }
        Ok(())
    }

    fn start_queue(&mut self, index: u16, parts: QueueParts, state: Option<QueueState>) {
        let Some(slot) = self.queues.get_mut(usize::from(index)) else { return };
        let cx = parts.cx.clone();
        let handler = Handler {
            shared: Rc::clone(&self.shared),
            metrics: parts.metrics.clone(),
            log: parts.log.clone(),
        };
        *slot = Some(QueueTask::spawn(&cx, parts, state, Rc::new(handler)));
    }

    fn stop_queue(&mut self, index: u16) -> LocalBoxFuture<Option<QueueState>> {
        let task = self.queues.get_mut(usize::from(index)).and_then(Option::take);
        Box::pin(async move { task?.stop().await })
    }

    fn reset(&mut self) {
        // What was lost stays lost, whatever the driver resets.
        let Self { identity: _, layout, config, features, shared, queues } = self;
        *features = 0;
        shared.rules.set(rules(layout, 0));
        shared.durability.set_writeback(false);
        queues.iter_mut().for_each(|queue| *queue = None);
        config.update(|space| fill(space, layout, true));
    }

    fn save(&self) -> DeviceState {
        let durability = &self.shared.durability;
        DeviceState::Block { writeback: durability.is_writeback(), lost: durability.is_lost() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let &DeviceState::Block { writeback, lost } = state else {
            return Err(StateError::Field { device: "block", field: "device type", value: 0 });
        };
        let possible = if self.has(VIRTIO_BLK_F_FLUSH) {
            writeback || self.has(VIRTIO_BLK_F_CONFIG_WCE)
        } else {
            !writeback
        };
        if !possible {
            return Err(StateError::Field {
                device: "block",
                field: "writeback",
                value: u64::from(writeback),
            });
        }
        self.set_writeback(writeback);
        if lost {
            self.shared.durability.set_lost();
        }
        Ok(())
    }

    fn notice(&mut self, event: HostEvent) {
        if event == HostEvent::BackendChanged {
            self.resize();
        }
    }
}

impl fmt::Debug for BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockDevice")
            .field("identity", &self.identity)
            .field("layout", &self.layout)
            .field("durability", &self.shared.durability)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;
