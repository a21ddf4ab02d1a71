use super::*;
use crate::net::header::Rules;
use crate::net::test_tcp::{Ip, TcpSegment, add, cut, whole_checksums};

const BOTH: Versions = Versions { ipv4: true, ipv6: true };

/// What is changed of a segment.
type Change = (&'static str, fn(&mut TcpSegment));

fn beginning(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(JOINED)]
}

/// Joins what can be joined of frames with these headers: the packet, and how many frames it has.
fn join_all(frames: &[(Header, Vec<u8>)]) -> Option<(Vec<u8>, usize)> {
    let (header, first) = &frames[0];
    let mut segments = Segments::of(BOTH, header, beginning(first), first.len())?;
    let (mut packet, mut count) = (first.clone(), 1);
    for (header, frame) in &frames[1..] {
        let joined = segments.and(beginning(first), header, beginning(frame), frame.len());
        let Some(joined) = joined else { break };
        packet.extend(&frame[segments.headers()..]);
        segments = joined;
        count += 1;
    }
    let header = segments.finish(&mut packet)?;
    Some(([&header[..], &packet].concat(), count))
}

fn of(segments: &[TcpSegment]) -> Vec<(Header, Vec<u8>)> {
    segments.iter().map(|segment| (Header::parse(&segment.header()), segment.frame())).collect()
}

/// So many segments of full size, and their sequence.
fn row(ip: Ip, count: u32, size: u32) -> Vec<TcpSegment> {
    (0..count)
        .map(|n| TcpSegment {
            ip,
            sequence: 7u32.wrapping_add(n * size),
            size: size as usize,
            ..TcpSegment::default()
        })
        .collect()
}

/// How many of a row are one packet, which is cut into just these again.
fn joined(segments: &[TcpSegment]) -> usize {
    let frames = of(segments);
    let Some((packet, count)) = join_all(&frames) else { return 1 };
    if count > 1 {
        let again = cut(&packet);
        assert_eq!(again.len(), count);
        for (again, (_, frame)) in again.iter().zip(&frames) {
            assert!(*again == whole_checksums(frame), "{again:02x?} {frame:02x?}");
        }
    }
    count
}

#[test]
fn segments_in_a_row_are_one_packet_that_is_cut_into_them_again() {
    for ip in [Ip::V4, Ip::V6] {
        for (count, size) in [(2, 8), (3, 9), (44, 1460), (20, 1440), (7, 8960)] {
            assert_eq!(joined(&row(ip, count, size)), count as usize, "{ip:?} {size}");
        }
        // The last may be shorter, with PSH, or both, and ends the packet.
        for (size, pushed) in [(8, false), (99, false), (100, true), (50, true)] {
            let mut segments = row(ip, 5, 100);
            (segments[3].size, segments[3].pushed) = (size, pushed);
            segments[4].sequence = segments[3].sequence + size as u32;
            assert_eq!(joined(&segments), 4, "{ip:?} {size} {pushed}");
        }
    }
}

#[test]
fn options_are_kept_where_all_have_the_same() {
    for ip in [Ip::V4, Ip::V6] {
        for options in [12, 40] {
            let mut segments = row(ip, 4, 1000);
            segments.iter_mut().for_each(|segment| segment.options = vec![1; options]);
            assert_eq!(joined(&segments), 4);
            segments[2].options[options - 1] = 0;
            assert_eq!(joined(&segments), 2);
            segments[1].options = vec![1; options - 4];
            assert_eq!(joined(&segments), 1);
        }
    }
}

#[test]
fn sequence_numbers_begin_again_after_the_last() {
    let mut segments = row(Ip::V4, 4, 1460);
    for (n, segment) in (0..).zip(&mut segments) {
        segment.sequence = (u32::MAX - 2000).wrapping_add(n * 1460);
    }
    assert_eq!(joined(&segments), 4);
    segments[2].sequence = segments[2].sequence.wrapping_sub(1);
    assert_eq!(joined(&segments), 2);
}

#[test]
fn a_packet_is_no_longer_than_one_of_ip_and_has_no_more_segments_than_allowed() {
    // 65,535 bytes in all are the most: 40 of headers and 44 of 1,488 and 23 bytes.
    assert_eq!(joined(&row(Ip::V4, 60, 1488)), 44);
    for (ip, headers) in [(Ip::V4, 40), (Ip::V6, 60)] {
        let half = (65_535 - headers) / 2;
        assert_eq!(joined(&row(ip, 3, half)), 2);
        assert_eq!(joined(&row(ip, 2, half + 1)), 1);
    }
    // A frame's headers count as well.
    let count = joined(&row(Ip::V4, 300, 8));
    assert_eq!(count, 256 - 6);
    let (packet, _) = join_all(&of(&row(Ip::V4, 300, 8))).unwrap();
    let header = Header::parse(packet.first_chunk().unwrap());
    let rules = Rules::new(u64::MAX);
    assert_eq!(header.validate(rules, (packet.len() - HEADER) as u64), Ok(header));
}

#[test]
fn headers_say_what_is_left_to_be_done() {
    let (packet, _) = join_all(&of(&row(Ip::V4, 2, 1460))).unwrap();
    assert_eq!(packet[..HEADER], [1, 1, 54, 0, 0xB4, 5, 34, 0, 16, 0, 0, 0]);
    assert_eq!(packet[HEADER + 16..HEADER + 18], 2960_u16.to_be_bytes());
    let (packet, _) = join_all(&of(&row(Ip::V6, 2, 1440))).unwrap();
    assert_eq!(packet[..HEADER], [1, 4, 74, 0, 0xA0, 5, 54, 0, 16, 0, 0, 0]);
    assert_eq!(packet[HEADER + 18..HEADER + 20], 2900_u16.to_be_bytes());
}

/// Changes that keep a frame from being joined, to the one before as well as to the one behind.
#[test]
fn what_is_not_a_plain_segment_is_not_joined() {
    let changes: &[Change] = &[
        ("a SYN", |segment| segment.flags = 0x12),
        ("a FIN", |segment| segment.flags = 0x11),
        ("a RST", |segment| segment.flags = 0x14),
        ("urgent data", |segment| segment.flags = 0x30),
        ("an echo of ECN", |segment| segment.flags = 0x50),
        ("a reduced window", |segment| segment.flags = 0x90),
        ("no ACK", |segment| segment.flags = 0),
        ("a reserved bit", |segment| segment.reserved = 1),
        ("its own checksum", |segment| segment.is_left = false),
        ("another sum", |segment| segment.wrong = 1),
        ("no data", |segment| segment.size = 0),
        ("little data", |segment| segment.size = 7),
        ("something behind", |segment| segment.behind = 1),
        ("a tag", |segment| segment.kind = Some([0x81, 0])),
        ("UDP", |segment| segment.protocol = 17),
    ];
    for ip in [Ip::V4, Ip::V6] {
        for (what, change) in changes {
            for at in 0..3 {
                let mut segments = row(ip, 3, 100);
                change(&mut segments[at]);
                assert_eq!(joined(&segments), at.max(1), "{ip:?}: {what} at {at}");
            }
        }
    }
    let of_ipv4: &[Change] = &[
        ("may be fragmented", |segment| segment.fragment = 0),
        ("more fragments", |segment| segment.fragment = 0x6000),
        ("a fragment", |segment| segment.fragment = 0x4001),
        ("a reserved bit", |segment| segment.fragment = 0xC000),
        ("options", |segment| segment.version = 0x46),
        ("a wrong version", |segment| segment.version = 0x65),
        ("a wrong checksum", |segment| segment.wrong_ip = 1),
    ];
    for (what, change) in of_ipv4 {
        for at in 0..3 {
            let mut segments = row(Ip::V4, 3, 100);
            change(&mut segments[at]);
            assert_eq!(joined(&segments), at.max(1), "{what} at {at}");
        }
    }
}

#[test]
fn segments_that_differ_are_not_joined() {
    let changes: &[Change] = &[
        ("a gap", |segment| segment.sequence += 1),
        ("the same again", |segment| segment.sequence -= 100),
        ("another acknowledgement", |segment| segment.acknowledged += 1),
        ("another window", |segment| segment.window += 1),
        ("another urgent pointer", |segment| segment.urgent += 1),
        ("another source port", |segment| segment.ports[0] += 1),
        ("another port", |segment| segment.ports[1] += 1),
        ("another source", |segment| segment.source += 1),
        ("another address", |segment| segment.target += 1),
        ("another class", |segment| segment.class += 1),
        ("another hop limit", |segment| segment.hops += 1),
        ("another Ethernet address", |segment| segment.mac += 1),
        ("more data", |segment| segment.size += 1),
        ("another version of IP", |segment| segment.ip = if segment.ip == Ip::V4 { Ip::V6 } else { Ip::V4 }),
    ];
    for ip in [Ip::V4, Ip::V6] {
        for (what, change) in changes {
            for at in 1..3 {
                let mut segments = row(ip, 3, 100);
                change(&mut segments[at]);
                assert_eq!(joined(&segments), at, "{ip:?}: {what} at {at}");
            }
        }
        // But identifications differ, and may.
        let mut segments = row(ip, 3, 100);
        segments[1].identification = 99;
        assert_eq!(joined(&segments), 3);
    }
    let mut segments = row(Ip::V6, 3, 100);
    segments[1].label = 1;
    assert_eq!(joined(&segments), 1);
}

#[test]
fn nothing_is_joined_that_the_host_does_not_cut() {
    for (ip, only) in
        [(Ip::V4, Versions { ipv4: false, ipv6: true }), (Ip::V6, Versions { ipv4: true, ipv6: false })]
    {
        let (header, frame) = &of(&row(ip, 1, 100))[0];
        assert!(Segments::of(only, header, beginning(frame), frame.len()).is_none());
        assert!(Segments::of(BOTH, header, beginning(frame), frame.len()).is_some());
        assert!(only.may_have(header));
    }
    let tso = Offloads { checksum: false, ..Offloads::ALL };
    let none = Versions { ipv4: false, ipv6: false };
    assert_eq!((Versions::of(tso), Versions::of(Offloads::NONE)), (none, none));
    assert_eq!(Versions::of(Offloads { tso6: false, ..Offloads::ALL }), Versions { ipv4: true, ipv6: false });
    assert!(!none.may_have(&of(&row(Ip::V4, 1, 100))[0].0));
}

#[test]
fn sec_07_headers_that_lie_about_lengths_are_not_joined() {
    let good = of(&row(Ip::V4, 1, 100)).remove(0);
    let lies = |change: &dyn Fn(&mut Vec<u8>, &mut Header)| {
        let (mut header, mut frame) = good.clone();
        change(&mut frame, &mut header);
        Segments::of(BOTH, &header, beginning(&frame), frame.len()).is_none()
    };
    assert!(!lies(&|_, _| {}));
    for length in [0, 20, 39, 40, 139, 141, 0xFFFF] {
        let lie = |frame: &mut Vec<u8>, _: &mut Header| {
            frame[16..18].copy_from_slice(&u16::to_be_bytes(length));
            frame[24..26].fill(0);
            let sum = !add(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        };
        assert!(lies(&lie), "{length}");
    }
    for offset in [0, 1, 4] {
        assert!(lies(&|frame, _| frame[46] = offset << 4), "{offset}");
    }
    assert!(lies(&|_, header| header.csum_start = 33));
    assert!(lies(&|_, header| header.csum_offset = 6));
    assert!(lies(&|_, header| header.gso_type = 1));
    let (header, frame) = &of(&row(Ip::V6, 1, 100))[0];
    for length in [0, 19, 20, 119, 121, 0xFFFF] {
        let mut frame = frame.clone();
        frame[18..20].copy_from_slice(&u16::to_be_bytes(length));
        let lie = Segments::of(BOTH, header, beginning(&frame), frame.len());
        assert_eq!(lie.is_none(), length != 120, "{length}");
    }
    // However short it is, and whatever of it is there.
    let (header, frame) = &good;
    for len in 0..frame.len() {
        assert!(Segments::of(BOTH, header, &frame[..len.min(JOINED)], len).is_none());
        assert_eq!(Segments::of(BOTH, header, &frame[..len], frame.len()).is_some(), len >= 54);
    }
}

/// Whatever of the headers is changed, in the first or the second frame: nothing is joined, or just that is cut out again.
#[test]
fn sec_07_no_change_of_a_header_is_lost() {
    for ip in [Ip::V4, Ip::V6] {
        let mut segments = row(ip, 2, 10);
        segments.iter_mut().for_each(|segment| segment.options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        let frames = of(&segments);
        let headers = frames[0].1.len() - 10;
        for (which, at) in (0..2).flat_map(|which| (0..headers).map(move |at| (which, at))) {
            for change in 1..=255 {
                let mut frames = frames.clone();
                frames[which].1[at] ^= change;
                let Some((packet, 2)) = join_all(&frames) else { continue };
                let expected = [whole_checksums(&frames[0].1), whole_checksums(&frames[1].1)];
                assert!(cut(&packet) == expected, "{ip:?}: {change:#x} at byte {at} of frame {which}");
            }
        }
    }
}
