//! Feature bits and configuration space of a block device (virtio 1.2, sections 5.2.3 and 5.2.4).
//!
//! Owns their layout. Pure: never knows a queue or a disk.

use std::mem::offset_of;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, virtio_blk_config,
};

use super::request::{
    MAX_DISCARD_SECTORS, MAX_SEGMENT_BYTES, MAX_SEGMENTS, MAX_WRITE_ZEROES_SECTORS, SECTOR_SIZE,
};

/// Bytes of the configuration space, up to the fields of secure erase, which is not offered.
pub const CONFIG_LEN: usize = offset_of!(virtio_blk_config, max_secure_erase_sectors);
/// Offset in bytes of `writeback`, the only field that a driver may write.
pub const WRITEBACK_OFFSET: u64 = offset_of!(virtio_blk_config, wce) as u64;
/// Header and status: descriptors of a request that hold no data.
const OVERHEAD_DESCRIPTORS: u32 = 2;
/// Granularity in bytes in which a host file is stored best.
const PHYSICAL_BLOCK: u32 = 4096;

/// A feature bit of this device type as a mask.
pub(crate) const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// What a driver can know about the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Size in sectors of 512 bytes.
    pub capacity: u64,
    /// Logical block size in bytes, a power of two from 512.
    pub block_size: u32,
    /// Number of queues, at least 1.
    pub queues: u16,
    /// Largest queue size in descriptors.
    pub depth: u16,
    /// Nothing may be written.
    pub read_only: bool,
    /// Discard is offered.
    pub discard: bool,
    /// Write-zeroes is offered.
    pub write_zeroes: bool,
}

impl Layout {
    /// The device-specific feature bits on offer.
    pub const fn features(&self) -> u64 {
        let mut features = bit(VIRTIO_BLK_F_SIZE_MAX)
            | bit(VIRTIO_BLK_F_SEG_MAX)
            | bit(VIRTIO_BLK_F_BLK_SIZE)
            | bit(VIRTIO_BLK_F_TOPOLOGY)
            | bit(VIRTIO_BLK_F_FLUSH)
            | bit(VIRTIO_BLK_F_CONFIG_WCE);
        if self.queues > 1 {
            features |= bit(VIRTIO_BLK_F_MQ);
        }
        if self.read_only {
            return features | bit(VIRTIO_BLK_F_RO);
        }
        if self.discard {
            features |= bit(VIRTIO_BLK_F_DISCARD);
        }
        if self.write_zeroes {
            features |= bit(VIRTIO_BLK_F_WRITE_ZEROES);
        }
        features
    }

    /// The configuration space, with `writeback` as the driver sees it now. Fields of features that are not on
    /// offer are 0.
    pub fn bytes(&self, writeback: bool) -> [u8; CONFIG_LEN] {
        let mut space = Space([0; CONFIG_LEN]);
        space.put(offset_of!(virtio_blk_config, capacity), &self.capacity.to_le_bytes());
        space.put(offset_of!(virtio_blk_config, size_max), &MAX_SEGMENT_BYTES.to_le_bytes());
        let seg_max = u32::from(self.depth).saturating_sub(OVERHEAD_DESCRIPTORS).max(1);
        space.put(offset_of!(virtio_blk_config, seg_max), &seg_max.to_le_bytes());
        space.put(offset_of!(virtio_blk_config, blk_size), &self.block_size.to_le_bytes());
        let blocks = (PHYSICAL_BLOCK / self.block_size.max(1)).max(1);
        space.put(offset_of!(virtio_blk_config, physical_block_exp), &[blocks.ilog2() as u8]);
        space.put(offset_of!(virtio_blk_config, min_io_size), &(blocks as u16).to_le_bytes());
        space.put(offset_of!(virtio_blk_config, wce), &[u8::from(writeback)]);
        let queues = if self.queues > 1 { self.queues } else { 0 };
        space.put(offset_of!(virtio_blk_config, num_queues), &queues.to_le_bytes());
        self.put_limits(&mut space);
        space.0
    }

    fn put_limits(&self, space: &mut Space) {
        let segments = MAX_SEGMENTS.to_le_bytes();
        if self.discard && !self.read_only {
            let max = offset_of!(virtio_blk_config, max_discard_sectors);
            space.put(max, &MAX_DISCARD_SECTORS.to_le_bytes());
            space.put(offset_of!(virtio_blk_config, max_discard_seg), &segments);
            let alignment = (self.block_size.max(PHYSICAL_BLOCK) / SECTOR_SIZE as u32).to_le_bytes();
            space.put(offset_of!(virtio_blk_config, discard_sector_alignment), &alignment);
        }
        if self.write_zeroes && !self.read_only {
            let max = offset_of!(virtio_blk_config, max_write_zeroes_sectors);
            space.put(max, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
            space.put(offset_of!(virtio_blk_config, max_write_zeroes_seg), &1u32.to_le_bytes());
            space.put(offset_of!(virtio_blk_config, write_zeroes_may_unmap), &[u8::from(self.discard)]);
        }
    }
}

/// A configuration space under construction.
struct Space([u8; CONFIG_LEN]);

impl Space {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (target, byte) in self.0.iter_mut().skip(offset).zip(bytes) {
            *target = *byte;
        }
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
