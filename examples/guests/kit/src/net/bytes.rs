//! Headers as bytes: what several of the driver's parts look at and write.

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
pub(super) const IPV4: [u8; 2] = [0x08, 0x00];
pub(super) const IPV6: [u8; 2] = [0x86, 0xdd];
pub(super) const UDP_HEADER: usize = 8;

/// A number of two bytes.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*bytes).into())
}

/// Writes a number of two bytes; both are there.
pub(super) fn put(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}
