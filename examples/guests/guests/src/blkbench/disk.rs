//! The device: its features, its configuration, its queues.

use alloc::vec::Vec;

use ringlet_guest::Context;
use ringlet_guest::virtio::drivers::transport::Transport as _;
use ringlet_guest::virtio::{self, Line, Transport, feature};

use crate::Failure;
use crate::options::{Driver, Options, SECTOR};
use crate::queue::Queue;

/// Device type (virtio 1.2, 5.2).
const BLOCK: u32 = 2;

/// Device features (virtio 1.2, 5.2.3).
const SIZE_MAX: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
pub(crate) const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
pub(crate) const FLUSH: u64 = 1 << 9;
const MULTI_QUEUE: u64 = 1 << 12;
pub(crate) const DISCARD: u64 = 1 << 13;
pub(crate) const WRITE_ZEROES: u64 = 1 << 14;

/// Offsets in the configuration (virtio 1.2, 5.2.4).
mod config {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SIZE_MAX: usize = 8;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLOCK_SIZE: usize = 20;
    pub(super) const QUEUES: usize = 34;
    pub(super) const DISCARD_SECTORS: usize = 36;
    pub(super) const ZEROES_SECTORS: usize = 48;
}

/// Most pieces that a buffer is split into to see whether the disk takes that.
const PIECES: u32 = 4;

/// A disk that is up.
pub(crate) struct Disk {
    pub(crate) transport: Transport,
    pub(crate) line: Line,
    pub(crate) queues: Vec<Queue>,
    /// What was negotiated.
    pub(crate) features: u64,
    /// Its size in sectors.
    pub(crate) sectors: u64,
    pub(crate) limits: Limits,
}

/// What a request may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the disk's own blocks.
    pub(crate) block_size: u32,
    /// Bytes of a piece of a buffer.
    pub(crate) piece: u32,
    /// Pieces of a buffer.
    pub(crate) pieces: u32,
    /// Sectors of a discard; 0 if there is none.
    pub(crate) discard: u32,
    /// Sectors of a write of zeroes; 0 if there is none.
    pub(crate) zeroes: u32,
}

impl Disk {
    pub(crate) fn open(context: &Context, options: &Options) -> Result<Self, Failure> {
        let slot = virtio::find(context, BLOCK).nth(options.disk).ok_or(Failure::NoDisk)?;
        let mut transport =
            slot.open().map_err(|_| Failure::Device("the device is not one that the driver knows"))?;
        let features = virtio::negotiate(&mut transport, wanted(options))
            .map_err(|_| Failure::Device("the device does not accept features that it offered"))?;
        let config = Config(&transport, features);
        let sectors = config.capacity()?;
        let limits = config.limits(options)?;
        let offered = config.queues()?;
        if options.queues > offered {
            return Err(Failure::Usage("the disk has not so many queues"));
        }
        let queues = (0..options.queues)
            .map(|index| {
                let share = options.depth / options.queues;
                let depth = share + u16::from(index < options.depth % options.queues);
                Queue::new(&mut transport, options.driver, index, depth, limits.pieces as u16 + 2, features)
            })
            .collect::<Result<_, _>>()?;
        virtio::finish(&mut transport);
        Ok(Self { line: slot.line(), transport, queues, features, sectors, limits })
    }

    /// Whether a feature was negotiated.
    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// The features to ask for.
fn wanted(options: &Options) -> u64 {
    let common = SIZE_MAX | SEG_MAX | READ_ONLY | BLOCK_SIZE | FLUSH | feature::INDIRECT_DESC;
    let queues = if options.queues > 1 { MULTI_QUEUE } else { 0 };
    let others = if options.verify { DISCARD | WRITE_ZEROES } else { 0 };
    // The crate's queue loses notifications with EVENT_IDX when its index wraps around.
    let events = if options.driver == Driver::Ring { feature::EVENT_IDX } else { 0 };
    common | queues | others | events
}

/// The configuration, and the features that say which fields there are.
struct Config<'a>(&'a Transport, u64);

impl Config<'_> {
    fn word(&self, offset: usize) -> Result<u32, Failure> {
        self.0.read_config_space(offset).map_err(|_| Failure::Device("the configuration is too short"))
    }

    /// A field that there is only with a feature.
    fn field(&self, feature: u64, offset: usize, otherwise: u32) -> Result<u32, Failure> {
        if self.1 & feature != 0 { self.word(offset) } else { Ok(otherwise) }
    }

    fn capacity(&self) -> Result<u64, Failure> {
        loop {
            let generation = self.0.read_config_generation();
            let low = self.word(config::CAPACITY)?;
            let high = self.word(config::CAPACITY + 4)?;
            if generation == self.0.read_config_generation() {
                return Ok(u64::from(high) << 32 | u64::from(low));
            }
        }
    }

    fn queues(&self) -> Result<u16, Failure> {
        if self.1 & MULTI_QUEUE == 0 {
            return Ok(1);
        }
        self.0
            .read_config_space(config::QUEUES)
            .map_err(|_| Failure::Device("the configuration is too short"))
    }

    fn limits(&self, options: &Options) -> Result<Limits, Failure> {
        let block_size = self.field(BLOCK_SIZE, config::BLOCK_SIZE, SECTOR as u32)?;
        if block_size == 0 || !options.block.is_multiple_of(block_size) {
            return Err(Failure::Usage("--block-size is no multiple of the disk's"));
        }
        let piece = self.field(SIZE_MAX, config::SIZE_MAX, options.block)?.clamp(1, options.block);
        let most = self.field(SEG_MAX, config::SEG_MAX, PIECES)?.max(1);
        let least = options.block.div_ceil(piece);
        if least > most {
            return Err(Failure::Usage("--block-size exceeds what a request of this disk may have"));
        }
        let split = if options.verify { PIECES.min(most).min(options.block / SECTOR as u32) } else { 1 };
        Ok(Limits {
            block_size,
            piece,
            pieces: least.max(split),
            discard: self.field(DISCARD, config::DISCARD_SECTORS, 0)?,
            zeroes: self.field(WRITE_ZEROES, config::ZEROES_SECTORS, 0)?,
        })
    }
}
