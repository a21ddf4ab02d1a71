//! Checksums of TCP and UDP that a device computes, or has not computed: where they are in a frame, and what a driver
//! does for its part. Plain arithmetic on bytes, so that it can be tested anywhere.

use core::ops::Range;

use super::bytes::{ETHERNET, IPV4, IPV6};

const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Of a field of IPv4: this is a part of a larger packet, or more parts follow.
const FRAGMENT: u16 = 0x3fff;

/// Where the checksum of a frame's TCP or UDP packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// First byte that it covers: the TCP or UDP header.
    start: usize,
    /// Byte after the last.
    end: usize,
    /// From `start` to the field.
    offset: usize,
    /// Sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).
    pseudo: u64,
    /// Then a field of 0 says that there is no checksum.
    is_udp: bool,
}

/// Prepares the frame for a device that computes the checksum: writes the pseudo header's sum into the field. Returns
/// where the device begins, and where, from there, it puts the checksum; `None` if the frame has none of TCP or UDP.
#[must_use]
pub(super) fn delegate(frame: &mut [u8]) -> Option<(u16, u16)> {
    let place = find(frame)?;
    let sum = fold(place.pseudo);
    frame.get_mut(place.start + place.offset..)?.get_mut(..2)?.copy_from_slice(&sum.to_be_bytes());
    Some((u16::try_from(place.start).ok()?, u16::try_from(place.offset).ok()?))
}

/// Whether the checksum of the frame's TCP or UDP packet is right; what has none is right, too.
#[must_use]
pub(super) fn holds(frame: &[u8]) -> bool {
    let Some(place) = find(frame) else { return true };
    let covered = &frame[place.start..place.end];
    let absent = place.is_udp && covered.get(place.offset..place.offset + 2) == Some(&[0, 0]);
    absent || fold(place.pseudo + sum(covered)) == u16::MAX
}

/// Where a datagram of UDP lies in a frame, its header included; `None` if the frame holds none as a whole.
#[must_use]
pub(super) fn datagram(frame: &[u8]) -> Option<Range<usize>> {
    let place = find(frame).filter(|place| place.is_udp)?;
    Some(place.start..place.end)
}

/// Writes the checksum of a header of IPv4, of 20 bytes or more, into it (RFC 791, 3.1).
pub(super) fn of_ipv4(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = !fold(sum(header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Whether the checksum of a header of IPv4 is right.
#[must_use]
pub(super) fn of_ipv4_holds(header: &[u8]) -> bool {
    fold(sum(header)) == u16::MAX
}

/// Looks for a checksum of TCP or UDP in a whole IP packet without extension headers; all of `start..end`, and the
/// field, lie within the frame.
fn find(frame: &[u8]) -> Option<Place> {
    let packet = frame.get(ETHERNET..)?;
    let ip = match *frame.first_chunk::<ETHERNET>()? {
        [.., a, b] if [a, b] == IPV4 => ipv4(packet)?,
        [.., a, b] if [a, b] == IPV6 => ipv6(packet)?,
        _ => return None,
    };
    let (offset, least) = match ip.protocol {
        TCP => (16, 20),
        UDP => (6, 8),
        _ => return None,
    };
    let covered = ip.len.checked_sub(ip.header).filter(|&covered| covered >= least)?;
    let (start, end) = (ETHERNET + ip.header, ETHERNET + ip.len);
    let pseudo = ip.addresses + u64::from(ip.protocol) + covered as u64;
    (end <= frame.len()).then_some(Place { start, end, offset, pseudo, is_udp: ip.protocol == UDP })
}

/// What an IP header says.
struct Ip {
    /// Its length in bytes.
    header: usize,
    /// That of the whole packet.
    len: usize,
    protocol: u8,
    /// Sum of both addresses.
    addresses: u64,
}

fn ipv4(packet: &[u8]) -> Option<Ip> {
    let header = packet.first_chunk::<20>()?;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT != 0;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    ((0x45..0x50).contains(&header[0]) && !fragment).then_some(Ip {
        header: usize::from(header[0] & 15) * 4,
        len,
        protocol: header[9],
        addresses: sum(&header[12..20]),
    })
}

fn ipv6(packet: &[u8]) -> Option<Ip> {
    let header = packet.first_chunk::<IPV6_HEADER>()?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    (header[0] >> 4 == 6).then_some(Ip {
        header: IPV6_HEADER,
        len: IPV6_HEADER + len,
        protocol: header[6],
        addresses: sum(&header[8..40]),
    })
}

/// The sum of 16-bit words, carries not yet added; an odd byte is the first of its word.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum: u64 = words.iter().map(|&word| u64::from(u32::from_be_bytes(word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// Adds the carries (RFC 1071).
fn fold(mut sum: u64) -> u16 {
    while sum > u64::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
