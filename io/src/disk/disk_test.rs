use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::buffers::Buffers;
use crate::clock::MonoTime;
use crate::engine::EngineKind;
use crate::hold::{Bound, Hold};
use crate::lease::{GuestRange, LeaseUse};
use crate::ram::{Backing, GuestRam};
use crate::testing::*;

on_both_engines!(
    sec_12_the_null_disk_reads_as_zeroes,
    uninitialized_reads_leave_what_the_guest_had,
    sec_12_memory_that_was_never_written_reads_as_zeroes,
    memory_keeps_what_was_written,
    sec_07_requests_stay_within_a_disk_of_any_sort,
    nothing_changes_a_read_only_disk_of_any_sort,
    a_size_that_no_disk_can_have_is_refused,
    a_long_read_of_nothing_lets_others_go_on,
    sec_02_many_long_reads_have_no_more_of_a_turn_than_one,
    sec_02_what_is_copied_in_a_turn_is_bounded_whatever_is_under_way,
    sec_02_what_was_begun_waits_for_cpu_time_unless_it_is_drained,
);

const MIB: u64 = 1 << 20;

fn ram() -> GuestRam {
    GuestRam::new(&[(0, 8 * MIB)], Backing::Pages4K).unwrap()
}

fn lease(ram: &GuestRam, gpa: u64, len: u64, use_: LeaseUse) -> Lease {
    ram.lease(&[GuestRange { gpa, len: len as u32 }], use_).unwrap()
}

fn guest_bytes(ram: &GuestRam, gpa: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    ram.read(gpa, &mut bytes).unwrap();
    bytes
}

fn null(size: u64) -> DiskSource {
    DiskSource::Null { size, read_only: false, uninitialized_reads: false }
}

fn memory(size: u64) -> DiskSource {
    DiskSource::Memory { size, read_only: false }
}

fn attach(cx: &ShardContext, source: DiskSource) -> Rc<dyn Disk> {
    source.attach(cx, &Owner::new(vm_metrics()), || ()).unwrap()
}

/// A disk of each sort, with `size` bytes.
fn of_every_sort(size: u64, read_only: bool) -> (tempfile::TempDir, Vec<DiskSource>) {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    let file = DiskFile::open(&path, DiskOptions { read_only, direct: false }).unwrap();
    let sources = vec![
        DiskSource::File(file),
        DiskSource::Memory { size, read_only },
        DiskSource::Null { size, read_only, uninitialized_reads: false },
        DiskSource::Null { size, read_only, uninitialized_reads: true },
    ];
    (folder, sources)
}

fn sec_12_the_null_disk_reads_as_zeroes(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (ram, disk) = (ram(), attach(&cx, null(64 * MIB)));
        ram.write(0, &vec![0xEE; 8 * MIB as usize]).unwrap();
        ram.take_host_dirty();
        let ranges = [GuestRange { gpa: 100, len: 1000 }, GuestRange { gpa: 2 * MIB, len: 24 }];
        disk.read(ram.lease(&ranges, LeaseUse::Target).unwrap(), 512).await.0.unwrap();
        assert_eq!(guest_bytes(&ram, 100, 1000), [0; 1000]);
        assert_eq!(guest_bytes(&ram, 2 * MIB, 24), [0; 24]);
        assert_eq!(ram.take_host_dirty(), [0, 2 * MIB]);
        for (gpa, len) in [(0, 100), (1100, 100), (2 * MIB - 100, 100), (2 * MIB + 24, 100)] {
            assert!(guest_bytes(&ram, gpa, len).iter().all(|byte| *byte == 0xEE), "{gpa:#x}");
        }
        // Also after a write, and in many pieces.
        disk.write(lease(&ram, 4 * MIB, MIB, LeaseUse::Source), 0).await.0.unwrap();
        disk.read(lease(&ram, 3 * MIB, 4 * MIB + 512, LeaseUse::Target), 0).await.0.unwrap();
        assert!(guest_bytes(&ram, 3 * MIB, 4 * MIB + 512).iter().all(|byte| *byte == 0));
        assert!(guest_bytes(&ram, 7 * MIB + 512, 512).iter().all(|byte| *byte == 0xEE));
    });
}

fn uninitialized_reads_leave_what_the_guest_had(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let source = DiskSource::Null { size: MIB, read_only: false, uninitialized_reads: true };
        let (ram, disk) = (ram(), attach(&cx, source));
        ram.write(0, &[0xEE; 4096]).unwrap();
        disk.read(lease(&ram, 0, 4096, LeaseUse::Target), 0).await.0.unwrap();
        assert_eq!(guest_bytes(&ram, 0, 4096), [0xEE; 4096]);
    });
}

fn sec_12_memory_that_was_never_written_reads_as_zeroes(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (ram, disk) = (ram(), attach(&cx, memory(1 << 40)));
        ram.write(0, &vec![0xEE; MIB as usize]).unwrap();
        disk.read(lease(&ram, 0, MIB, LeaseUse::Target), (1 << 40) - MIB).await.0.unwrap();
        assert!(guest_bytes(&ram, 0, MIB).iter().all(|byte| *byte == 0));
    });
}

fn memory_keeps_what_was_written(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (ram, disk) = (ram(), attach(&cx, memory(4 * MIB)));
        let info = disk.info();
        assert!(info.discard && info.write_zeroes && !info.read_only);
        let bytes: Vec<u8> = (0..MIB).map(|number| (number % 251) as u8).collect();
        ram.write(512, &bytes).unwrap();
        disk.write(lease(&ram, 512, MIB, LeaseUse::Source), 512).await.0.unwrap();
        disk.flush().await.unwrap();
        disk.discard(512, 1024).await.unwrap();
        disk.write_zeroes(8192, 4096, false).await.unwrap();
        disk.read(lease(&ram, 4 * MIB, 2 * MIB, LeaseUse::Target), 0).await.0.unwrap();
        let mut expected = [vec![0; 512], bytes, vec![0; MIB as usize - 512]].concat();
        expected[512..1536].fill(0);
        expected[8192..12_288].fill(0);
        assert!(guest_bytes(&ram, 4 * MIB, 2 * MIB) == expected);
        assert_eq!(disk.refresh_size().unwrap(), 4 * MIB);
    });
}

fn sec_07_requests_stay_within_a_disk_of_any_sort(engine: EngineKind) {
    let (folder, sources) = of_every_sort(MIB, false);
    on_shard(engine, |cx| async move {
        let ram = ram();
        for disk in sources.into_iter().map(|source| attach(&cx, source)) {
            for (offset, len) in [
                (MIB, 512),
                (MIB - 512, 1024),
                (0, MIB + 512),
                (u64::MAX - 511, 512),
                (u64::MAX - 511, 1024),
                (1 << 63, 512),
                (1, 512),
                (512, 511),
                (0, 100),
            ] {
                let invalid = |result: io::Result<()>| {
                    assert_eq!(
                        result.unwrap_err().kind(),
                        ErrorKind::InvalidInput,
                        "{disk:?} {offset} {len}"
                    );
                };
                invalid(disk.read(lease(&ram, 0, len, LeaseUse::Target), offset).await.0);
                invalid(disk.write(lease(&ram, 0, len, LeaseUse::Source), offset).await.0);
                invalid(disk.discard(offset, len).await);
                invalid(disk.write_zeroes(offset, len, true).await);
                invalid(disk.write_zeroes(offset, len, false).await);
            }
            for (offset, len) in [(0, u64::MAX), (512, u64::MAX - 511), (u64::MAX - 511, u64::MAX - 511)] {
                assert!(disk.discard(offset, len).await.is_err());
                assert!(disk.write_zeroes(offset, len, true).await.is_err());
            }
            // Up to the very end, and nothing at all.
            disk.write(lease(&ram, 0, 512, LeaseUse::Source), MIB - 512).await.0.unwrap();
            disk.read(lease(&ram, 0, 0, LeaseUse::Target), MIB).await.0.unwrap();
            disk.discard(0, 0).await.unwrap();
            assert_eq!(disk.info().size, MIB);
        }
        assert_eq!(folder.path().join("disk.img").metadata().unwrap().len(), MIB);
    });
}

fn nothing_changes_a_read_only_disk_of_any_sort(engine: EngineKind) {
    let (_folder, sources) = of_every_sort(MIB, true);
    on_shard(engine, |cx| async move {
        let ram = ram();
        ram.write(0, &[0xEE; 4096]).unwrap();
        for disk in sources.into_iter().map(|source| attach(&cx, source)) {
            let info = disk.info();
            assert!(info.read_only && !info.discard && !info.write_zeroes, "{disk:?}");
            let refused = |result: io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem, "{disk:?}");
            };
            refused(disk.write(lease(&ram, 0, 512, LeaseUse::Source), 0).await.0);
            refused(disk.discard(0, 512).await);
            refused(disk.write_zeroes(0, 512, true).await);
            refused(disk.write_zeroes(0, 512, false).await);
            disk.flush().await.unwrap();
            disk.read(lease(&ram, 8192, 512, LeaseUse::Target), 0).await.0.unwrap();
            assert_eq!(guest_bytes(&ram, 8192, 512), [0; 512]);
        }
    });
}

fn a_size_that_no_disk_can_have_is_refused(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        for size in [0, 1, 513, 1 << 63, u64::MAX] {
            for source in [memory(size), null(size)] {
                let error = source.attach(&cx, &Owner::shard(), || ()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                assert!(error.to_string().contains(&size.to_string()), "{error}");
            }
        }
    });
}

fn a_long_read_of_nothing_lets_others_go_on(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (ram, disk) = (ram(), attach(&cx, null(64 * MIB)));
        let before = cx.turn();
        disk.read(lease(&ram, 0, 8 * MIB, LeaseUse::Target), 0).await.0.unwrap();
        // As many requests as that allows, or less if that takes long.
        assert!(cx.turn() - before >= 7);
    });
}

fn sec_02_many_long_reads_have_no_more_of_a_turn_than_one(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (ram, owner) = (ram(), Owner::new(vm_metrics()));
        let disks = [(); 2].map(|()| null(64 * MIB).attach(&cx, &owner, || ()).unwrap());
        let before = cx.turn();
        let reads = [0, 1].repeat(8).into_iter().map(|which: usize| {
            let (lease, disk) = (lease(&ram, 0, MIB, LeaseUse::Target), Rc::clone(&disks[which]));
            cx.spawn(&owner, async move { disk.read(lease, 0).await.0.unwrap() })
        });
        for read in reads.collect::<Vec<_>>() {
            read.await.unwrap();
        }
        let turns = cx.turn() - before;
        assert!(turns >= 14, "16 MiB in {turns} turns");
    });
}

/// The kernel copies on the loop's thread what its page cache has.
fn sec_02_what_is_copied_in_a_turn_is_bounded_whatever_is_under_way(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (ram, owner) = (ram(), Owner::new(vm_metrics()));
        let disk = memory(64 * MIB).attach(&cx, &owner, || ()).unwrap();
        let before = cx.turn();
        let reads = (0..64).map(|which| {
            let (lease, disk) = (lease(&ram, 0, MIB, LeaseUse::Target), Rc::clone(&disk));
            cx.spawn(&owner, async move { disk.read(lease, which * MIB).await.0.unwrap() })
        });
        for read in reads.collect::<Vec<_>>() {
            read.await.unwrap();
        }
        let turns = cx.turn() - before;
        assert!(turns >= 50, "64 MiB in {turns} turns");
    });
}

/// A request longer than one operation, of an owner without CPU time for the next hour.
fn sec_02_what_was_begun_waits_for_cpu_time_unless_it_is_drained(engine: EngineKind) {
    for source in [memory(MIB), null(MIB)] {
        on_shard(engine, |cx| async move {
            let hold = Hold::default();
            let owner = Owner::limited(vm_metrics(), Buffers::unlimited(), hold.clone());
            let (ram, disk) = (ram(), source.attach(&cx, &owner, || ()).unwrap());
            let hour = Duration::from_secs(3600);
            let bound = Bound { nanos: 0, renewed_at: MonoTime::now() + hour, quota: hour, period: hour };
            for lift in [true, false] {
                hold.set(Some(bound));
                let (lease, disk) = (lease(&ram, 0, MIB, LeaseUse::Target), Rc::clone(&disk));
                let read = cx.spawn(&owner, async move { disk.read(lease, 0).await.0.unwrap() });
                for _ in 0..50 {
                    cx.next_turn().await;
                }
                assert!(!read.is_finished());
                let draining = (!lift).then(|| owner.drain());
                if lift {
                    hold.set(None);
                    hold.wake();
                }
                read.await.unwrap();
                drop(draining);
            }
        });
    }
}

#[test]
fn what_crosses_threads_is_send() {
    fn is_send<T: Send>() {}
    is_send::<DiskSource>();
    is_send::<DiskError>();
}
