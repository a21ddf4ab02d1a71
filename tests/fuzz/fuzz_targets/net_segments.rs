//! TCP segments that a guest sends one by one, and that go out as one packet, against a plain cutting of that packet.
//!
//! Input: the version of IP and which may be joined (bit 0: IPv6; 1, 2: IPv4 and IPv6 are not), words of options, bytes of
//! data of a segment (le16), the first sequence number (be32), then 8 bytes for each frame: bits (0: shorter; 1: PSH;
//! 2: another sequence number; 3: changed before the checksums are made, else behind; 4: the packet's header is
//! changed), by how many bytes shorter (le16), where it is changed (le16), by which bits, two of nothing. Fails on a panic,
//! if a packet is not what a driver with TSO might have sent, or if cutting it does not give the frames it was made of.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use ringlet_devices::net::coalesce::{JOINED, Segments, Versions};
use ringlet_devices::net::header::{Header, Rules};

const HEADER: usize = 12;
const ETHERNET: usize = 14;
/// CSUM, HOST_TSO4, HOST_TSO6.
const FEATURES: u64 = 1 | 1 << 11 | 1 << 12;
const MAX_FRAMES: usize = 64;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((&[versions, options, low, high, a, b, c, d], script)) = bytes.split_first_chunk() else {
        return Corpus::Reject;
    };
    let flow = Flow {
        is_ipv6: versions & 1 == 1,
        options: usize::from(options % 11) * 4,
        size: usize::from(u16::from_le_bytes([low, high]) % 9000),
    };
    let allowed = Versions { ipv4: versions & 2 == 0, ipv6: versions & 4 == 0 };
    let mut sequence = u32::from_be_bytes([a, b, c, d]);
    let mut frames = Vec::new();
    for change in script.as_chunks::<8>().0.iter().take(MAX_FRAMES) {
        let frame = flow.frame(&mut sequence, *change);
        let len = frame.bytes.len() as u64;
        // What is not valid is dropped before it comes so far.
        if let Ok(header) = Header::parse(&frame.header).validate(Rules::new(FEATURES), len) {
            frames.push((header, frame.bytes));
        }
    }
    let packets = join(allowed, &frames);
    let is_plain = script.iter().all(|byte| *byte == 0) && (8..1400).contains(&flow.size);
    let is_allowed = if flow.is_ipv6 { allowed.ipv6 } else { allowed.ipv4 };
    assert!(!is_plain || !is_allowed || packets <= 1 + frames.len() / 40, "what follows is joined");
    Corpus::Keep
});

/// A frame as the driver sends it.
struct Frame {
    header: [u8; HEADER],
    bytes: Vec<u8>,
}

struct Flow {
    is_ipv6: bool,
    options: usize,
    size: usize,
}

impl Flow {
    fn transport(&self) -> usize {
        ETHERNET + if self.is_ipv6 { 40 } else { 20 }
    }

    /// The next segment, with these changes.
    fn frame(&self, sequence: &mut u32, change: [u8; 8]) -> Frame {
        let [bits, low, high, at_low, at_high, xor, ..] = change;
        let has = |bit: u8| bits >> bit & 1 == 1;
        let shorter = if has(0) { usize::from(u16::from_le_bytes([low, high])) } else { 0 };
        let data = self.size.saturating_sub(shorter);
        let start = if has(2) { sequence.wrapping_add(1) } else { *sequence };
        *sequence = start.wrapping_add(data as u32);
        let transport = self.transport();
        let mut bytes = vec![0; transport + 20 + self.options];
        bytes[..12].copy_from_slice(b"\x52\x54\0\0\0\x01\x52\x54\0\0\0\x02");
        let len = bytes.len() - ETHERNET + data;
        if self.is_ipv6 {
            bytes[12..16].copy_from_slice(&[0x86, 0xDD, 0x60, 0]);
            bytes[18..20].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            bytes[20..22].copy_from_slice(&[6, 64]);
            bytes[22..54].iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
        } else {
            bytes[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
            bytes[16..18].copy_from_slice(&(len as u16).to_be_bytes());
            bytes[18..24].copy_from_slice(&[low, high, 0x40, 0, 64, 6]);
            bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        }
        let tcp = &mut bytes[transport..];
        tcp[..4].copy_from_slice(&[0x13, 0x89, 0xC0, 1]);
        tcp[4..8].copy_from_slice(&start.to_be_bytes());
        tcp[12] = ((20 + self.options) as u8 / 4) << 4;
        tcp[13] = if has(1) { 0x18 } else { 0x10 };
        let at = usize::from(u16::from_le_bytes([at_low, at_high])) % bytes.len();
        let changed = if has(3) { xor } else { 0 };
        bytes[at] ^= changed;
        sums(&mut bytes, self.is_ipv6, data);
        bytes[at] ^= if has(3) { 0 } else { xor };
        let mut header = [0; HEADER];
        (header[0], header[6], header[8]) = (1, transport as u8, 16);
        if has(4) {
            header[usize::from(high) % HEADER] ^= low;
        }
        // Data that tells its place in the stream.
        bytes.extend((0..data as u32).map(|at| place(start.wrapping_add(at))));
        Frame { header, bytes }
    }
}

fn place(sequence: u32) -> u8 {
    (sequence ^ sequence >> 8 ^ sequence >> 16) as u8
}

/// Writes the checksum of IPv4 and TCP's of the pseudo header into `headers`, behind which so much data follows.
fn sums(headers: &mut [u8], is_ipv6: bool, data: usize) {
    let transport = ETHERNET + if is_ipv6 { 40 } else { 20 };
    let addresses = if is_ipv6 { 22..54 } else { 26..34 };
    if !is_ipv6 {
        headers[24..26].fill(0);
        let sum = !sum(&headers[ETHERNET..transport]);
        headers[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    let len = (headers.len() - transport + data) as u32;
    let pseudo = [&headers[addresses], &len.to_be_bytes(), &[0, 0, 0, 6]].concat();
    headers[transport + 16..transport + 18].copy_from_slice(&sum(&pseudo).to_be_bytes());
}

/// RFC 1071, byte by byte.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for (at, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << if at % 2 == 0 { 8 } else { 0 };
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

fn beginning(frame: &[u8]) -> &[u8] {
    frame.get(..JOINED).unwrap_or(frame)
}

/// Joins as many as follow each other, as often as it goes; gives how many packets that makes.
fn join(allowed: Versions, mut frames: &[(Header, Vec<u8>)]) -> usize {
    let mut packets = 0;
    while let Some(((header, first), others)) = frames.split_first() {
        let mut count = 1;
        if let Some(mut segments) = Segments::of(allowed, header, beginning(first), first.len()) {
            for (header, next) in others {
                let joined = segments.and(beginning(first), header, beginning(next), next.len());
                let Some(joined) = joined else { break };
                (segments, count) = (joined, count + 1);
            }
            check(allowed, &segments, &frames[..count]);
        }
        frames = &frames[count..];
        packets += 1;
    }
    packets
}

/// What goes out for these is cut into them again.
fn check(allowed: Versions, segments: &Segments, frames: &[(Header, Vec<u8>)]) {
    let Some(((_, first), others)) = frames.split_first() else { return };
    if others.is_empty() {
        return;
    }
    let mut packet = first.clone();
    let copied = packet.len().min(JOINED);
    let bytes = segments.finish(&mut packet[..copied]).expect("what it was made of");
    others.iter().for_each(|(_, frame)| packet.extend(&frame[segments.headers()..]));
    let header = Header::parse(&bytes);
    assert_eq!(header.validate(Rules::new(FEATURES), packet.len() as u64), Ok(header));
    assert!(header.leaves_checksum(), "TSO without it");
    let is_ipv6 = header.gso_type == 4;
    assert!(is_ipv6 && allowed.ipv6 || header.gso_type == 1 && allowed.ipv4, "another version");
    check_headers(&packet, &header, is_ipv6);
    let plain: Vec<&[u8]> = frames.iter().map(|(_, frame)| &frame[..]).collect();
    assert_eq!(cut(&packet, &header, is_ipv6, &plain), plain);
}

/// The headers are those of one packet with all the data, as a driver with TSO writes them (virtio 1.2, section 5.1.6.2).
fn check_headers(packet: &[u8], header: &Header, is_ipv6: bool) {
    let transport = usize::from(header.csum_start);
    let (headers, data) = packet.split_at(header.hdr_len.into());
    assert_eq!(headers.len(), transport + usize::from(headers[transport + 12] >> 4) * 4);
    let mut right = headers.to_vec();
    let len = (packet.len() - ETHERNET) as u16;
    if is_ipv6 {
        right[18..20].copy_from_slice(&(len - 40).to_be_bytes());
    } else {
        right[16..18].copy_from_slice(&len.to_be_bytes());
    }
    sums(&mut right, is_ipv6, data.len());
    assert_eq!(headers, right, "length or checksum");
}

/// Cuts a packet as a network card does, but for the identification of IPv4, which is that of the frames before.
fn cut(packet: &[u8], header: &Header, is_ipv6: bool, before: &[&[u8]]) -> Vec<Vec<u8>> {
    let transport = usize::from(header.csum_start);
    let (headers, data) = packet.split_at(header.hdr_len.into());
    let first = u32::from_be_bytes(headers[transport + 4..transport + 8].try_into().expect("4 bytes"));
    let pieces = data.chunks(header.gso_size.into());
    let last = pieces.len() - 1;
    let mut at = first;
    let mut cut = Vec::new();
    for (number, piece) in pieces.enumerate() {
        let mut frame = headers.to_vec();
        let len = (frame.len() - ETHERNET + piece.len()) as u16;
        if is_ipv6 {
            frame[18..20].copy_from_slice(&(len - 40).to_be_bytes());
        } else {
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            frame[18..20].copy_from_slice(before.get(number).map_or(&[0, 0], |before| &before[18..20]));
        }
        frame[transport + 4..transport + 8].copy_from_slice(&at.to_be_bytes());
        if number < last {
            frame[transport + 13] &= !0x08;
        }
        sums(&mut frame, is_ipv6, piece.len());
        frame.extend(piece);
        cut.push(frame);
        at = at.wrapping_add(piece.len() as u32);
    }
    cut
}
