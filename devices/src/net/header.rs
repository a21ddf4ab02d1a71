//! The header of a packet (virtio 1.2, section 5.1.6) and what a guest may ask for with it.
//!
//! Owns the rules: a header is parsed from a copy, checked against what was negotiated and against the length of its
//! frame, and written anew, with nothing in it that was not checked. Pure: never sees a queue or guest memory.

use ringlet_io::net::{HEADER, MAX_FRAME, MIN_FRAME};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Fewest bytes of data in a segment: what Linux makes of the smallest segment size that it accepts from a peer
/// (`TCP_MIN_GSO_SIZE`).
pub const MIN_SEGMENT: u16 = 8;
/// Most segments of a packet: a frame of full length, cut for the smallest MTU that is in use (296, RFC 1191). The host
/// takes time for each of them, while the event loop waits.
pub const MAX_SEGMENTS: u32 = 256;
/// Bytes of a checksum.
const CHECKSUM: u32 = 2;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;
const NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;

/// A header as the driver wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// What is left to be done: of the bits only NEEDS_CSUM is a driver's.
    pub flags: u8,
    /// How the frame is to be cut into segments, and ECN.
    pub gso_type: u8,
    /// Bytes of the frame before the data of the first segment. A hint.
    pub hdr_len: u16,
    /// Bytes of data in a segment.
    pub gso_size: u16,
    /// From where on the checksum is computed.
    pub csum_start: u16,
    /// Where it is put, from there.
    pub csum_offset: u16,
}

/// What is wrong with a packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The frame is shorter or longer than an Ethernet frame can be.
    #[error("a frame of {len} bytes is not of {MIN_FRAME} to {MAX_FRAME}")]
    FrameLength {
        /// Its length in bytes.
        len: u64,
    },
    /// A checksum is asked for, which was not negotiated.
    #[error("a checksum is left to the device, which was not negotiated")]
    Checksum,
    /// The checksum is not in the frame.
    #[error("a checksum of what is from byte {start} on, put at {offset} from there, in a frame of {len}")]
    ChecksumPlace {
        /// csum_start.
        start: u16,
        /// csum_offset.
        offset: u16,
        /// Length of the frame in bytes.
        len: u32,
    },
    /// A kind of segmentation that was not negotiated, or does not exist.
    #[error("segmentation type {gso_type:#x} was not negotiated")]
    Segmentation {
        /// gso_type.
        gso_type: u8,
    },
    /// Segmentation without a checksum of each segment (section 5.1.6.2.1).
    #[error("segmentation without a checksum")]
    SegmentsWithoutChecksum,
    /// Segments of less than [`MIN_SEGMENT`] bytes of data.
    #[error("segments of {size} bytes")]
    SegmentSize {
        /// gso_size.
        size: u16,
    },
    /// More than [`MAX_SEGMENTS`].
    #[error("a frame of {len} bytes in segments of {size}")]
    Segments {
        /// gso_size.
        size: u16,
        /// Length of the frame in bytes.
        len: u32,
    },
    /// Headers that are longer than the frame.
    #[error("headers of {hdr_len} bytes in a frame of {len}")]
    HeaderLength {
        /// hdr_len.
        hdr_len: u16,
        /// Length of the frame in bytes.
        len: u32,
    },
}

/// What packets of a driver may ask for, by the features that it accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    features: u64,
}

impl Rules {
    /// The rules for these features.
    pub const fn new(features: u64) -> Self {
        Self { features }
    }

    fn has(self, feature: u32) -> bool {
        self.features >> feature & 1 == 1
    }

    /// Whether packets may be segmented so.
    fn allows(self, gso_type: u8) -> bool {
        let feature = match u32::from(gso_type & !ECN) {
            VIRTIO_NET_HDR_GSO_TCPV4 => VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_HDR_GSO_TCPV6 => VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_HDR_GSO_UDP => VIRTIO_NET_F_HOST_UFO,
            VIRTIO_NET_HDR_GSO_UDP_L4 => VIRTIO_NET_F_HOST_USO,
            _ => return false,
        };
        self.has(feature) && (gso_type & ECN == 0 || self.has(VIRTIO_NET_F_HOST_ECN))
    }
}

impl Header {
    /// The fields of a header. The last, num_buffers, means nothing in a packet that is sent.
    pub const fn parse(bytes: &[u8; HEADER]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// The bytes of a header whose num_buffers is 0.
    pub const fn bytes(&self) -> [u8; HEADER] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, 0, 0]
    }

    /// That of a frame whose checksum is left to be computed from byte `start` on, and put at `offset` from there.
    pub(super) fn with_checksum(start: u16, offset: u16) -> Self {
        Self { flags: NEEDS_CSUM, csum_start: start, csum_offset: offset, ..Self::default() }
    }

    /// Whether a checksum is left to the device.
    pub const fn leaves_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// Checks what the driver asks for with a frame of `len` bytes; gives the header that says this and no more: flags
    /// that are no driver's and fields without a meaning are 0.
    ///
    /// # Errors
    /// What is wrong.
    pub fn validate(&self, rules: Rules, len: u64) -> Result<Self, HeaderError> {
        let frame = check_length(len)?;
        let mut valid = Self::default();
        if self.leaves_checksum() {
            self.check_checksum(rules, frame)?;
            (valid.flags, valid.csum_start, valid.csum_offset) =
                (NEEDS_CSUM, self.csum_start, self.csum_offset);
        }
        if self.gso_type != NONE {
            self.check_segments(rules, frame)?;
            (valid.gso_type, valid.gso_size, valid.hdr_len) = (self.gso_type, self.gso_size, self.hdr_len);
        }
        Ok(valid)
    }

    fn check_checksum(&self, rules: Rules, len: u32) -> Result<(), HeaderError> {
        if !rules.has(VIRTIO_NET_F_CSUM) {
            return Err(HeaderError::Checksum);
        }
        let (start, offset) = (self.csum_start, self.csum_offset);
        let end = u32::from(start) + u32::from(offset) + CHECKSUM;
        if usize::from(start) < MIN_FRAME || end > len {
            return Err(HeaderError::ChecksumPlace { start, offset, len });
        }
        Ok(())
    }

    fn check_segments(&self, rules: Rules, len: u32) -> Result<(), HeaderError> {
        let Self { gso_type, hdr_len, gso_size, .. } = *self;
        if !rules.allows(gso_type) {
            return Err(HeaderError::Segmentation { gso_type });
        }
        if !self.leaves_checksum() {
            return Err(HeaderError::SegmentsWithoutChecksum);
        }
        if gso_size < MIN_SEGMENT {
            return Err(HeaderError::SegmentSize { size: gso_size });
        }
        if len / u32::from(gso_size) > MAX_SEGMENTS {
            return Err(HeaderError::Segments { size: gso_size, len });
        }
        if u32::from(hdr_len) > len {
            return Err(HeaderError::HeaderLength { hdr_len, len });
        }
        Ok(())
    }
}

/// The length of a frame, if a frame can have it.
fn check_length(len: u64) -> Result<u32, HeaderError> {
    let possible = usize::try_from(len).is_ok_and(|len| (MIN_FRAME..=MAX_FRAME).contains(&len));
    u32::try_from(len).ok().filter(|_| possible).ok_or(HeaderError::FrameLength { len })
}

#[cfg(test)]
#[path = "header_test.rs"]
mod tests;
