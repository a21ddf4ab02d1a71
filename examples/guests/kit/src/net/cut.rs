//! Datagrams of UDP that came in as one packet, each cut out of it when it is looked at (virtio 1.3, 5.1.6.2:
//! `VIRTIO_NET_HDR_GSO_UDP_L4`). Plain arithmetic on bytes, so that it can be tested anywhere.

use core::ops::Range;

use super::bytes::{ETHERNET, IPV4, UDP_HEADER, number, put};
use super::checksum;

/// Most bytes of all headers: one of IPv4 has up to 60, one of IPv6 has 40.
const HEADERS_MAX: usize = ETHERNET + 60 + UDP_HEADER;

/// What is left of a packet of datagrams. Each is put together in the packet itself: its headers go before its data, where
/// there is nothing but what was looked at before.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    /// The headers of the next datagram.
    headers: [u8; HEADERS_MAX],
    /// How many bytes they are.
    len: usize,
    /// Bytes of data of each datagram; of the last, at most.
    size: usize,
    /// Data that is left.
    left: Range<usize>,
}

impl Cut {
    /// Begins with a frame, which is to become datagrams of `size` bytes. `None` of what is no datagram as a whole, or has no
    /// data, or a header of IPv4 with a wrong checksum, or if there is nothing to be of such a size.
    #[must_use]
    pub(super) fn of(frame: &[u8], size: u16) -> Option<Self> {
        let datagram = checksum::datagram(frame)?;
        let len = datagram.start + UDP_HEADER;
        let size = usize::from(size).min(datagram.end.checked_sub(len)?);
        let ip = frame.get(ETHERNET..datagram.start)?;
        let is_right = frame.get(12..14)? != IPV4 || checksum::of_ipv4_holds(ip);
        let fits = is_right && number(frame, len - 4)? == datagram.len();
        let mut headers = [0; HEADERS_MAX];
        headers.get_mut(..len)?.copy_from_slice(&frame[..len]);
        let mut cut = Self { headers, len, size, left: len..datagram.end };
        cut.set_size(size);
        (fits && size > 0).then_some(cut)
    }

    /// Puts the next datagram together, in the frame that this began with; where it is then.
    #[must_use]
    pub(super) fn next(&mut self, frame: &mut [u8]) -> Option<Range<usize>> {
        let size = self.size.min(self.left.len());
        if size == 0 {
            return None;
        }
        if size < self.size {
            self.set_size(size);
        }
        let (data, end) = (self.left.start, self.left.start + size);
        let place = frame.get_mut(data - self.len..end)?;
        place[..self.len].copy_from_slice(&self.headers[..self.len]);
        self.left.start = end;
        Some(data - self.len..end)
    }

    /// Whether nothing is left.
    #[must_use]
    pub(super) fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// Makes the headers those of a datagram with so much data, which is no more than what the packet has.
    fn set_size(&mut self, size: usize) {
        let headers = &mut self.headers[..self.len];
        let (udp, is_ipv4) = (self.len - UDP_HEADER, headers[12..14] == IPV4);
        put(headers, udp + 4, UDP_HEADER + size);
        if is_ipv4 {
            put(headers, ETHERNET + 2, self.len - ETHERNET + size);
            checksum::of_ipv4(&mut headers[ETHERNET..udp]);
        } else {
            put(headers, ETHERNET + 4, UDP_HEADER + size);
        }
    }
}
