//! Why a block request is not answered with OK.
//!
//! Owns [`BlockError`]: what the guest sees of it ([`BlockError::status`]) and what it may make us print
//! ([`BlockError::log_level`]). Never the disk's state: an error belongs to one request.

use std::io;

use ringlet_io::RamError;
use tracing::Level;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use crate::virtio::OutsideChain;

/// The last byte of a request's writable part (virtio 1.2, section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// Not done, or not all of it.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// There is no such request here.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// Why a request failed. All but the last four, and unknown types, are the guest's mistakes.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// There is no byte for the status, so that nothing can be answered.
    #[error("no writable byte for the status")]
    NoStatus,
    /// The readable part does not hold a header of 16 bytes.
    #[error("{len} bytes of header instead of 16")]
    ShortHeader {
        /// Length of the readable part in bytes.
        len: u64,
    },
    /// A type that does not exist or was not negotiated.
    #[error("request type {kind} is unknown or was not negotiated")]
    UnknownType {
        /// Type field of the header.
        kind: u32,
    },
    /// A write to a disk that is read-only.
    #[error("write to a read-only disk")]
    ReadOnly,
    /// Data that is not a whole number of sectors.
    #[error("{len} bytes of data are not a multiple of 512")]
    Length {
        /// Length of the data in bytes.
        len: u64,
    },
    /// More data than one request may have.
    #[error("{len} bytes of data, at most {max} are taken")]
    TooLong {
        /// Length of the data in bytes.
        len: u64,
        /// Most bytes.
        max: u64,
    },
    /// The range leaves the disk.
    #[error("{sectors} sectors at {sector} leave the disk of {capacity}")]
    OutOfRange {
        /// First sector of 512 bytes.
        sector: u64,
        /// Number of sectors.
        sectors: u64,
        /// Size of the disk in sectors.
        capacity: u64,
    },
    /// Less room than a serial takes.
    #[error("{len} bytes for a serial of 20")]
    ShortId {
        /// Length of the data in bytes.
        len: u64,
    },
    /// A list of segments that is empty, too long or not a multiple of 16 bytes.
    #[error("{len} bytes of segments: 1 to 16 of 16 bytes are taken, of write-zeroes 1")]
    Segments {
        /// Length of the list in bytes.
        len: u64,
    },
    /// A segment with flags that this request does not take.
    #[error("segment flags {flags:#x}")]
    SegmentFlags {
        /// Flags field of the segment.
        flags: u32,
    },
    /// A segment that is longer than the configuration space allows.
    #[error("a segment of {sectors} sectors, at most {max} are taken")]
    SegmentLength {
        /// Sectors of the segment.
        sectors: u32,
        /// Most sectors.
        max: u32,
    },
    /// The chain ends before its length. A mistake of ours.
    #[error("the chain has other lengths than it had")]
    Chain,
    /// Guest memory could not be lent. The chain was validated, so this is a mistake of ours.
    #[error("guest memory: {0}")]
    Memory(#[from] RamError),
    /// The disk failed.
    #[error("disk: {0}")]
    Disk(#[from] io::Error),
    /// An earlier flush failed: the kernel forgot what it could not write, so no later one can make it durable.
    #[error("an earlier flush failed")]
    FlushLost,
}

impl BlockError {
    /// What the guest is told.
    pub fn status(&self) -> Status {
        match self {
            Self::UnknownType { .. } | Self::SegmentFlags { .. } => Status::Unsupported,
            Self::Disk(error) if error.kind() == io::ErrorKind::Unsupported => Status::Unsupported,
            _ => Status::IoError,
        }
    }

    /// How loudly it may be told to the operator; every one of these is rate-limited as well. A type that is
    /// not known is a driver that asks what there is.
    pub const fn log_level(&self) -> Level {
        match self {
            Self::UnknownType { .. } => Level::DEBUG,
            Self::Chain | Self::Memory(_) | Self::Disk(_) | Self::FlushLost => Level::ERROR,
            _ => Level::WARN,
        }
    }

    /// Whether the guest did something wrong, as opposed to the host or its disk.
    pub const fn is_guests(&self) -> bool {
        !matches!(
            self,
            Self::UnknownType { .. } | Self::Chain | Self::Memory(_) | Self::Disk(_) | Self::FlushLost
        )
    }
}

impl From<OutsideChain> for BlockError {
    fn from(_: OutsideChain) -> Self {
        Self::Chain
    }
}
