//! What a request asks for, decided from copied bytes alone (virtio 1.2, section 5.2.6).
//!
//! Owns the header, the segments of discard and write-zeroes, and every check of a guest's numbers. Pure:
//! never touches guest memory (each byte is fetched once, by the function handed in), a disk or a clock.

use ringlet_metrics::RequestKind;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::error::BlockError;

/// Unit of every sector number, count and length in bytes. The block size is advice to the driver and changes nothing
/// (section 5.2.4).
pub const SECTOR_SIZE: u64 = 512;
/// Bytes of a request's header: type, reserved, sector.
pub const HEADER_LEN: u64 = 16;
/// Bytes of the status at the end of the writable part.
pub const STATUS_LEN: u64 = 1;
/// Bytes of a device's serial, NUL-padded.
pub const ID_LEN: u64 = VIRTIO_BLK_ID_BYTES as u64;
/// Bytes of one segment of a discard or write-zeroes request: sector, count, flags.
pub const SEGMENT_LEN: u64 = 16;
/// Most segments in one discard or write-zeroes request.
pub const MAX_SEGMENTS: u32 = 16;
/// Most sectors that one segment discards (1 GiB).
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Most sectors that the one segment of a write-zeroes request zeroes (16 MiB): unlike a discard, it may have to be
/// written out.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 15;
/// Longest segment of a read or write in bytes, as the driver is told. Not checked by itself.
pub const MAX_SEGMENT_BYTES: u32 = 64 << 10;
/// Longest read or write in bytes: as many of the longest segments as a chain of 256 descriptors holds. What is in
/// flight has to complete before a VM can stop, so no request may be arbitrarily long.
pub const MAX_TRANSFER: u64 = 254 * MAX_SEGMENT_BYTES as u64;

const SEGMENTS_BYTES: usize = MAX_SEGMENTS as usize * SEGMENT_LEN as usize;

/// What a request is checked against. All of it is the device's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Size of the disk in sectors of 512 bytes.
    pub capacity: u64,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Discard was negotiated.
    pub discard: bool,
    /// Write-zeroes was negotiated.
    pub write_zeroes: bool,
}

/// Lengths of the two parts of a chain in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// What the device may read: header, and data of a write.
    pub readable: u64,
    /// What the device may write: data of a read, and the status.
    pub writable: u64,
}

impl Shape {
    /// Data that follows the header.
    const fn source(self) -> u64 {
        self.readable.saturating_sub(HEADER_LEN)
    }

    /// Data that precedes the status.
    const fn target(self) -> u64 {
        self.writable.saturating_sub(STATUS_LEN)
    }
}

/// A range of the disk in bytes. Lies inside the disk and on borders of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length; may be 0.
    pub len: u64,
}

/// A range to fill with zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroExtent {
    /// The range.
    pub extent: Extent,
    /// The disk may give the space back.
    pub may_unmap: bool,
}

/// A request that can be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Disk to guest: the whole writable part but its last byte.
    Read(Extent),
    /// Guest to disk: the whole readable part after the header.
    Write(Extent),
    /// Everything completed so far becomes durable.
    Flush,
    /// The serial goes to the start of the writable part.
    GetId,
    /// The contents of these ranges do not matter any more.
    Discard(Vec<Extent>),
    /// This range reads as zeroes from now on.
    WriteZeroes(ZeroExtent),
}

/// What one chain asks for: executable, or an error to be answered.
#[derive(Debug)]
pub struct Request {
    /// How it is counted, also if it is refused.
    pub kind: RequestKind,
    /// What to do.
    pub command: Result<Command, BlockError>,
}

impl Request {
    /// Parses a chain of this shape. `copy` copies from the readable part, starting at the given byte, and is
    /// asked for no byte twice.
    pub fn parse(
        shape: Shape,
        rules: &Rules,
        mut copy: impl FnMut(u64, &mut [u8]) -> Result<(), BlockError>,
    ) -> Self {
        let header = match Header::fetch(shape, &mut copy) {
            Ok(header) => header,
            Err(error) => return Self { kind: RequestKind::Other, command: Err(error) },
        };
        let kind = header.kind();
        if shape.writable < STATUS_LEN {
            return Self { kind, command: Err(BlockError::NoStatus) };
        }
        Self { kind, command: command(&header, shape, rules, &mut copy) }
    }

    /// The part of the disk whose contents it reads or writes, for limits: that of write-zeroes, and none of a discard.
    pub fn extent(&self) -> Extent {
        match self.command {
            Ok(Command::Read(extent) | Command::Write(extent)) => extent,
            Ok(Command::WriteZeroes(zero)) => zero.extent,
            Ok(Command::Flush | Command::GetId | Command::Discard(_)) | Err(_) => {
                Extent { offset: 0, len: 0 }
            }
        }
    }
}

/// A request's header, as the guest wrote it.
#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    fn fetch(
        shape: Shape,
        copy: &mut impl FnMut(u64, &mut [u8]) -> Result<(), BlockError>,
    ) -> Result<Self, BlockError> {
        if shape.readable < HEADER_LEN {
            return Err(BlockError::ShortHeader { len: shape.readable });
        }
        let mut bytes = [0; HEADER_LEN as usize];
        copy(0, &mut bytes)?;
        let (kind, _reserved, sector) = fields(&bytes);
        Ok(Self { kind, sector })
    }

    fn kind(&self) -> RequestKind {
        match self.kind {
            VIRTIO_BLK_T_IN => RequestKind::Read,
            VIRTIO_BLK_T_OUT => RequestKind::Write,
            VIRTIO_BLK_T_FLUSH => RequestKind::Flush,
            VIRTIO_BLK_T_GET_ID => RequestKind::GetId,
            VIRTIO_BLK_T_DISCARD => RequestKind::Discard,
            VIRTIO_BLK_T_WRITE_ZEROES => RequestKind::WriteZeroes,
            _ => RequestKind::Other,
        }
    }
}

/// Splits 16 bytes of le32, le32, le64.
fn fields(bytes: &[u8; 16]) -> (u32, u32, u64) {
    let value = u128::from_le_bytes(*bytes);
    (value as u32, (value >> 32) as u32, (value >> 64) as u64)
}

fn command(
    header: &Header,
    shape: Shape,
    rules: &Rules,
    copy: &mut impl FnMut(u64, &mut [u8]) -> Result<(), BlockError>,
) -> Result<Command, BlockError> {
    match header.kind {
        VIRTIO_BLK_T_IN => rules.transfer(header.sector, shape.target()).map(Command::Read),
        VIRTIO_BLK_T_OUT if rules.read_only => Err(BlockError::ReadOnly),
        VIRTIO_BLK_T_OUT => rules.transfer(header.sector, shape.source()).map(Command::Write),
        VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
        VIRTIO_BLK_T_GET_ID if shape.target() < ID_LEN => Err(BlockError::ShortId { len: shape.target() }),
        VIRTIO_BLK_T_GET_ID => Ok(Command::GetId),
        VIRTIO_BLK_T_DISCARD if rules.discard => {
            segments(shape.source(), copy, |segment| segment.discard(rules)).map(Command::Discard)
        }
        VIRTIO_BLK_T_WRITE_ZEROES if rules.write_zeroes => {
            let zero = |segment: Segment| segment.write_zeroes(rules);
            segments(shape.source(), copy, zero).and_then(one).map(Command::WriteZeroes)
        }
        kind => Err(BlockError::UnknownType { kind }),
    }
}

impl Rules {
    /// The range of a read or write of `len` bytes.
    fn transfer(&self, sector: u64, len: u64) -> Result<Extent, BlockError> {
        if !len.is_multiple_of(SECTOR_SIZE) {
            return Err(BlockError::Length { len });
        }
        if len > MAX_TRANSFER {
            return Err(BlockError::TooLong { len, max: MAX_TRANSFER });
        }
        self.extent(sector, len / SECTOR_SIZE)
    }

    /// The range of `sectors` sectors, if it lies inside the disk.
    fn extent(&self, sector: u64, sectors: u64) -> Result<Extent, BlockError> {
        let end = sector.checked_add(sectors).filter(|&end| end <= self.capacity);
        let extent = end.and_then(|_| Some(Extent { offset: bytes(sector)?, len: bytes(sectors)? }));
        extent.ok_or(BlockError::OutOfRange { sector, sectors, capacity: self.capacity })
    }
}

const fn bytes(sectors: u64) -> Option<u64> {
    sectors.checked_mul(SECTOR_SIZE)
}

/// One segment of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy)]
struct Segment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl Segment {
    fn from_bytes(bytes: &[u8; SEGMENT_LEN as usize]) -> Self {
        let value = u128::from_le_bytes(*bytes);
        Self { sector: value as u64, sectors: (value >> 64) as u32, flags: (value >> 96) as u32 }
    }

    /// A discard has no flag: `unmap` is what it does anyway, and the spec wants it refused.
    fn discard(self, rules: &Rules) -> Result<Extent, BlockError> {
        self.extent(rules, 0, MAX_DISCARD_SECTORS)
    }

    fn write_zeroes(self, rules: &Rules) -> Result<ZeroExtent, BlockError> {
        let extent = self.extent(rules, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, MAX_WRITE_ZEROES_SECTORS)?;
        Ok(ZeroExtent { extent, may_unmap: self.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 })
    }

    fn extent(self, rules: &Rules, flags: u32, max: u32) -> Result<Extent, BlockError> {
        if self.flags & !flags != 0 {
            return Err(BlockError::SegmentFlags { flags: self.flags });
        }
        if self.sectors > max {
            return Err(BlockError::SegmentLength { sectors: self.sectors, max });
        }
        rules.extent(self.sector, u64::from(self.sectors))
    }
}

/// Copies the segments in and checks them all, so that a request with a bad one does nothing at all.
fn segments<T>(
    len: u64,
    copy: &mut impl FnMut(u64, &mut [u8]) -> Result<(), BlockError>,
    check: impl Fn(Segment) -> Result<T, BlockError>,
) -> Result<Vec<T>, BlockError> {
    let mut buffer = [0; SEGMENTS_BYTES];
    let bytes = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len));
    let Some(bytes) = bytes.filter(|_| len != 0 && len.is_multiple_of(SEGMENT_LEN)) else {
        return Err(BlockError::Segments { len });
    };
    copy(HEADER_LEN, bytes)?;
    let (segments, _) = bytes.as_chunks();
    segments.iter().map(|segment| check(Segment::from_bytes(segment))).collect()
}

/// The only segment of a write-zeroes request.
fn one<T>(segments: Vec<T>) -> Result<T, BlockError> {
    let len = segments.len() as u64 * SEGMENT_LEN;
    <[T; 1]>::try_from(segments).map(|[segment]| segment).map_err(|_| BlockError::Segments { len })
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
