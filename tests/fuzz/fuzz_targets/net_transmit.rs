//! A packet that a guest sends: its header, against a plain reading of the specification (virtio 1.2, section 5.1.6.2), and
//! the beginning of its frame, against what is pinned.
//!
//! Input: features (le64), length of the frame (le32), what is pinned (bit 0 the Ethernet address, 1 IPv4, 2 IPv6, 3 no
//! loopback), the header (12 bytes), the frame's beginning. Fails on a panic, if a header is judged otherwise than by
//! the plain reading or what is passed on is not what was judged, and if a frame passes that is from another's address.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use ringlet_devices::net::filter::JUDGED;
use ringlet_devices::net::header::{Header, MAX_SEGMENTS, MIN_SEGMENT, Rules};
use ringlet_devices::net::{Filter, Mac};

const OWN_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OWN4: [u8; 4] = [10, 0, 0, 2];
const OWN6: [u8; 16] = [0x20, 1, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// What follows from the Ethernet address.
const LINK_LOCAL: [u8; 16] = [0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xFF, 0xFE, 0x12, 0x34, 0x56];

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((features, rest)) = bytes.split_first_chunk::<8>() else { return Corpus::Reject };
    let Some((len, rest)) = rest.split_first_chunk::<4>() else { return Corpus::Reject };
    let Some(([pins], rest)) = rest.split_first_chunk::<1>() else { return Corpus::Reject };
    let Some((header, frame)) = rest.split_first_chunk::<12>() else { return Corpus::Reject };
    check_header(u64::from_le_bytes(*features), u32::from_le_bytes(*len), header);
    check_frame(*pins, frame.get(..JUDGED).unwrap_or(frame));
    Corpus::Keep
});

fn check_header(features: u64, len: u32, bytes: &[u8; 12]) {
    let judged = Header::parse(bytes).validate(Rules::new(features), len.into());
    assert_eq!(judged.ok().map(|header| header.bytes()), plain(features, len, bytes), "{bytes:?} of {len}");
    if let Ok(header) = judged {
        assert_eq!(header.validate(Rules::new(features), len.into()), Ok(header), "judged again");
    }
}

/// What may be passed on of a header, field by field.
fn plain(features: u64, len: u32, bytes: &[u8; 12]) -> Option<[u8; 12]> {
    let has = |bit: u32| features & 1 << bit != 0;
    let field = |at: usize| u32::from(bytes[at]) | u32::from(bytes[at + 1]) << 8;
    let (hdr_len, gso_size, start, offset) = (field(2), field(4), field(6), field(8));
    let mut out = [0; 12];
    // An Ethernet header at least, and 64 KiB behind one at most.
    if !(14..=65_550).contains(&len) {
        return None;
    }
    let checksum = bytes[0] & 1 == 1;
    if checksum {
        if !has(0) || start < 14 || start + offset + 2 > len {
            return None;
        }
        out[0] = 1;
        out[6..10].copy_from_slice(&bytes[6..10]);
    }
    if bytes[1] != 0 {
        // TCPv4, UDP, TCPv6 and UDP_L4 are HOST_TSO4, HOST_UFO, HOST_TSO6 and HOST_USO.
        let kinds = [(1, 11), (3, 14), (4, 12), (5, 56)];
        let feature = kinds.iter().find(|(kind, _)| *kind == bytes[1] & 0x7F)?.1;
        let ecn = bytes[1] & 0x80 == 0 || has(13);
        if !has(feature) || !ecn || !checksum || gso_size < MIN_SEGMENT.into() || hdr_len > len {
            return None;
        }
        if len / gso_size > MAX_SEGMENTS {
            return None;
        }
        out[1..6].copy_from_slice(&bytes[1..6]);
    }
    Some(out)
}

fn check_frame(pins: u8, frame: &[u8]) {
    let pinned = |bit: u8| pins >> bit & 1 == 1;
    let filter = Filter {
        mac: pinned(0).then_some(Mac(OWN_MAC)),
        ipv4: pinned(1).then(|| vec![OWN4.into()]),
        ipv6: pinned(2).then(|| vec![OWN6.into()]),
        no_loopback: pinned(3),
    };
    if filter.judge(frame).is_err() {
        return;
    }
    assert!(!pinned(0) || frame[6..12] == OWN_MAC, "from another Ethernet address");
    let packet = &frame[14..];
    match (frame[12], frame[13]) {
        (8, 0) => {
            assert!(!pinned(3) || !matches!(packet[16], 0 | 127), "to the host itself");
            // From nobody only to ask for an address.
            let asks = || packet[12..16] == [0; 4] && packet[9] == 17;
            assert!(!pinned(1) || packet[12..16] == OWN4 || asks(), "from another IPv4 address");
        }
        (8, 6) if pinned(1) => {
            let asks = packet[14..18] == [0; 4] && packet[24..28] == OWN4;
            assert!(packet[14..18] == OWN4 || asks, "ARP of another");
        }
        (0x86, 0xDD) if pinned(3) && packet[24..34] == [0; 10] => {
            let mapped = packet[34..36] == [0xFF; 2];
            assert!(!mapped && packet[24..39] != [0; 15], "to the host itself");
        }
        (0x86, 0xDD) if pinned(2) => {
            let own = packet[8..24] == OWN6 || pinned(0) && packet[8..24] == LINK_LOCAL;
            assert!(own || packet[8..24] == [0; 16], "from another IPv6 address");
            // Says nothing of others' addresses to its neighbours.
            let speaks = packet[6] == 58 && matches!(packet[40], 134 | 137);
            assert!(!speaks, "a router");
        }
        (8, 6) | (0x86, 0xDD) => {}
        _ => assert!(!pinned(1) && !pinned(2), "a frame that could carry anything"),
    }
}
