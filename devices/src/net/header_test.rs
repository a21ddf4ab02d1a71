use proptest::prelude::*;

use super::*;

const ALL: u64 = u64::MAX;

fn without(feature: u32) -> Rules {
    Rules::new(ALL & !(1 << feature))
}

/// A TCP segment over IPv4 of 3000 bytes of data, to be cut in three.
const TSO: Header =
    Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };
const TSO_FRAME: u64 = 3054;

#[test]
fn fields_are_where_the_specification_has_them() {
    let bytes = [1, 0x81, 0x02, 0x01, 0x04, 0x03, 0x06, 0x05, 0x08, 0x07, 0xFF, 0xFF];
    let header = Header::parse(&bytes);
    let expected = Header {
        flags: 1,
        gso_type: 0x81,
        hdr_len: 0x0102,
        gso_size: 0x0304,
        csum_start: 0x0506,
        csum_offset: 0x0708,
    };
    assert_eq!(header, expected);
    assert_eq!(header.bytes(), [1, 0x81, 2, 1, 4, 3, 6, 5, 8, 7, 0, 0], "num_buffers is not the driver's");
}

#[test]
fn what_was_negotiated_passes_as_it_is() {
    assert_eq!(Header::default().validate(Rules::new(0), 60), Ok(Header::default()));
    assert_eq!(TSO.validate(Rules::new(ALL), TSO_FRAME), Ok(TSO));
    for gso_type in [1, 3, 4, 5, 0x81, 0x84] {
        let header = Header { gso_type, ..TSO };
        assert_eq!(header.validate(Rules::new(ALL), TSO_FRAME), Ok(header), "{gso_type:#x}");
    }
    let checksum = Header { gso_type: 0, gso_size: 0, hdr_len: 0, ..TSO };
    assert_eq!(checksum.validate(Rules::new(1 << VIRTIO_NET_F_CSUM), 60), Ok(checksum));
}

#[test]
fn what_has_no_meaning_is_not_passed_on() {
    let header =
        Header { flags: 0xFE, gso_type: 0, hdr_len: 9999, gso_size: 1, csum_start: 60_000, csum_offset: 7 };
    assert_eq!(header.validate(Rules::new(ALL), 60), Ok(Header::default()));
    let header = Header { flags: 0xFF, gso_type: 0, ..TSO };
    let left = Header { flags: 1, hdr_len: 0, gso_size: 0, gso_type: 0, ..TSO };
    assert_eq!(header.validate(Rules::new(ALL), 60), Ok(left));
}

#[test]
fn sec_07_what_was_not_negotiated_is_refused() {
    let refused = |header: Header, rules| header.validate(rules, TSO_FRAME).unwrap_err();
    assert_eq!(refused(TSO, without(VIRTIO_NET_F_CSUM)), HeaderError::Checksum);
    for (gso_type, feature) in [
        (1, VIRTIO_NET_F_HOST_TSO4),
        (4, VIRTIO_NET_F_HOST_TSO6),
        (3, VIRTIO_NET_F_HOST_UFO),
        (5, VIRTIO_NET_F_HOST_USO),
        (0x81, VIRTIO_NET_F_HOST_ECN),
        (0x84, VIRTIO_NET_F_HOST_ECN),
    ] {
        let header = Header { gso_type, ..TSO };
        assert_eq!(refused(header, without(feature)), HeaderError::Segmentation { gso_type });
    }
    for gso_type in [2, 6, 0x7F, 0x80, 0xFF] {
        let header = Header { gso_type, ..TSO };
        assert_eq!(refused(header, Rules::new(ALL)), HeaderError::Segmentation { gso_type });
    }
}

#[test]
fn sec_07_places_outside_the_frame_are_refused() {
    let check = |header: Header, len| header.validate(Rules::new(ALL), len);
    let checksum =
        |csum_start, csum_offset| Header { flags: 1, csum_start, csum_offset, ..Header::default() };
    assert!(check(checksum(14, 0), 16).is_ok());
    for (header, len) in [
        (checksum(14, 0), 15),
        (checksum(13, 0), 60),
        (checksum(0, 0), 60),
        (checksum(u16::MAX, u16::MAX), 65_550),
    ] {
        let Header { csum_start: start, csum_offset: offset, .. } = header;
        let error = HeaderError::ChecksumPlace { start, offset, len: len as u32 };
        assert_eq!(check(header, len), Err(error));
    }
    assert_eq!(
        check(Header { hdr_len: 3055, ..TSO }, TSO_FRAME),
        Err(HeaderError::HeaderLength { hdr_len: 3055, len: 3054 })
    );
    assert!(check(Header { hdr_len: 3054, ..TSO }, TSO_FRAME).is_ok());
    for size in [0, 1, 7] {
        assert_eq!(
            check(Header { gso_size: size, ..TSO }, TSO_FRAME),
            Err(HeaderError::SegmentSize { size })
        );
    }
    assert_eq!(check(Header { flags: 0, ..TSO }, TSO_FRAME), Err(HeaderError::SegmentsWithoutChecksum));
}

#[test]
fn sec_02_a_packet_is_not_cut_into_thousands() {
    let check = |gso_size, len: u32| Header { gso_size, ..TSO }.validate(Rules::new(ALL), len.into()).err();
    for (size, len) in [(8, 65_550), (255, 65_550), (8, 257 * 8)] {
        assert_eq!(check(size, len), Some(HeaderError::Segments { size, len }));
    }
    for (size, len) in [(256, 65_550), (1460, 65_550), (8, 257 * 8 - 1), (u16::MAX, 65_550)] {
        assert_eq!(check(size, len), None, "{size} of {len}");
    }
}

#[test]
fn sec_07_frames_have_the_length_of_frames() {
    let check = |len| Header::default().validate(Rules::new(ALL), len);
    assert!(check(14).is_ok() && check(65_550).is_ok());
    for len in [0, 13, 65_551, u64::from(u32::MAX), u64::MAX] {
        assert_eq!(check(len), Err(HeaderError::FrameLength { len }));
    }
}

proptest! {
    /// Whatever is passed on is within the frame and was negotiated, and validating it again changes nothing.
    #[test]
    fn sec_07_nothing_passes_that_was_not_checked(bytes: [u8; HEADER], features: u64, len in 0u64..70_000) {
        let (header, rules) = (Header::parse(&bytes), Rules::new(features));
        let Ok(valid) = header.validate(rules, len) else { return Ok(()) };
        prop_assert!((14..=65_550).contains(&len));
        prop_assert_eq!(valid.validate(rules, len), Ok(valid));
        prop_assert_eq!(Header::parse(&valid.bytes()), valid);
        prop_assert!(valid.flags <= 1 && (valid.flags == 0 || rules.has(VIRTIO_NET_F_CSUM)));
        prop_assert!(u64::from(valid.hdr_len) <= len);
        if valid.flags == 1 {
            let end = u64::from(valid.csum_start) + u64::from(valid.csum_offset) + 2;
            prop_assert!(valid.csum_start >= 14 && end <= len);
        } else {
            prop_assert_eq!(valid, Header::default(), "nothing is asked for");
        }
        if valid.gso_type != 0 {
            prop_assert!(rules.allows(valid.gso_type) && valid.gso_size >= MIN_SEGMENT);
            prop_assert!(len / u64::from(valid.gso_size) <= u64::from(MAX_SEGMENTS));
        }
    }
}
