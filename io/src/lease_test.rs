use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::*;
use crate::ram::{Backing, PAGE_SIZE};

const MIB: u64 = 1 << 20;

/// 1 MiB at 0, 1 MiB right behind it, and one further up.
fn ram() -> GuestRam {
    GuestRam::new(&[(0, MIB), (MIB, MIB), (16 * MIB, MIB)], Backing::Pages4K).unwrap()
}

fn range(gpa: u64, len: u32) -> GuestRange {
    GuestRange { gpa, len }
}

fn pieces(ram: &GuestRam, ranges: &[GuestRange]) -> Vec<usize> {
    ram.lease(ranges, LeaseUse::Target).unwrap().pieces.iter().map(|piece| piece.len).collect()
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|number| (number * 7 % 251) as u8).collect()
}

#[test]
fn a_lease_is_split_where_regions_meet_and_joined_where_ranges_do() {
    let ram = ram();
    assert_eq!(pieces(&ram, &[range(MIB - 100, 300)]), [100, 200]);
    assert_eq!(pieces(&ram, &[range(0, 100), range(100, 50), range(151, 9)]), [150, 9]);
    assert_eq!(pieces(&ram, &[range(MIB - 10, 10), range(MIB, 10)]), [10, 10]);
    assert_eq!(pieces(&ram, &[range(0, 100), range(50, 100)]), [100, 100], "overlapping ranges stay two");
    assert_eq!(pieces(&ram, &[range(4, 0), range(2 * MIB, 0)]), [0; 0]);
}

#[test]
fn a_lease_that_grows_and_shrinks_is_the_one_of_what_is_left() {
    let ram = ram();
    let ranges =
        [range(0, 100), range(100, 50), range(300, 9), range(MIB - 10, 20), range(MIB + 10, 5), range(7, 1)];
    for split in 0..=ranges.len() {
        let (first, rest) = ranges.split_at(split);
        let grown = ram.lease(first, LeaseUse::Target).unwrap().and(rest).unwrap();
        let whole = ram.lease(&ranges, LeaseUse::Target).unwrap();
        assert_eq!((&grown.pieces, grown.len()), (&whole.pieces, whole.len()), "from {split} on");
    }
    for gone in [0, 1, 99, 100, 150, 159, 160, 168, 169, 183, 184, 185, 1000] {
        let left = ram.lease(&ranges, LeaseUse::Target).unwrap().without(gone);
        let whole = ram.lease(&ranges, LeaseUse::Target).unwrap();
        let expected: Vec<_> = whole.addresses(gone).collect();
        assert_eq!(left.addresses(0).collect::<Vec<_>>(), expected, "without {gone}");
        assert_eq!(left.len(), 185_u64.saturating_sub(gone));
    }
}

#[test]
fn sec_07_a_lease_does_not_grow_out_of_guest_ram() {
    let ram = ram();
    let lease = |ranges: &[GuestRange]| ram.lease(ranges, LeaseUse::Target).unwrap();
    assert!(matches!(lease(&[range(0, 1)]).and(&[range(2 * MIB - 1, 2)]), Err(RamError::OutOfBounds { .. })));
    let many: Vec<_> = (0..MAX_PIECES as u64).map(|n| range(n * 2, 1)).collect();
    assert!(matches!(lease(&many).and(&[range(MIB, 1)]), Err(RamError::TooManyPieces { .. })));
    assert!(matches!(Lease::lost().and(&[range(0, 1)]), Err(RamError::OutOfBounds { .. })));
}

#[test]
fn a_lease_names_the_memory_that_regions_are_mapped_at() {
    let ram = ram();
    let regions: Vec<_> = ram.regions().collect();
    let lease = ram.lease(&[range(MIB - 16, 32), range(17 * MIB - 8, 8)], LeaseUse::Target).unwrap();
    let addrs: Vec<u64> = lease.pieces.iter().map(|piece| piece.addr as u64).collect();
    assert_eq!(
        addrs,
        [regions[0].host_addr + MIB - 16, regions[1].host_addr, regions[2].host_addr + MIB - 8]
    );
    assert_eq!((lease.len(), lease.is_empty()), (40, false));
}

#[test]
fn sec_07_no_lease_leaves_guest_ram() {
    let ram = ram();
    for bad in [
        range(2 * MIB, 1),
        range(2 * MIB - 1, 2),
        range(16 * MIB - 1, 2),
        range(17 * MIB - 1, 2),
        range(u64::MAX, 1),
        range(u64::MAX, u32::MAX),
        range(u64::MAX - 1, u32::MAX),
        range(0, u32::MAX),
    ] {
        let ranges = [range(0, 16), bad];
        let error = ram.lease(&ranges, LeaseUse::Source).unwrap_err();
        assert!(matches!(error, RamError::OutOfBounds { gpa, .. } if gpa == bad.gpa), "{bad:?}: {error}");
    }
}

#[test]
fn sec_07_a_lease_has_no_more_pieces_than_the_kernel_takes() {
    let ram = ram();
    let apart = |count: u64| (0..count).map(|number| range(number * 16, 8)).collect::<Vec<_>>();
    assert_eq!(pieces(&ram, &apart(1024)).len(), MAX_PIECES);
    let error = ram.lease(&apart(1025), LeaseUse::Target).unwrap_err();
    assert!(matches!(error, RamError::TooManyPieces { pieces: 1025 }), "{error}");
}

#[test]
fn copies_go_over_all_pieces() {
    let ram = ram();
    let ranges = [range(MIB - 5, 10), range(100, 7), range(16 * MIB, 3)];
    let target = ram.lease(&ranges, LeaseUse::Target).unwrap();
    target.copy_in(&bytes(20), 0).unwrap();
    let source = ram.lease(&ranges, LeaseUse::Source).unwrap();
    let mut out = vec![0; 20];
    source.copy_out(&mut out, 0).unwrap();
    assert_eq!(out, bytes(20));
    let mut middle = vec![0; 9];
    source.copy_out(&mut middle, 4).unwrap();
    assert_eq!(middle, bytes(20)[4..13]);
    target.fill_zero(3, 14).unwrap();
    source.copy_out(&mut out, 0).unwrap();
    assert_eq!((&out[..3], &out[3..17], &out[17..]), (&bytes(20)[..3], [0; 14].as_slice(), &bytes(20)[17..]));
}

#[test]
fn zeroes_of_any_length_end_where_they_should() {
    let ram = ram();
    let all = ram.lease(&[range(0, 0x10_0000)], LeaseUse::Target).unwrap();
    all.copy_in(&vec![0xFF; MIB as usize], 0).unwrap();
    all.fill_zero(10, 200_000).unwrap();
    let mut out = vec![0; 200_020];
    ram.read(0, &mut out).unwrap();
    assert!(out[..10].iter().chain(&out[200_010..]).all(|byte| *byte == 0xFF));
    assert!(out[10..200_010].iter().all(|byte| *byte == 0));
}

#[test]
fn copies_stay_within_the_lease_and_its_use() {
    let ram = ram();
    let target = ram.lease(&[range(0, 16)], LeaseUse::Target).unwrap();
    for (at, len) in [(0, 17), (16, 1), (u64::MAX, 1), (u64::MAX, 16)] {
        let error = target.copy_in(&vec![1; len], at).unwrap_err();
        assert!(matches!(error, RamError::OutsideLease { size: 16, .. }), "{error}");
        assert!(target.fill_zero(at, len as u64).is_err());
    }
    let source = ram.lease(&[range(0, 16)], LeaseUse::Source).unwrap();
    // What the guest offered for reading is never written.
    assert!(matches!(source.copy_in(&[1], 0), Err(RamError::LeaseUse { wanted: LeaseUse::Target })));
    assert!(matches!(source.fill_zero(0, 1), Err(RamError::LeaseUse { .. })));
    assert!(matches!(target.copy_out(&mut [0], 0), Err(RamError::LeaseUse { wanted: LeaseUse::Source })));
    assert_eq!(ram.take_host_dirty(), [0u64; 0]);
}

#[test]
fn alignment_is_of_every_piece_that_is_left() {
    let ram = ram();
    let lease = |ranges: &[GuestRange]| ram.lease(ranges, LeaseUse::Target).unwrap();
    assert!(lease(&[range(4096, 4096), range(0x8000, 512)]).is_aligned(0, 512, 512));
    assert!(!lease(&[range(4096, 4096), range(0x8000, 512)]).is_aligned(0, 512, 4096));
    assert!(!lease(&[range(4096 + 4, 512)]).is_aligned(0, 512, 512));
    assert!(lease(&[range(4096 + 4, 512)]).is_aligned(0, 4, 512));
    assert!(lease(&[range(1, 3)]).is_aligned(0, 1, 0));
    assert!(!lease(&[range(4096, 8192)]).is_aligned(100, 512, 512));
    assert!(lease(&[range(4096, 8192)]).is_aligned(512, 512, 512));
    // The bad piece is done with.
    assert!(lease(&[range(3, 509), range(4096, 512)]).is_aligned(509, 512, 512));
}

#[test]
fn the_kernel_reads_and_writes_leased_memory() {
    let ram = ram();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes(3000), 0).unwrap();
    let ranges = [range(MIB - 1000, 1500), range(16 * MIB, 1500)];
    let mut target = ram.lease(&ranges, LeaseUse::Target).unwrap();
    assert_eq!(target.transfer(file.as_fd(), 0, 0).unwrap(), 3000);
    let mut source = ram.lease(&ranges, LeaseUse::Source).unwrap();
    let mut out = vec![0; 3000];
    source.copy_out(&mut out, 0).unwrap();
    assert_eq!(out, bytes(3000));
    // From the middle of a piece on.
    assert_eq!(source.transfer(file.as_fd(), 1200, 5000).unwrap(), 1800);
    let mut written = vec![0; 1800];
    file.read_exact_at(&mut written, 5000).unwrap();
    assert_eq!(written, bytes(3000)[1200..]);
    // And the lease is whole again.
    source.copy_out(&mut out, 0).unwrap();
    assert_eq!(out, bytes(3000));
    assert_eq!(source.transfer(file.as_fd(), 3000, 0).unwrap(), 0);
    assert_eq!(source.transfer(file.as_fd(), u64::MAX, 0).unwrap(), 0);
    assert_eq!(source.transfer(file.as_fd(), 0, u64::MAX), Err(rustix::io::Errno::INVAL));
}

#[test]
fn what_the_kernel_wrote_is_dirty_and_nothing_else() {
    let ram = ram();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes(3 * PAGE_SIZE as usize), 0).unwrap();
    let ranges = [range(MIB - 4096, 8192), range(16 * MIB + 8192, 4096)];
    let mut source = ram.lease(&ranges, LeaseUse::Source).unwrap();
    source.transfer(file.as_fd(), 0, 0).unwrap();
    assert_eq!(ram.take_host_dirty(), [0u64; 0], "the kernel only read");
    let mut target = ram.lease(&ranges, LeaseUse::Target).unwrap();
    target.transfer(file.as_fd(), 0, 1 << 20).unwrap();
    assert_eq!(ram.take_host_dirty(), [0u64; 0], "nothing is beyond the end");
    target.transfer(file.as_fd(), 4096, 0).unwrap();
    assert_eq!(ram.take_host_dirty(), [MIB, 16 * MIB + 8192], "not what was done before");
    target.transfer(file.as_fd(), 0, 0).unwrap();
    assert_eq!(ram.take_host_dirty(), [MIB - 4096, MIB, 16 * MIB + 8192]);
    drop(target);
    assert_eq!(ram.take_host_dirty(), [0u64; 0]);
}

#[test]
fn what_the_kernel_is_told_of_stays_when_the_lease_moves() {
    let ram = ram();
    for count in [1, INLINE as u64, INLINE as u64 + 1] {
        let ranges: Vec<_> = (0..count).map(|n| range(n * 8192, 100)).collect();
        let mut lease = ram.lease(&ranges, LeaseUse::Target).unwrap();
        let place = (&raw const lease).addr();
        let (told, told_count) = lease.expose(0);
        assert!(!(place..place + size_of::<Lease>()).contains(&told.addr()), "{count}");
        let mut moved = Box::new(lease);
        assert_eq!((moved.pieces.as_ptr().cast(), moved.pieces.len()), (told, told_count as usize));
        moved.settle(Some(0));
    }
}

#[test]
fn what_nobody_knows_about_is_dirty() {
    let ram = ram();
    let lease = || ram.lease(&[range(0, 8192)], LeaseUse::Target).unwrap();
    let mut short = lease();
    short.expose(0);
    short.settle(Some(100));
    assert_eq!(ram.take_host_dirty(), [0, 4096], "direct I/O writes whole blocks");
    let mut failed = lease();
    failed.expose(4096);
    failed.settle(None);
    assert_eq!(ram.take_host_dirty(), [4096]);
    let mut abandoned = lease();
    abandoned.expose(0);
    drop(abandoned);
    assert_eq!(ram.take_host_dirty(), [0, 4096]);
    drop(lease());
    assert_eq!(ram.take_host_dirty(), [0u64; 0], "the kernel never had it");
}

#[test]
fn a_lease_keeps_guest_ram() {
    let ram = ram();
    let file = tempfile::tempfile().unwrap();
    let mut source = ram.lease(&[range(0, 4096)], LeaseUse::Source).unwrap();
    ram.write(0, &bytes(4096)).unwrap();
    drop(ram);
    assert_eq!(source.transfer(file.as_fd(), 0, 0).unwrap(), 4096);
    let mut out = vec![0; 4096];
    file.read_exact_at(&mut out, 0).unwrap();
    assert_eq!(out, bytes(4096));
}

#[test]
fn a_lost_lease_has_nothing() {
    let lost = Lease::lost();
    assert!(lost.is_empty() && lost.is_aligned(0, 4096, 4096));
    assert!(lost.copy_in(&[1], 0).is_err());
    fn is_send<T: Send>(_: &T) {}
    is_send(&lost);
}

#[test]
fn sec_02_the_kernel_is_told_of_a_bounded_part_at_a_time() {
    let ram = ram();
    let most = MAX_TRANSFER as usize;
    let whole = [1000, MIB as usize, 2 * most];
    let ranges = [range(16 * MIB, 1000), range(0, MIB as u32), range(MIB, 2 * MAX_TRANSFER as u32)];
    let mut lease = ram.lease(&ranges, LeaseUse::Target).unwrap();
    let lens = |lease: &Lease| lease.pieces.iter().map(|piece| piece.len).collect::<Vec<_>>();
    assert_eq!(lens(&lease), whole);
    for (from, count, cut) in [
        (0, 2, [1000, most - 1000, 2 * most]),
        (999, 2, [1, most - 1, 2 * most]),
        // From the middle of a piece to the middle of the same.
        (1000 + 4096, 1, [1000, most, 2 * most]),
        (1000 + MIB - 4096, 2, [1000, 4096, most - 4096]),
        (1000 + MIB + MAX_TRANSFER, 1, [1000, MIB as usize, most]),
        (1000 + MIB + 2 * MAX_TRANSFER - 1, 1, [1000, MIB as usize, 1]),
        (1000 + MIB + 2 * MAX_TRANSFER, 0, whole),
    ] {
        assert_eq!((lease.expose(from).1, lens(&lease)), (count, cut.to_vec()), "from {from}");
        lease.settle(Some(0));
        assert_eq!(lens(&lease), whole, "from {from}");
    }
    ram.take_host_dirty();
    lease.expose(1000 + 4096);
    lease.settle(Some(most));
    let told: Vec<u64> = (1..=MAX_TRANSFER / PAGE_SIZE).map(|page| page * PAGE_SIZE).collect();
    assert_eq!(ram.take_host_dirty(), told);
}
