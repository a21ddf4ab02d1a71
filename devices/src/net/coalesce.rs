//! TCP segments of one flow that go out as one packet, which whoever it is for cuts into them again (virtio 1.2, section
//! 5.1.6.2: `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6`): what a driver without TSO offers one by one. It is what Linux's GRO does
//! with what it receives.
//!
//! Owns which segments may be joined, and the headers of the whole. Only those that would be cut out of the whole just as
//! they were (but for the identification of IPv4, which means nothing where a packet may not be fragmented, RFC 6864),
//! and whose checksum is left to the device: one that the driver computed tells the receiver of corruption on the
//! way, and would be lost. Pure: judges copies of headers, and never sees data.

use ringlet_io::net::{HEADER, Offloads};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::frame::{ETHERNET, IPV4, IPV6, TCP_CHECKSUM, ethertype, protocol};
use super::header::{Header, MAX_SEGMENTS, MIN_SEGMENT};

/// Bytes of TCP's, without and with all options.
const TCP: usize = 20;
const MAX_TCP: usize = 60;
/// Bytes of a frame's beginning that must be copied to judge it.
pub const JOINED: usize = ETHERNET + IPV6 + MAX_TCP;
/// Most bytes of an IP packet.
const MAX_IP: usize = 65_535;

const ACK: u8 = 0x10;
const PUSH: u8 = 0x08;
/// Flags and offset of IPv4: not to be fragmented, and not a fragment.
const WHOLE: u16 = 0x4000;

/// For which versions of IP segments may be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Those of IPv4.
    pub ipv4: bool,
    /// Those of IPv6.
    pub ipv6: bool,
}

impl Versions {
    /// None are.
    pub const NONE: Self = Self { ipv4: false, ipv6: false };

    /// Those whose segments the host's side cuts.
    pub(super) fn of(offloads: Offloads) -> Self {
        let Offloads { checksum, tso4, tso6, .. } = offloads;
        Self { ipv4: checksum && tso4, ipv6: checksum && tso6 }
    }

    /// Whether it is worth to look into a frame with this header.
    pub(super) fn may_have(self, header: &Header) -> bool {
        (self.ipv4 || self.ipv6) && leaves_tcp(header)
    }

    fn has(self, version: Version) -> bool {
        match version {
            Version::V4 => self.ipv4,
            Version::V6 => self.ipv6,
        }
    }
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

/// A frame that is one segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    version: Version,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of data.
    data: usize,
    sequence: u32,
    pushed: bool,
}

/// Segments in a row, which lie behind the headers of the first.
#[derive(Debug, Clone, Copy)]
pub struct Segments {
    version: Version,
    /// Bytes of all headers.
    headers: usize,
    /// Bytes of data of each segment; of the last, at most.
    size: usize,
    /// Bytes of the frame so far.
    len: usize,
    /// Sequence number of the next.
    next: u32,
    pushed: bool,
    ended: bool,
}

impl Segments {
    /// Begins with a frame of `len` bytes, of which `beginning` is a copy of the first [`JOINED`], or all; `None`
    /// if none can be joined to it. `header` was validated.
    pub fn of(allowed: Versions, header: &Header, beginning: &[u8], len: usize) -> Option<Self> {
        let first = Segment::of(header, beginning, len)?;
        let mut segments = Self {
            version: first.version,
            headers: first.headers,
            size: first.data,
            len,
            next: first.end(),
            pushed: first.pushed,
            ended: false,
        };
        segments.ended = first.pushed || !segments.has_room();
        (allowed.has(first.version) && !segments.ended).then_some(segments)
    }

    /// Bytes of each frame's headers: what is behind is data.
    pub fn headers(&self) -> usize {
        self.headers
    }

    /// Whether none can be joined any more.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// The same, with the next frame behind; `None` if that is not the next segment. `first` is the beginning of the first.
    pub fn and(&self, first: &[u8], header: &Header, beginning: &[u8], len: usize) -> Option<Self> {
        let other = Segment::of(header, beginning, len)?;
        let follows = (other.version, other.headers, other.sequence)
            == (self.version, self.headers, self.next)
            && other.data <= self.size
            && !self.ended
            && self.is_same_flow(first, beginning);
        if !follows {
            return None;
        }
        let mut joined =
            Self { len: self.len + other.data, next: other.end(), pushed: other.pushed, ..*self };
        joined.ended = other.pushed || other.data < self.size || !joined.has_room();
        Some(joined)
    }

    /// Whether there is room for another segment of full size.
    fn has_room(&self) -> bool {
        let len = self.len + self.size;
        len - ETHERNET <= MAX_IP && len / self.size <= MAX_SEGMENTS as usize
    }

    /// Whether headers are the same but for what differs from one segment to the next: lengths, checksums, sequence
    /// numbers, PSH, and the identification of IPv4.
    fn is_same_flow(&self, first: &[u8], next: &[u8]) -> bool {
        let (tcp, end) = (self.version.transport(), self.headers);
        let ip = match self.version {
            Version::V4 => [0..16, 20..24, 26..tcp],
            Version::V6 => [0..18, 20..tcp, tcp..tcp],
        };
        let transport = [tcp..tcp + 4, tcp + 8..tcp + 13, tcp + 14..tcp + 16, tcp + 18..end];
        ip.into_iter().chain(transport).all(|same| {
            let ours = first.get(same.clone());
            ours.is_some() && ours == next.get(same)
        })
    }

    /// Makes the beginning of the first frame that of the whole; gives the packet's header. `None` if it is not what this
    /// was made of.
    pub fn finish(&self, beginning: &mut [u8]) -> Option<[u8; HEADER]> {
        let tcp = self.version.transport();
        match self.version {
            Version::V4 => {
                put(beginning, ETHERNET + 2, self.len - ETHERNET)?;
                put(beginning, ETHERNET + 10, 0)?;
                let sum = !sum(beginning.get(ETHERNET..ETHERNET + IPV4)?, 0);
                put(beginning, ETHERNET + 10, sum.into())?;
            }
            Version::V6 => put(beginning, ETHERNET + 4, self.len - ETHERNET - IPV6)?,
        }
        if self.pushed {
            *beginning.get_mut(tcp + 13)? |= PUSH;
        }
        let pseudo = self.version.pseudo_header(beginning, self.len - tcp)?;
        put(beginning, tcp + usize::from(TCP_CHECKSUM), pseudo.into())?;
        let gso_type = match self.version {
            Version::V4 => VIRTIO_NET_HDR_GSO_TCPV4,
            Version::V6 => VIRTIO_NET_HDR_GSO_TCPV6,
        };
        let header = Header {
            gso_type: u8::try_from(gso_type).ok()?,
            hdr_len: u16::try_from(self.headers).ok()?,
            gso_size: u16::try_from(self.size).ok()?,
            ..Header::with_checksum(u16::try_from(tcp).ok()?, TCP_CHECKSUM)
        };
        Some(header.bytes())
    }
}

impl Segment {
    /// What a frame is, if it is one segment with data, and nothing else.
    fn of(header: &Header, beginning: &[u8], len: usize) -> Option<Self> {
        let version = Version::of(beginning, len)?;
        let at = version.transport();
        let is_left = leaves_tcp(header) && usize::from(header.csum_start) == at;
        let tcp: &[u8; TCP] = beginning.get(at..)?.first_chunk()?;
        let [_, _, _, _, a, b, c, d, _, _, _, _, offset, flags, ..] = *tcp;
        // The four bits beside the length are reserved.
        let is_plain = offset & 0xF == 0 && flags & !PUSH == ACK;
        let options = usize::from(offset >> 4) * 4;
        let headers = at + options;
        let is_whole = options >= TCP && beginning.len() >= headers;
        let data = len.checked_sub(headers).filter(|data| *data >= usize::from(MIN_SEGMENT))?;
        let pseudo = version.pseudo_header(beginning, len - at)?;
        let is_pseudo = number(beginning, at + usize::from(TCP_CHECKSUM))? == pseudo;
        let sequence = u32::from_be_bytes([a, b, c, d]);
        let fits = is_left && is_plain && is_whole && is_pseudo;
        fits.then_some(Self { version, headers, data, sequence, pushed: flags & PUSH != 0 })
    }

    /// The sequence number behind its data.
    fn end(&self) -> u32 {
        // A frame is no longer than an IP packet can be.
        self.sequence.wrapping_add(u32::try_from(self.data).unwrap_or_default())
    }
}

impl Version {
    /// What a frame of `len` bytes carries, if it is TCP right behind an IP header, which says nothing but that and
    /// is right.
    fn of(beginning: &[u8], len: usize) -> Option<Self> {
        let packet = beginning.get(ETHERNET..)?;
        let len = len.checked_sub(ETHERNET)?;
        match number(beginning, 12)? {
            ethertype::IPV4 => {
                let header = packet.get(..IPV4)?;
                let is_plain = header.first() == Some(&0x45) && number(header, 6)? == WHOLE;
                let is_all = usize::from(number(header, 2)?) == len;
                let is_right = sum(header, 0) == 0xFFFF && header.get(9) == Some(&protocol::TCP);
                (is_plain && is_all && is_right).then_some(Self::V4)
            }
            ethertype::IPV6 => {
                let header = packet.get(..IPV6)?;
                let is_version_6 = header.first().is_some_and(|first| first >> 4 == 6);
                let is_all = usize::from(number(header, 4)?) + IPV6 == len;
                (is_version_6 && is_all && header.get(6) == Some(&protocol::TCP)).then_some(Self::V6)
            }
            _ => None,
        }
    }

    /// Where TCP begins in a frame.
    fn transport(self) -> usize {
        match self {
            Self::V4 => ETHERNET + IPV4,
            Self::V6 => ETHERNET + IPV6,
        }
    }

    /// The sum of the pseudo header for `len` bytes of TCP, which a driver that leaves the checksum to the device puts in
    /// its place (RFC 9293, section 3.1; RFC 8200, section 8.1).
    fn pseudo_header(self, beginning: &[u8], len: usize) -> Option<u16> {
        let addresses = match self {
            Self::V4 => beginning.get(ETHERNET + 12..ETHERNET + IPV4)?,
            Self::V6 => beginning.get(ETHERNET + 8..ETHERNET + IPV6)?,
        };
        let len = u32::try_from(len).ok()?;
        Some(sum(addresses, u32::from(protocol::TCP) + (len >> 16) + (len & 0xFFFF)))
    }
}

/// Whether a frame is to be sent as it is, but for what may be TCP's checksum.
fn leaves_tcp(header: &Header) -> bool {
    let is_whole = u32::from(header.gso_type) == VIRTIO_NET_HDR_GSO_NONE;
    header.leaves_checksum() && header.csum_offset == TCP_CHECKSUM && is_whole
}

/// The sum of 16-bit words in ones' complement (RFC 1071), and of `start`. The bytes are few, and of an even number.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let sum = words.iter().fold(start, |sum, word| sum.saturating_add(u16::from_be_bytes(*word).into()));
    let folded = (sum >> 16) + (sum & 0xFFFF);
    // Fits by now.
    u16::try_from((folded >> 16) + (folded & 0xFFFF)).unwrap_or(u16::MAX)
}

/// A number of two bytes.
fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

fn put(bytes: &mut [u8], at: usize, value: usize) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = u16::try_from(value).ok()?.to_be_bytes();
    Some(())
}

#[cfg(test)]
#[path = "coalesce_test.rs"]
mod tests;
