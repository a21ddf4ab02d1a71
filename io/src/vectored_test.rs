use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno;

use super::*;
use crate::engine::EngineKind;
use crate::file::FILE_THREADS;
use crate::lease::GuestRange;
use crate::owner::Owner;
use crate::ram::{Backing, GuestMemory, GuestRam};
use crate::shard::{ShardConfig, ShardContext, ShardError};
use crate::task::Task;
use crate::testing::*;

on_both_engines!(
    guest_ram_is_written_to_files_and_read_from_them,
    a_lease_is_not_used_the_other_way_round,
    errors_come_back_with_the_lease,
    space_is_given_back_and_zeroed,
    many_leases_are_under_way_at_once,
    an_abandoned_operation_keeps_its_lease,
    leases_dropped_at_any_moment_keep_guest_ram_mapped,
);

const MIB: u64 = 1 << 20;

fn ram() -> GuestRam {
    GuestRam::new(&[(0, MIB), (MIB, MIB)], Backing::Pages4K).unwrap()
}

fn lease(ram: &GuestRam, gpa: u64, len: u32, use_: LeaseUse) -> Lease {
    ram.lease(&[GuestRange { gpa, len }], use_).unwrap()
}

fn guest_bytes(ram: &GuestRam, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read(gpa, &mut bytes).unwrap();
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|number| (number * 13 % 251) as u8).collect()
}

fn guest_ram_is_written_to_files_and_read_from_them(engine: EngineKind) {
    let ram = ram();
    ram.write(MIB - 5000, &pattern(10_000)).unwrap();
    ram.take_host_dirty();
    on_shard(engine, |cx| async move {
        let file = tempfile::tempfile().unwrap();
        let check = file.try_clone().unwrap();
        let file = RingFile::new(file);
        let source = lease(&ram, MIB - 5000, 10_000, LeaseUse::Source);
        let (result, source) = cx.ring().writev_at(&file, source, 0, 100).await;
        assert_eq!((result.unwrap(), source.len()), (10_000, 10_000));
        // From the middle of a piece on.
        let (result, _) = cx.ring().writev_at(&file, source, 6000, 20_000).await;
        assert_eq!(result.unwrap(), 4000);
        let mut bytes = vec![0; 24_000];
        check.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes[100..10_100], &bytes[20_000..]), (&pattern(10_000)[..], &pattern(10_000)[6000..]));

        assert_eq!(ram.take_host_dirty(), [0u64; 0]);
        let target = lease(&ram, MIB - 100_000, 4096 * 4, LeaseUse::Target);
        let (result, target) = cx.ring().readv_at(&file, target, 384, 100).await;
        assert_eq!(result.unwrap(), 16_000);
        assert_eq!(guest_bytes(&ram, MIB - 100_000 + 384, 10_000), pattern(10_000));
        assert_eq!(guest_bytes(&ram, MIB - 100_000, 384), [0; 384]);
        let first = (MIB - 100_000 + 384) & !4095;
        assert_eq!(ram.take_host_dirty(), (0..5).map(|page| first + page * 4096).collect::<Vec<_>>());
        let (result, target) = cx.ring().readv_at(&file, target, 0, 1 << 30).await;
        assert_eq!(result.unwrap(), 0, "beyond the end");
        let (result, _) = cx.ring().readv_at(&file, target, u64::MAX, 0).await;
        assert_eq!(result.unwrap(), 0, "nothing is left of the lease");
    });
}

fn a_lease_is_not_used_the_other_way_round(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (ram, file) = (ram(), RingFile::new(tempfile::tempfile().unwrap()));
        let source = lease(&ram, 0, 512, LeaseUse::Source);
        let (result, _) = cx.ring().readv_at(&file, source, 0, 0).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let target = lease(&ram, 0, 512, LeaseUse::Target);
        let (result, target) = cx.ring().writev_at(&file, target, 0, 0).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        for offset in [u64::MAX, 1 << 63] {
            // Never the position of the file.
            let again = lease(&ram, 0, 512, LeaseUse::Target);
            let (result, _) = cx.ring().readv_at(&file, again, 0, offset).await;
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(target.len(), 512);
    });
}

fn errors_come_back_with_the_lease(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (ram, read_only) = (ram(), RingFile::new(File::open("/proc/self/exe").unwrap()));
        let source = lease(&ram, 4096, 512, LeaseUse::Source);
        let (result, source) = cx.ring().writev_at(&read_only, source, 512, 0).await;
        assert!(matches!(result, Ok(0) | Err(_)));
        let (result, source) = cx.ring().writev_at(&read_only, source, 100, 0).await;
        assert_eq!(Errno::from_io_error(&result.unwrap_err()), Some(Errno::BADF));
        assert_eq!(source.len(), 512);
        ram.write(4096, &pattern(512)).unwrap();
        let mut out = vec![0; 512];
        source.copy_out(&mut out, 0).unwrap();
        assert_eq!(out, pattern(512), "the lease is whole again");
    });
}

fn space_is_given_back_and_zeroed(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let file = tempfile::tempfile().unwrap();
        let check = file.try_clone().unwrap();
        check.write_all_at(&vec![7; 1 << 20], 0).unwrap();
        check.sync_all().unwrap();
        let before = check.metadata().unwrap().blocks();
        let file = RingFile::new(file);
        cx.ring().fallocate(&file, Allocation::PunchHole, 65_536, 524_288).await.unwrap();
        assert!(check.metadata().unwrap().blocks() <= before - 1000);
        let mut bytes = vec![1; 1 << 20];
        check.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[65_536..589_824].iter().all(|byte| *byte == 0));
        assert!(bytes[..65_536].iter().chain(&bytes[589_824..]).all(|byte| *byte == 7));
        let memfd = rustix::fs::memfd_create("io-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let result = cx.ring().fallocate(&RingFile::new(memfd), Allocation::ZeroRange, 0, 512).await;
        assert_eq!(Errno::from_io_error(&result.unwrap_err()), Some(Errno::OPNOTSUPP));
        let result = cx.ring().fallocate(&file, Allocation::PunchHole, 0, 0).await;
        assert_eq!(Errno::from_io_error(&result.unwrap_err()), Some(Errno::INVAL));
        assert_eq!(check.metadata().unwrap().len(), 1 << 20);
    });
}

fn many_leases_are_under_way_at_once(engine: EngineKind) {
    let ram = ram();
    let end = ram.clone();
    on_shard(engine, |cx| async move {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&pattern(1 << 20), 0).unwrap();
        let owner = Owner::shard();
        let file = cx.ring().file_of(&owner, file);
        let tasks: Vec<_> = (0..512u64)
            .map(|number| {
                let (ring, file) = (cx.ring().clone(), file.clone());
                let ranges = [
                    GuestRange { gpa: (511 - number) * 2048, len: 1024 },
                    GuestRange { gpa: MIB + number * 1024, len: 1024 },
                ];
                let lease = ram.lease(&ranges, LeaseUse::Target).unwrap();
                cx.spawn(
                    &owner,
                    async move { ring.readv_at(&file, lease, 0, number * 2048).await.0.unwrap() },
                )
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), 2048);
        }
    });
    let file = pattern(1 << 20);
    for number in 0..512usize {
        let (first, second) = file[number * 2048..][..2048].split_at(1024);
        assert_eq!(guest_bytes(&end, (511 - number as u64) * 2048, 1024), first);
        assert_eq!(guest_bytes(&end, MIB + number as u64 * 1024, 1024), second);
    }
}

/// A read into guest RAM that stays under way until something is written to the pipe that comes back.
async fn blocked_read(cx: &ShardContext, lease: Lease) -> (Task<LeaseResult>, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (ring, reader) = (cx.ring().clone(), RingFile::new(reader));
    let task = if cx.engine() == EngineKind::Uring {
        cx.spawn(&Owner::shard(), async move { ring.readv_at(&reader, lease, 0, 0).await })
    } else {
        // A pipe has no offsets, so it keeps all threads busy, and the read of a file waits for one.
        for _ in 0..FILE_THREADS {
            let (ring, reader) = (ring.clone(), reader.clone());
            let read = async move {
                let kind = Kind::Read(crate::operation::CURRENT_POSITION);
                ring.operate(&reader, Memory::Ours(vec![0; 1]), 0, kind, Sort::File).await
            };
            cx.spawn(&Owner::shard(), read).detach();
        }
        cx.next_turn().await;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&pattern(FILE_THREADS), 0).unwrap();
        cx.spawn(&Owner::shard(), async move { ring.readv_at(&RingFile::new(file), lease, 0, 0).await })
    };
    // It is under way when both have had a turn.
    cx.next_turn().await;
    cx.next_turn().await;
    (task, writer)
}

fn an_abandoned_operation_keeps_its_lease(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let ram = ram();
        let memory: Weak<GuestMemory> = Arc::downgrade(ram.shared());
        let (task, writer) = blocked_read(&cx, lease(&ram, 8192, 64, LeaseUse::Target)).await;
        let others = Weak::strong_count(&memory);
        cx.abort(&task);
        assert!(task.await.is_err());
        cx.timer().sleep(Duration::from_millis(5)).await;
        assert_eq!((Weak::strong_count(&memory), others), (2, 2), "the operation has lost its lease");
        assert_eq!(ram.take_host_dirty(), [0u64; 0]);
        rustix::io::write(&writer, &pattern(FILE_THREADS)).unwrap();
        cx.ring().idle().await;
        while Weak::strong_count(&memory) > 1 {
            cx.timer().sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(guest_bytes(&ram, 8192, FILE_THREADS), pattern(FILE_THREADS));
        assert_eq!(ram.take_host_dirty(), [8192], "the kernel wrote there after all");
        drop(ram);
        assert_eq!(Weak::strong_count(&memory), 0);
    });
}

fn leases_dropped_at_any_moment_keep_guest_ram_mapped(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0x55; 1 << 20], 0).unwrap();
        let file = RingFile::new(file);
        for round in 0..200u64 {
            // The only owner of its memory: unmapped too early, the kernel's write would fail, or hit what is
            // mapped there next.
            let ram = ram();
            let tasks: Vec<_> = (0..24)
                .map(|number| {
                    let (ring, file) = (cx.ring().clone(), file.clone());
                    let lease = lease(&ram, number * 4096, 65_536, LeaseUse::Target);
                    cx.spawn(&Owner::shard(), async move { ring.readv_at(&file, lease, 0, 0).await.0 })
                })
                .collect();
            drop(ram);
            if round % 2 == 0 {
                cx.timer().sleep(Duration::from_micros(round * 7 % 90)).await;
            }
            tasks.iter().for_each(|task| cx.abort(task));
            let canary = vec![round as u8; 1 << 20];
            cx.next_turn().await;
            assert!(canary.iter().all(|byte| *byte == round as u8));
        }
        cx.ring().idle().await;
    });
}

/// An operation that never ends: its lease must outlive the ring's cancellation.
#[test]
fn an_endless_operation_is_cancelled_before_its_lease_is_freed() {
    require_uring();
    let shard = runner(ShardConfig { drain_timeout: Duration::from_millis(50), ..config(EngineKind::Uring) });
    let ram = ram();
    let memory = Arc::downgrade(ram.shared());
    let writer = start(&shard, move |cx| async move {
        let (task, writer) = blocked_read(&cx, lease(&ram, 0, 4096, LeaseUse::Target)).await;
        task.detach();
        writer
    });
    let writer = writer.recv_timeout(PATIENCE).unwrap();
    assert_eq!(Weak::strong_count(&memory), 1, "the operation's");
    assert!(matches!(shard.stop(), Err(ShardError::DrainTimeout { .. })));
    assert_eq!(Weak::strong_count(&memory), 0);
    assert_eq!(rustix::io::write(&writer, &[0x99; 64]), Err(Errno::PIPE), "no reader is left");
}
