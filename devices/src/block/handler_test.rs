//! Requests on chains from a real ring, against a disk that does what the test says.

use proptest::prelude::*;
use ringlet_io::CostKind;
use ringlet_metrics::{GuestErrorKind, RequestStatus};

use super::*;
use crate::block::Cache;
use crate::block::test_util::{Bench, DATA, HEADER, Op, Part, STATUS, TestDisk, UNTOUCHED};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn segments(bench: &Bench, list: &[(u64, u32, u32)]) -> Part {
    let mut bytes = Vec::new();
    for (sector, sectors, flags) in list {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bench.ram.write(DATA, &bytes).unwrap();
    (DATA, bytes.len() as u32, false)
}

#[test]
fn a_read_fills_its_buffers_in_order() {
    let mut bench = Bench::new();
    let buffers = [(DATA + 0x8000, 100, true), (DATA, 412, true), (DATA + 0x4000, 512, true)];
    assert_eq!(bench.request(IN, 5, &buffers), (OK, 1025));
    assert_eq!(bench.bytes(DATA + 0x8000, 100), [5; 100]);
    assert_eq!(bench.bytes(DATA, 412), [5; 412]);
    assert_eq!(bench.bytes(DATA + 0x4000, 512), [6; 512]);
    assert_eq!(bench.disk.take_log(), [Op::Read { offset: 5 * 512, len: 1024 }]);
}

#[test]
fn header_data_and_status_may_share_descriptors_and_cross_them() {
    let mut bench = Bench::new();
    bench.header(OUT, 3);
    bench.fill(HEADER + 16, 512, 0x77);
    let parts = [(HEADER, 7, false), (HEADER + 7, 100, false), (HEADER + 107, 421, false), (STATUS, 1, true)];
    assert_eq!(bench.start(&parts).1.poll(), Some(1));
    bench.header(IN, 3);
    assert_eq!(bench.start(&[(HEADER, 16, false), (DATA, 513, true)]).1.poll(), Some(513));
    assert_eq!(bench.bytes(DATA, 513), [vec![0x77; 512], vec![OK]].concat());
}

#[test]
fn a_request_of_nothing_is_done_without_the_disk() {
    let mut bench = Bench::new();
    assert_eq!(bench.request(IN, 64, &[]), (OK, 1));
    assert_eq!(bench.request(OUT, 64, &[]), (OK, 1));
    assert_eq!(bench.disk.take_log(), []);
}

#[test]
fn the_serial_is_padded_to_20_bytes() {
    let mut bench = Bench::new();
    bench.fill(DATA, 21, UNTOUCHED);
    assert_eq!(bench.request(GET_ID, 0, &[(DATA, 20, true)]), (OK, 21));
    assert_eq!(bench.request(GET_ID, 0, &[(DATA, 30, true)]), (OK, 20), "the status comes later");
    assert_eq!(bench.bytes(DATA, 21), b"serial-of-the-disk\0\0\xA5");
    assert_eq!(bench.request(GET_ID, 0, &[(DATA, 19, true)]), (IOERR, 0));
}

#[test]
fn a_serial_is_cut_at_20_bytes() {
    assert_eq!(Serial::new("0123456789abcdefghijXYZ").bytes(), b"0123456789abcdefghij");
    assert_eq!(Serial::new("").bytes(), &[0; 20]);
}

#[test]
fn discard_and_write_zeroes_reach_the_disk_segment_by_segment() {
    let mut bench = Bench::new();
    let list = segments(&bench, &[(0, 8, 0), (9, 0, 0), (60, 4, 0)]);
    assert_eq!(bench.request(DISCARD, 0, &[list]), (OK, 1));
    let discard = |offset, len| Op::Discard { offset, len };
    assert_eq!(bench.disk.take_log(), [discard(0, 4096), discard(60 * 512, 2048)]);
    let zeroes = |offset, len, may_unmap| Op::WriteZeroes { offset, len, may_unmap };
    for (segment, done) in [((0, 8, 1), zeroes(0, 4096, true)), ((10, 1, 0), zeroes(5120, 512, false))] {
        let list = segments(&bench, &[segment]);
        assert_eq!(bench.request(WRITE_ZEROES, 0, &[list]), (OK, 1));
        assert_eq!(bench.disk.take_log(), [done]);
    }
    assert_eq!(bench.metrics.bytes(RequestKind::WriteZeroes), 4608);
}

#[test]
fn a_bad_segment_keeps_the_good_ones_from_being_done() {
    let mut bench = Bench::new();
    for (bad, status) in [((64, 1, 0), IOERR), ((0, 1, 2), UNSUPP)] {
        for (kind, list) in [(DISCARD, vec![(0, 8, 0), bad]), (WRITE_ZEROES, vec![bad])] {
            let list = segments(&bench, &list);
            assert_eq!(bench.request(kind, 0, &[list]), (status, 1));
        }
    }
    assert_eq!(bench.disk.take_log(), []);
}

#[test]
fn sec_02_a_cost_is_what_the_disk_moves_for_it() {
    let mut bench = Bench::new();
    bench.disk.set_info(|info| info.block_size = 4096);
    let cost = |bench: &mut Bench, kind, data: Part| {
        bench.header(kind, 0);
        bench.start(&[(HEADER, 16, false), data, (STATUS, 1, true)]).0
    };
    assert_eq!(cost(&mut bench, IN, (DATA, 512, true)), Cost::read(4096));
    assert_eq!(cost(&mut bench, OUT, (DATA, 4096, false)), Cost::write(4096));
    assert_eq!(cost(&mut bench, OUT, (DATA, 512, false)), Cost::write(8192), "it reads the block first");
    let list = segments(&bench, &[(0, 9, 0)]);
    assert_eq!(cost(&mut bench, WRITE_ZEROES, list), Cost::write(16_384));
    assert_eq!(cost(&mut bench, IN, (DATA, 1000, true)), Cost::read(0), "refused");
}

#[test]
fn a_cost_is_what_the_request_moves() {
    let mut bench = Bench::new();
    let cost = |bench: &mut Bench, kind, data: Part| {
        bench.header(kind, 0);
        bench.start(&[(HEADER, 16, false), data, (STATUS, 1, true)]).0
    };
    assert_eq!(cost(&mut bench, IN, (DATA, 1024, true)), Cost::read(1024));
    assert_eq!(cost(&mut bench, OUT, (DATA, 512, false)), Cost::write(512));
    assert_eq!(cost(&mut bench, IN, (DATA, 1000, true)), Cost::read(0), "refused, yet an operation");
    let list = segments(&bench, &[(0, 8, 0), (9, 1, 0)]);
    assert_eq!(cost(&mut bench, DISCARD, list).kind, CostKind::Other);
    let list = segments(&bench, &[(0, 9, 0)]);
    assert_eq!(cost(&mut bench, WRITE_ZEROES, list), Cost::write(4608));
    assert_eq!(cost(&mut bench, FLUSH, (DATA, 1, false)), Cost::other());
    assert_eq!(cost(&mut bench, 99, (DATA, 512, true)), Cost::other());
}

#[test]
fn what_happens_is_counted() {
    let mut bench = Bench::new();
    let _ = bench.request(IN, 0, &[(DATA, 1024, true)]);
    let _ = bench.request(IN, 64, &[(DATA, 512, true)]);
    let _ = bench.request(99, 0, &[]);
    let requests = |kind, status| bench.metrics.requests(kind, status);
    assert_eq!(requests(RequestKind::Read, RequestStatus::Ok), 1);
    assert_eq!(requests(RequestKind::Read, RequestStatus::IoError), 1);
    assert_eq!(requests(RequestKind::Other, RequestStatus::Unsupported), 1);
    assert_eq!(bench.metrics.bytes(RequestKind::Read), 1024);
    assert_eq!(bench.metrics.latency(RequestKind::Read).unwrap().count, 2);
    assert_eq!(bench.vm.guest_errors.get(GuestErrorKind::BadRequest), 1, "an unknown type is a question");
}

#[test]
fn sec_07_a_read_only_disk_is_never_changed() {
    let disk = TestDisk::new(64);
    disk.set_info(|info| {
        (info.read_only, info.discard, info.write_zeroes) = (true, false, false);
    });
    let mut bench = Bench::with(disk, Cache::Writeback);
    assert_eq!(bench.request(OUT, 0, &[(DATA, 512, false)]), (IOERR, 1));
    for kind in [DISCARD, WRITE_ZEROES] {
        let list = segments(&bench, &[(0, 8, 0)]);
        assert_eq!(bench.request(kind, 0, &[list]), (UNSUPP, 1));
    }
    assert_eq!(bench.disk.take_log(), []);
    assert_eq!(bench.request(IN, 0, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(bench.request(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn sec_12_a_read_that_fails_writes_the_status_and_nothing_else() {
    let mut bench = Bench::new();
    bench.fill(DATA, 0x1000, UNTOUCHED);
    bench.disk.set_failing(true);
    assert_eq!(
        bench.request(IN, 0, &[(DATA, 4096, true)]),
        (IOERR, 0),
        "the status does not follow what was written"
    );
    bench.disk.set_failing(false);
    assert_eq!(bench.request(IN, 63, &[(DATA, 1024, true)]), (IOERR, 0), "it leaves the disk");
    assert_eq!(bench.request(IN, 0, &[(DATA, 1000, true)]), (IOERR, 0), "no whole number of sectors");
    assert_eq!(bench.request(77, 0, &[(DATA, 4096, true)]), (UNSUPP, 0));
    assert_eq!(bench.request(FLUSH, 0, &[(DATA, 4096, true)]), (OK, 0), "data that nobody asked for");
    assert_eq!(bench.bytes(DATA, 0x1000), [UNTOUCHED; 0x1000]);
}

#[test]
fn sec_11_a_header_that_changes_after_it_was_copied_changes_nothing() {
    let mut bench = Bench::new();
    bench.fill(DATA, 512, UNTOUCHED);
    bench.disk.hold();
    bench.header(IN, 7);
    let mut job = bench.start(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]).1;
    bench.header(OUT, 9);
    assert_eq!(job.poll(), None);
    bench.header(DISCARD, u64::MAX);
    bench.disk.release(0, true);
    assert_eq!(job.poll(), Some(513));
    assert_eq!(bench.disk.take_log(), [Op::Read { offset: 7 * 512, len: 512 }]);
    assert_eq!(bench.bytes(DATA, 512), [7; 512]);
}

#[test]
fn sec_08_a_request_that_is_dropped_writes_nothing() {
    let mut bench = Bench::new();
    bench.fill(DATA, 512, UNTOUCHED);
    bench.fill(STATUS, 1, UNTOUCHED);
    bench.disk.hold();
    bench.header(IN, 7);
    let mut job = bench.start(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]).1;
    assert_eq!(job.poll(), None);
    drop(job);
    assert_eq!(bench.bytes(DATA, 512), [UNTOUCHED; 512]);
    assert_eq!(bench.bytes(STATUS, 1), [UNTOUCHED]);
}

#[test]
fn sec_07_without_a_place_for_the_status_nothing_is_done() {
    let mut bench = Bench::new();
    bench.header(OUT, 0);
    assert_eq!(bench.start(&[(HEADER, 16, false), (DATA, 512, false)]).1.poll(), Some(0));
    assert_eq!(bench.disk.take_log(), []);
    assert_eq!(bench.vm.guest_errors.get(GuestErrorKind::BadRequest), 1);
}

#[test]
fn requests_end_in_the_order_of_the_disk() {
    let mut bench = Bench::new();
    bench.disk.hold();
    let mut jobs: Vec<_> = (0..4_u64)
        .map(|sector| {
            bench.header(IN, sector);
            let parts = [(HEADER, 16, false), (DATA + sector * 0x1000, 513, true)];
            let mut job = bench.start(&parts).1;
            assert_eq!(job.poll(), None);
            job
        })
        .collect();
    for last in [2, 0, 1, 0] {
        bench.disk.release(last, true);
        let mut job = jobs.remove(last);
        assert_eq!(job.poll(), Some(513));
        assert!(jobs.iter_mut().all(|job| job.poll().is_none()));
    }
    for sector in 0..4_u64 {
        assert_eq!(bench.bytes(DATA + sector * 0x1000, 512), [sector as u8; 512]);
    }
}

#[test]
fn an_unsafe_cache_answers_flushes_and_does_none() {
    let mut bench = Bench::with(TestDisk::new(64), Cache::Unsafe);
    bench.handler.shared.durability.set_writeback(false);
    assert_eq!(bench.request(OUT, 0, &[(DATA, 512, false)]), (OK, 1));
    assert_eq!(bench.request(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(bench.disk.take_log(), [Op::Write { offset: 0, len: 512 }]);
}

#[test]
fn every_kind_of_change_is_durable_in_writethrough_mode() {
    let mut bench = Bench::new();
    bench.handler.shared.durability.set_writeback(false);
    let list = segments(&bench, &[(0, 8, 0)]);
    for (kind, data) in [(OUT, (DATA + 0x1000, 512, false)), (DISCARD, list), (WRITE_ZEROES, list)] {
        assert_eq!(bench.request(kind, 0, &[data]), (OK, 1));
        let log = bench.disk.take_log();
        assert_eq!((log.len(), log.last()), (2, Some(&Op::Flush)), "type {kind}");
    }
    assert_eq!(bench.request(IN, 0, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(bench.disk.take_log().len(), 1, "a read changes nothing");
}

/// Lengths of parts around the sizes that matter.
fn parts() -> impl Strategy<Value = Vec<u32>> {
    let len = prop_oneof![Just(1_u32), Just(16), Just(512), Just(4096), 1_u32..600];
    prop::collection::vec(len, 0..6)
}

proptest! {
    /// Whatever the header and the shape: one byte of status if there is room, no panic, and no byte of guest RAM
    /// changes that is not in the writable part.
    #[test]
    fn sec_06_any_header_and_any_chain_get_a_status(
        header in any::<[u8; 16]>(),
        kind in prop_oneof![4 => 0_u32..16, 1 => any::<u32>()],
        sector in prop_oneof![0_u64..70, any::<u64>()],
        readable in parts(),
        writable in parts(),
        fails in any::<bool>(),
        writeback in any::<bool>(),
    ) {
        prop_assume!(!readable.is_empty() || !writable.is_empty());
        let mut bench = Bench::new();
        bench.disk.set_failing(fails);
        bench.handler.shared.durability.set_writeback(writeback);
        let mut bytes = header;
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bench.fill(0x1_0000, 0xF_0000 - 0x1_0000, UNTOUCHED);
        // Readable parts follow one another; writable ones lie apart, between bytes that must not change.
        let mut next = HEADER;
        let mut chain: Vec<Part> = Vec::new();
        for len in readable {
            chain.push((next, len, false));
            next += u64::from(len);
        }
        bench.ram.write(HEADER, &bytes).unwrap();
        let mut gpa = 0x4_0000;
        for len in &writable {
            chain.push((gpa, *len, true));
            gpa += 0x2000;
        }
        let total: u32 = writable.iter().sum();
        let written = bench.start(&chain).1.poll().unwrap();
        prop_assert!(written <= total);
        for (index, len) in writable.iter().enumerate() {
            let gpa = 0x4_0000 + index as u64 * 0x2000;
            let after = bench.bytes(gpa + u64::from(*len), 0x2000 - *len as usize);
            prop_assert!(after.iter().all(|byte| *byte == UNTOUCHED));
        }
        if let Some(len) = writable.last() {
            let status = 0x4_0000 + (writable.len() as u64 - 1) * 0x2000 + u64::from(*len) - 1;
            let status = bench.bytes(status, 1)[0];
            prop_assert!(status <= UNSUPP);
            prop_assert!(status == OK || written == u32::from(total == 1), "nothing is claimed that was not written");
        }
        let counted: u64 = RequestKind::ALL.iter().flat_map(|kind| {
            RequestStatus::ALL.iter().map(|status| bench.metrics.requests(*kind, *status))
        }).max().unwrap();
        prop_assert_eq!(counted, 1);
    }
}
