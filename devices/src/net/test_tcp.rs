//! TCP segments as a driver sends them, and what Linux makes of a packet of several: computed apart from the device.

use ringlet_io::net::HEADER;

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ip {
    V4,
    V6,
}

/// A segment, its checksum left to the device. What is said of it here is in its headers, right or wrong.
#[derive(Debug, Clone)]
pub(super) struct TcpSegment {
    pub(super) ip: Ip,
    /// Last byte of the Ethernet address that it is for.
    pub(super) mac: u8,
    /// EtherType, if it is another one.
    pub(super) kind: Option<[u8; 2]>,
    /// First byte of IPv4.
    pub(super) version: u8,
    pub(super) class: u8,
    pub(super) label: u8,
    pub(super) identification: u16,
    /// Flags and offset of IPv4.
    pub(super) fragment: u16,
    pub(super) hops: u8,
    pub(super) protocol: u8,
    /// Added to the checksum of IPv4.
    pub(super) wrong_ip: u16,
    /// Last bytes of addresses.
    pub(super) source: u8,
    pub(super) target: u8,
    pub(super) ports: [u16; 2],
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) reserved: u8,
    pub(super) flags: u8,
    pub(super) pushed: bool,
    pub(super) window: u16,
    pub(super) urgent: u16,
    pub(super) options: Vec<u8>,
    /// Bytes of data, and of what is behind the packet.
    pub(super) size: usize,
    pub(super) behind: usize,
    /// The checksum is left to the device.
    pub(super) is_left: bool,
    /// Added to the sum of the pseudo header.
    pub(super) wrong: u16,
}

impl Default for TcpSegment {
    fn default() -> Self {
        Self {
            ip: Ip::V4,
            mac: 1,
            kind: None,
            version: 0x45,
            class: 0,
            label: 0,
            identification: 0,
            fragment: 0x4000,
            hops: 64,
            protocol: 6,
            wrong_ip: 0,
            source: 2,
            target: 1,
            ports: [80, 40_000],
            sequence: 7,
            acknowledged: 9,
            reserved: 0,
            flags: 0x10,
            pushed: false,
            window: 1000,
            urgent: 0,
            options: Vec::new(),
            size: 1460,
            behind: 0,
            is_left: true,
            wrong: 0,
        }
    }
}

impl TcpSegment {
    /// Byte of the frame at which TCP begins.
    fn transport(&self) -> u16 {
        match self.ip {
            Ip::V4 => 34,
            Ip::V6 => 54,
        }
    }

    /// The packet's header.
    pub(super) fn header(&self) -> [u8; HEADER] {
        match self.is_left {
            true => [1, 0, 0, 0, 0, 0, self.transport() as u8, 0, 16, 0, 0, 0],
            false => [0; HEADER],
        }
    }

    pub(super) fn frame(&self) -> Vec<u8> {
        let kind = self.kind.unwrap_or(match self.ip {
            Ip::V4 => [8, 0],
            Ip::V6 => [0x86, 0xDD],
        });
        let mut tcp = [&self.ports[0].to_be_bytes()[..], &self.ports[1].to_be_bytes()].concat();
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        tcp.push((((20 + self.options.len() as u8) / 4) << 4) | self.reserved);
        tcp.push(self.flags | if self.pushed { 8 } else { 0 });
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0, 0]);
        tcp.extend(self.urgent.to_be_bytes());
        tcp.extend(&self.options);
        tcp.extend((0..self.size as u32).map(|n| self.sequence.wrapping_add(n) as u8 ^ 0x5A));
        let ip = self.ip_header(tcp.len());
        let mac = super::test_util::MAC.0;
        let mut frame = [&[2, 0, 0, 0, 0, self.mac][..], &mac, &kind, &ip, &tcp].concat();
        let at = usize::from(self.transport()) + 16;
        let sum = match self.is_left {
            true => pseudo_sum(&frame).wrapping_add(self.wrong),
            false => !add(&tcp, pseudo_sum(&frame).into()),
        };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        frame.extend(vec![0; self.behind]);
        frame
    }

    fn ip_header(&self, tcp: usize) -> Vec<u8> {
        let mut ip = Vec::new();
        match self.ip {
            Ip::V4 => {
                ip.extend([self.version, self.class]);
                ip.extend((20 + tcp as u16).to_be_bytes());
                ip.extend(self.identification.to_be_bytes());
                ip.extend(self.fragment.to_be_bytes());
                ip.extend([self.hops, self.protocol, 0, 0, 10, 0, 0, self.source, 10, 0, 0, self.target]);
                let sum = (!add(&ip, 0)).wrapping_add(self.wrong_ip).to_be_bytes();
                ip[10..12].copy_from_slice(&sum);
            }
            Ip::V6 => {
                ip.extend([0x60 | self.class >> 4, self.class << 4, 0, self.label]);
                ip.extend((tcp as u16).to_be_bytes());
                ip.extend([self.protocol, self.hops]);
                let address = |last| [0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
                ip.extend(address(self.source));
                ip.extend(address(self.target));
            }
        }
        ip
    }
}

/// The sum of words in ones' complement, and of `start`.
pub(super) fn add(bytes: &[u8], start: u64) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u64::from(*byte)));
    let mut sum = start + words.sum::<u64>();
    while sum > 0xFFFF {
        sum = (sum >> 16) + (sum & 0xFFFF);
    }
    sum as u16
}

/// Where the TCP of a frame begins, and the addresses. A wrong EtherType or version says nothing.
fn parts(frame: &[u8]) -> (usize, &[u8]) {
    let is_ipv6 = frame[12] == 0x86 || frame[12] != 8 && frame[14] >> 4 == 6;
    if is_ipv6 { (54, &frame[22..54]) } else { (34, &frame[26..34]) }
}

fn pseudo_sum(frame: &[u8]) -> u16 {
    let (at, addresses) = parts(frame);
    add(addresses, 6 + (frame.len() - at) as u64)
}

/// The frame as it goes over a wire, without identification and checksum of IPv4.
pub(super) fn whole_checksums(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (at, _) = parts(&frame);
    frame[at + 16..at + 18].fill(0);
    let sum = !add(&frame[at..], pseudo_sum(&frame).into());
    frame[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
    without_identification(&mut frame);
    frame
}

fn without_identification(frame: &mut [u8]) {
    if frame[12] == 8 {
        assert_eq!(add(&frame[14..34], 0), 0xFFFF, "the checksum of IPv4 is right");
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
}

/// What Linux cuts a packet into (`tcp_gso_segment`), without identification and checksum of IPv4.
pub(super) fn cut(packet: &[u8]) -> Vec<Vec<u8>> {
    let (header, frame) = packet.split_at(HEADER);
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (headers, size) = (field(2), field(4));
    let (at, _) = parts(frame);
    assert_eq!((header[0], field(6), field(8)), (1, at, 16));
    assert_eq!(header[1], if at == 34 { 1 } else { 4 });
    assert_eq!(headers, at + usize::from(frame[at + 12] >> 4) * 4);
    let length = if at == 34 { (16, frame.len() - 14) } else { (18, frame.len() - 54) };
    assert_eq!(frame[length.0..length.0 + 2], (length.1 as u16).to_be_bytes());
    let mut whole = frame.to_vec();
    without_identification(&mut whole);
    let (head, data) = whole.split_at(headers);
    let count = data.len().div_ceil(size);
    let segment = |(n, data): (usize, &[u8])| {
        let mut segment = [head, data].concat();
        let less = (frame.len() - segment.len()) as u16;
        segment[length.0..length.0 + 2].copy_from_slice(&(length.1 as u16 - less).to_be_bytes());
        let sequence: [u8; 4] = head[at + 4..at + 8].try_into().unwrap();
        let sequence = u32::from_be_bytes(sequence).wrapping_add((n * size) as u32);
        segment[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        if n + 1 < count {
            segment[at + 13] &= !8;
        }
        // The sum that is there is that of the pseudo header with the whole length.
        let sum = u16::from_be_bytes([head[at + 16], head[at + 17]]);
        segment[at + 16..at + 18].fill(0);
        let sum = !add(&segment[at..], u64::from(sum) + u64::from(!less));
        segment[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
        segment
    };
    data.chunks(size).enumerate().map(segment).collect()
}
