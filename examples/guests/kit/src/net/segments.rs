//! Datagrams of UDP that go out as one packet, which whoever it is for cuts into them again (virtio 1.3, 5.1.6.2:
//! `VIRTIO_NET_HDR_GSO_UDP_L4`). Plain arithmetic on bytes, so that it can be tested anywhere.

use super::bytes::{ETHERNET, IPV4, IPV6, UDP_HEADER, number, put};
use super::checksum;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP: u8 = 17;
/// `flags` and fragment offset of IPv4: may not be taken apart, so that its identification means nothing (RFC 6864).
const WHOLE: [u8; 2] = [0x40, 0];
/// Most datagrams of a packet (Linux: `UDP_MAX_SEGMENTS`, of its older versions).
const MOST: u16 = 64;
/// Fewest bytes of a datagram that is worth it: a segment of less may be refused.
const LEAST: usize = 8;
/// Most bytes of an IP packet.
const IP_MAX: usize = 65_535;

/// Datagrams in a row, which lie behind the headers of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segments {
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of each datagram; of the last, at most.
    size: usize,
    /// Bytes of the frame so far.
    len: usize,
    count: u16,
    /// The last one was shorter.
    ended: bool,
}

impl Segments {
    /// Begins with a frame: a datagram, and nothing else.
    #[must_use]
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        let (ip, protocol) = match [*frame.get(12)?, *frame.get(13)?] {
            IPV4 => {
                let header = packet.first_chunk::<IPV4_HEADER>()?;
                let is_plain = header[0] == 0x45 && header[6..8] == WHOLE;
                let is_all = number(header, 2)? == packet.len();
                (IPV4_HEADER, (is_plain && is_all).then_some(header[9])?)
            }
            IPV6 => {
                let header = packet.first_chunk::<IPV6_HEADER>()?;
                let is_all = number(header, 4)? == packet.len() - IPV6_HEADER;
                (IPV6_HEADER, (header[0] >> 4 == 6 && is_all).then_some(header[6])?)
            }
            _ => return None,
        };
        let datagram = packet.get(ip..)?;
        let size = datagram.len().checked_sub(UDP_HEADER).filter(|&size| size >= LEAST)?;
        let fits = protocol == UDP && number(datagram, 4)? == datagram.len();
        let (headers, len) = (ETHERNET + ip + UDP_HEADER, frame.len());
        fits.then_some(Self { headers, size, len, count: 1, ended: false })
    }

    /// Bytes of the frame.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds another frame, if it is the next datagram of the same flow, and there is room in `buffer`, which begins with
    /// the frame so far.
    #[must_use]
    pub(super) fn add(&mut self, buffer: &mut [u8], next: &[u8]) -> bool {
        let fits = Self::of(next).is_some_and(|other| {
            other.headers == self.headers
                && other.size <= self.size
                && self.len + other.size - ETHERNET <= IP_MAX
        });
        if !fits || self.ended || self.count == MOST || !is_same_flow(buffer, next, self.headers) {
            return false;
        }
        let data = &next[self.headers..];
        let Some(place) = buffer.get_mut(self.len..self.len + data.len()) else { return false };
        place.copy_from_slice(data);
        self.len += data.len();
        self.count += 1;
        self.ended = data.len() < self.size;
        true
    }

    /// Makes the headers those of the whole, if there is more than one datagram; then gives the bytes of the headers, and
    /// those of each datagram. The checksum of UDP is left to be delegated.
    #[must_use]
    pub(super) fn finish(&self, frame: &mut [u8]) -> Option<(u16, u16)> {
        if self.count == 1 {
            return None;
        }
        let sizes = (u16::try_from(self.headers).ok()?, u16::try_from(self.size).ok()?);
        let packet = frame.get_mut(ETHERNET..self.len)?;
        let (ip, len) = (self.headers - ETHERNET - UDP_HEADER, packet.len());
        if ip == IPV4_HEADER {
            put(packet, 2, len);
            checksum::of_ipv4(packet.get_mut(..IPV4_HEADER)?);
        } else {
            put(packet, 4, len - IPV6_HEADER);
        }
        put(packet, ip + 4, len - ip);
        Some(sizes)
    }
}

/// Whether the headers are the same but for what differs from one datagram to the next: lengths, checksums, and the
/// identification of IPv4.
fn is_same_flow(first: &[u8], next: &[u8], headers: usize) -> bool {
    let is_ipv4 = headers == ETHERNET + IPV4_HEADER + UDP_HEADER;
    let rest = if is_ipv4 { [20..24, 26..headers - 4] } else { [20..22, 22..headers - 4] };
    let start = if is_ipv4 { 0..16 } else { 0..18 };
    rest.into_iter().chain([start]).all(|same| first.get(same.clone()) == next.get(same))
}
