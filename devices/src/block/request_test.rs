//! Requests from headers and chain shapes, without a device.

use std::cell::RefCell;
use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::block::Status;

const RULES: Rules = Rules { capacity: 1000, read_only: false, discard: true, write_zeroes: true };

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0xEE; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Parses what the guest put into the readable part, and checks that no byte is fetched twice.
fn parse(rules: &Rules, readable: &[u8], writable: u64) -> Request {
    let shape = Shape { readable: readable.len() as u64, writable };
    let fetched = RefCell::new(HashSet::new());
    Request::parse(shape, rules, |from, buf| {
        let from = usize::try_from(from).unwrap();
        for index in from..from + buf.len() {
            assert!(fetched.borrow_mut().insert(index), "byte {index} is fetched twice");
        }
        buf.copy_from_slice(&readable[from..from + buf.len()]);
        Ok(())
    })
}

fn with_data(kind: u32, sector: u64, data: usize, writable: u64) -> Request {
    let mut bytes = header(kind, sector);
    bytes.resize(bytes.len() + data, 0);
    parse(&RULES, &bytes, writable)
}

fn with_segments(kind: u32, segments: &[Vec<u8>]) -> Request {
    let mut bytes = header(kind, 0);
    bytes.extend(segments.concat());
    parse(&RULES, &bytes, 1)
}

fn status(request: &Request) -> Status {
    request.command.as_ref().map_or_else(BlockError::status, |_| Status::Ok)
}

#[test]
fn a_read_is_all_writable_bytes_but_the_last() {
    let request = with_data(VIRTIO_BLK_T_IN, 7, 0, 1025);
    assert_eq!(request.kind, RequestKind::Read);
    assert_eq!(request.command.unwrap(), Command::Read(Extent { offset: 7 * 512, len: 1024 }));
}

#[test]
fn a_write_is_all_readable_bytes_after_the_header() {
    let request = with_data(VIRTIO_BLK_T_OUT, 7, 512, 1);
    assert_eq!((request.kind, request.extent().len), (RequestKind::Write, 512));
    assert_eq!(request.command.unwrap(), Command::Write(Extent { offset: 7 * 512, len: 512 }));
}

#[test]
fn flush_and_get_id() {
    let flush = with_data(VIRTIO_BLK_T_FLUSH, 0, 0, 1);
    assert_eq!((flush.kind, flush.command.unwrap()), (RequestKind::Flush, Command::Flush));
    let id = with_data(VIRTIO_BLK_T_GET_ID, 0, 0, 21);
    assert_eq!((id.kind, id.command.unwrap()), (RequestKind::GetId, Command::GetId));
    assert_eq!(status(&with_data(VIRTIO_BLK_T_GET_ID, 0, 0, 20)), Status::IoError);
}

#[test]
fn unknown_types_are_unsupported() {
    for kind in (0..100).chain([u32::MAX, 1 << 31]).filter(|kind| ![0, 1, 4, 8, 11, 13].contains(kind)) {
        let request = with_data(kind, 0, 512, 513);
        assert_eq!((request.kind, status(&request)), (RequestKind::Other, Status::Unsupported), "{kind}");
    }
}

#[test]
fn what_was_not_negotiated_is_unsupported() {
    let rules = Rules { discard: false, write_zeroes: false, ..RULES };
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let bytes = [header(kind, 0), segment(0, 1, 0)].concat();
        assert_eq!(status(&parse(&rules, &bytes, 1)), Status::Unsupported);
    }
}

#[test]
fn a_read_only_disk_takes_no_write() {
    let rules = Rules { read_only: true, ..RULES };
    let bytes = [header(VIRTIO_BLK_T_OUT, 0), vec![0; 512]].concat();
    let request = parse(&rules, &bytes, 1);
    assert!(matches!(request.command, Err(BlockError::ReadOnly)));
    assert_eq!(status(&request), Status::IoError);
}

#[test]
fn sec_07_a_transfer_outside_the_disk_is_refused() {
    for (sector, sectors, fits) in [
        (0, 1000, true),
        (0, 1001, false),
        (999, 1, true),
        (999, 2, false),
        (1000, 0, true),
        (1000, 1, false),
        (1001, 0, false),
        (u64::MAX, 1, false),
        (u64::MAX - 1, 2, false),
        (u64::MAX / 512, 1, false),
        (1 << 55, 1, false),
    ] {
        for request in [
            with_data(VIRTIO_BLK_T_IN, sector, 0, sectors * 512 + 1),
            with_data(VIRTIO_BLK_T_OUT, sector, sectors as usize * 512, 1),
        ] {
            let wanted = if fits { Status::Ok } else { Status::IoError };
            assert_eq!(status(&request), wanted, "{sectors} at {sector}: {request:?}");
        }
    }
}

#[test]
fn sec_07_a_capacity_that_overflows_bytes_refuses_instead() {
    let rules = Rules { capacity: u64::MAX, ..RULES };
    let request = parse(&rules, &header(VIRTIO_BLK_T_IN, 1 << 60), 513);
    assert!(matches!(request.command, Err(BlockError::OutOfRange { .. })));
}

#[test]
fn data_is_a_whole_number_of_sectors() {
    for len in [1, 511, 513, 1023] {
        assert_eq!(status(&with_data(VIRTIO_BLK_T_IN, 0, 0, len + 1)), Status::IoError);
        assert_eq!(status(&with_data(VIRTIO_BLK_T_OUT, 0, len as usize, 1)), Status::IoError);
    }
}

#[test]
fn what_the_disk_cannot_do_is_unsupported() {
    let error = |kind: std::io::ErrorKind| BlockError::Disk(kind.into()).status();
    assert_eq!(error(std::io::ErrorKind::Unsupported), Status::Unsupported);
    assert_eq!(error(std::io::ErrorKind::StorageFull), Status::IoError);
}

#[test]
fn sec_07_a_header_or_status_that_is_not_there_is_an_error() {
    for len in 0..16 {
        let request = parse(&RULES, &header(VIRTIO_BLK_T_IN, 0)[..len], 513);
        assert!(matches!(request.command, Err(BlockError::ShortHeader { .. })));
    }
    let request = parse(&RULES, &header(VIRTIO_BLK_T_IN, 0), 0);
    assert!(matches!(request.command, Err(BlockError::NoStatus)));
}

#[test]
fn segments_of_discard() {
    let request = with_segments(VIRTIO_BLK_T_DISCARD, &[segment(0, 8, 0), segment(990, 10, 0)]);
    assert_eq!((request.kind, request.extent().len), (RequestKind::Discard, 0));
    let extents = vec![Extent { offset: 0, len: 4096 }, Extent { offset: 990 * 512, len: 5120 }];
    assert_eq!(request.command.unwrap(), Command::Discard(extents));
}

#[test]
fn the_segment_of_write_zeroes() {
    for (flags, may_unmap) in [(0, false), (1, true)] {
        let request = with_segments(VIRTIO_BLK_T_WRITE_ZEROES, &[segment(990, 10, flags)]);
        assert_eq!((request.kind, request.extent().len), (RequestKind::WriteZeroes, 5120));
        let extent = Extent { offset: 990 * 512, len: 5120 };
        assert_eq!(request.command.unwrap(), Command::WriteZeroes(ZeroExtent { extent, may_unmap }));
    }
}

#[test]
fn sec_02_no_request_moves_more_than_the_longest() {
    let rules = Rules { capacity: 1 << 40, ..RULES };
    for (len, wanted) in [(MAX_TRANSFER, Status::Ok), (MAX_TRANSFER + 512, Status::IoError)] {
        assert_eq!(
            status(&parse(&rules, &header(VIRTIO_BLK_T_IN, 0), len + STATUS_LEN)),
            wanted,
            "{len} bytes"
        );
        let shape = Shape { readable: HEADER_LEN + len, writable: STATUS_LEN };
        let write = header(VIRTIO_BLK_T_OUT, 0);
        let request = Request::parse(shape, &rules, |from, bytes| {
            assert_eq!(from, 0, "nothing but the header is looked at");
            bytes.copy_from_slice(&write);
            Ok(())
        });
        assert_eq!(status(&request), wanted, "{len} bytes");
    }
}

#[test]
fn flags_of_segments() {
    for (kind, flags, wanted) in [
        (VIRTIO_BLK_T_DISCARD, 1, Status::Unsupported),
        (VIRTIO_BLK_T_DISCARD, 2, Status::Unsupported),
        (VIRTIO_BLK_T_WRITE_ZEROES, 1, Status::Ok),
        (VIRTIO_BLK_T_WRITE_ZEROES, 3, Status::Unsupported),
        (VIRTIO_BLK_T_WRITE_ZEROES, 1 << 31, Status::Unsupported),
    ] {
        let request = with_segments(kind, &[segment(0, 1, flags)]);
        assert_eq!(status(&request), wanted, "type {kind}, flags {flags:#x}");
    }
}

#[test]
fn sec_07_bad_lists_of_segments_are_refused() {
    let rules = Rules { capacity: 1 << 40, ..RULES };
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(status(&with_segments(kind, &[])), Status::IoError);
        let most = if kind == VIRTIO_BLK_T_DISCARD { 16 } else { 1 };
        assert_eq!(status(&with_segments(kind, &vec![segment(0, 1, 0); most])), Status::Ok);
        assert_eq!(status(&with_segments(kind, &vec![segment(0, 1, 0); most + 1])), Status::IoError);
        assert_eq!(status(&with_segments(kind, &[segment(0, 1, 0)[..15].to_vec()])), Status::IoError);
        let outside = with_segments(kind, &[segment(0, 1, 0), segment(1000, 1, 0)]);
        assert!(matches!(outside.command, Err(BlockError::OutOfRange { .. })));
        let max = if kind == VIRTIO_BLK_T_DISCARD { MAX_DISCARD_SECTORS } else { MAX_WRITE_ZEROES_SECTORS };
        for (sectors, wanted) in [(max, Status::Ok), (max + 1, Status::IoError), (u32::MAX, Status::IoError)]
        {
            let bytes = [header(kind, 0), segment(0, sectors, 0)].concat();
            assert_eq!(status(&parse(&rules, &bytes, 1)), wanted, "type {kind}, {sectors} sectors");
        }
    }
}

#[test]
fn what_cannot_be_fetched_is_an_error() {
    let shape = Shape { readable: 16, writable: 513 };
    let request = Request::parse(shape, &RULES, |_, _| Err(BlockError::NoStatus));
    assert!(request.command.is_err());
}

#[test]
fn only_mistakes_of_the_guest_are_told_as_such() {
    assert!(BlockError::ReadOnly.is_guests());
    assert!(!BlockError::FlushLost.is_guests());
    assert!(!BlockError::UnknownType { kind: 99 }.is_guests());
    assert_eq!(BlockError::UnknownType { kind: 99 }.log_level(), tracing::Level::DEBUG);
}

proptest! {
    /// Whatever is accepted lies inside the disk, in whole sectors, and has the length of the chain's data.
    #[test]
    fn sec_06_any_header_and_shape_gives_a_command_or_a_status(
        kind in prop_oneof![4 => 0_u32..16, 1 => any::<u32>()],
        sector in prop_oneof![0_u64..1100, any::<u64>()],
        tail in prop::collection::vec(any::<u8>(), 0..600),
        cut in 0_usize..20,
        writable in prop_oneof![0_u64..5000, any::<u64>()],
        flags in any::<[bool; 3]>(),
        capacity in prop_oneof![0_u64..1100, any::<u64>()],
    ) {
        let rules = Rules { capacity, read_only: flags[0], discard: flags[1], write_zeroes: flags[2] };
        let mut bytes = [header(kind, sector), tail].concat();
        if cut < 16 {
            bytes.truncate(cut);
        }
        let request = parse(&rules, &bytes, writable);
        let inside = |extent: &Extent| {
            extent.offset.is_multiple_of(512) && extent.len.is_multiple_of(512)
                && u128::from(extent.offset) + u128::from(extent.len) <= u128::from(capacity) * 512
        };
        match &request.command {
            Ok(Command::Read(extent)) => prop_assert!(inside(extent) && extent.len == writable - 1),
            Ok(Command::Write(extent)) => {
                prop_assert!(!rules.read_only && inside(extent) && extent.len == bytes.len() as u64 - 16);
            }
            Ok(Command::Discard(list)) => prop_assert!(rules.discard && list.iter().all(inside)),
            Ok(Command::WriteZeroes(zero)) => prop_assert!(rules.write_zeroes && inside(&zero.extent)),
            Ok(Command::Flush) => prop_assert_eq!(kind, VIRTIO_BLK_T_FLUSH),
            Ok(Command::GetId) => prop_assert!(writable > ID_LEN),
            Err(error) => prop_assert_ne!(error.status(), Status::Ok),
        }
        prop_assert!(request.command.is_err() || writable > 0);
    }
}
