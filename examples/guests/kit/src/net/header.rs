//! The header of every packet (virtio 1.2, 5.1.6).

/// Its length in bytes, as a device that is not a legacy one has it.
pub(super) const LEN: usize = 12;

/// `flags`: the checksum is the pseudo header's only, the rest is to be computed.
const NEEDS_CSUM: u8 = 1;
/// `flags`: the device has checked the checksum.
const DATA_VALID: u8 = 2;
/// `gso_type`: datagrams of UDP (virtio 1.3).
const UDP_L4: u8 = 5;

/// A header in a packet's first bytes, as far as this driver looks at it. What it says about segments of TCP is for those
/// who send the packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Whether nobody needs to look at the checksum.
    pub(super) checked: bool,
    /// How many buffers the packet lies in, if it may lie in several.
    pub(super) buffers: u16,
    /// How many bytes of data each datagram has, if the packet is several of UDP.
    pub(super) datagram_size: Option<u16>,
}

impl Header {
    /// The header at the start of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<LEN>()?;
        Some(Self {
            checked: bytes[0] & (NEEDS_CSUM | DATA_VALID) != 0,
            buffers: u16::from_le_bytes([bytes[10], bytes[11]]),
            datagram_size: (bytes[1] == UDP_L4).then_some(u16::from_le_bytes([bytes[4], bytes[5]])),
        })
    }
}

/// The header of a packet that is sent: with a checksum that the device computes from `start` on and puts `offset` bytes
/// behind that, or without; and as datagrams of so many bytes behind headers of so many, or as it is.
pub(super) fn of_sent(checksum: Option<(u16, u16)>, segments: Option<(u16, u16)>) -> [u8; LEN] {
    let mut header = [0; LEN];
    if let Some((headers, size)) = segments {
        header[1] = UDP_L4;
        header[2..4].copy_from_slice(&headers.to_le_bytes());
        header[4..6].copy_from_slice(&size.to_le_bytes());
    }
    if let Some((start, offset)) = checksum {
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
    }
    header
}
