use std::fs::File;
use std::future::Future;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use super::*;
use crate::buffers::Buffers;
use crate::disk::{DiskError, DiskOptions, SECTOR};
use crate::engine::EngineKind;
use crate::file::FILE_THREADS;
use crate::lease::{GuestRange, LeaseUse};
use crate::operation::CURRENT_POSITION;
use crate::ram::{Backing, GuestRam};
use crate::testing::*;

on_both_engines!(
    a_disk_is_what_was_written_last,
    a_disk_of_large_blocks_is_what_was_written_last,
    a_direct_disk_is_what_was_written_last,
    only_unaligned_requests_are_copied,
    sec_02_what_is_charged_is_what_is_moved,
    requests_beside_each_other_in_a_block_do_not_undo_each_other,
    large_requests_are_served_whatever_their_alignment,
    sec_12_a_file_made_shorter_is_an_error_and_no_old_memory,
    a_write_to_a_file_made_shorter_does_not_invent_a_block,
    zeroes_are_written_where_the_host_cannot_zero,
    discarded_space_is_given_back,
    a_disk_follows_the_size_of_its_file,
    contents_are_durable_in_the_file,
    a_file_stays_locked_while_operations_are_under_way,
    sec_02_copies_that_do_not_fit_wait_for_those_before_them,
);

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 << 10;
/// As of a device with blocks of 4 KiB, whatever the host has.
const LARGE: Alignment = Alignment { memory: 512, offset: 4096 };

fn folder_with_file(size: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    (folder, path)
}

fn open(size: u64) -> (File, DiskFile) {
    let (_folder, path) = folder_with_file(size);
    let check = File::options().read(true).write(true).open(&path).unwrap();
    (check, DiskFile::open(&path, DiskOptions::default()).unwrap())
}

/// A disk on a file that is used as direct I/O would be.
fn open_aligned(size: u64, alignment: Alignment) -> (File, DiskFile) {
    let (check, mut file) = open(size);
    file.direct = Some(alignment);
    file.info.block_size = alignment.offset;
    (check, file)
}

fn ram() -> GuestRam {
    GuestRam::new(&[(0, MIB), (MIB, 3 * MIB)], Backing::Pages4K).unwrap()
}

/// Runs a test with a disk, its memory, and the number of copies.
fn with_disk<F: Future<Output = ()>>(
    engine: EngineKind,
    file: DiskFile,
    test: impl FnOnce(ShardContext, Rc<FileDisk>, GuestRam, Rc<Cell<usize>>) -> F + Send + 'static,
) {
    on_shard(engine, move |cx| async move {
        let copies = Rc::new(Cell::new(0));
        let count = Rc::clone(&copies);
        let on_bounce = Box::new(move || count.set(count.get() + 1));
        let disk = FileDisk::new(&cx, &Owner::new(vm_metrics()), file, on_bounce);
        test(cx, Rc::new(disk), ram(), copies).await;
    });
}

fn lease(ram: &GuestRam, gpa: u64, len: u64, use_: LeaseUse) -> Lease {
    ram.lease(&[GuestRange { gpa, len: len as u32 }], use_).unwrap()
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    (0..len).map(|_| random.next() as u8).collect()
}

#[test]
fn an_operation_takes_no_more_memory_than_is_counted_for_it() {
    let (_check, file) = open_aligned(SIZE, LARGE);
    with_disk(EngineKind::Epoll, file, |_, disk, ram, _| async move {
        let operations = [
            size_of_val(&disk.read_all(lease(&ram, 0, 512, LeaseUse::Target), 0)),
            size_of_val(&disk.write_all(lease(&ram, 0, 512, LeaseUse::Source), 0)),
            size_of_val(&disk.give_back(0, 512)),
            size_of_val(&disk.zero(0, 512, true)),
        ];
        let engine = 1024;
        let most = operations.into_iter().max().unwrap() + engine;
        assert!(most as u64 <= crate::disk::OPERATION_BYTES, "{operations:?}");
    });
}

fn sec_02_copies_that_do_not_fit_wait_for_those_before_them(engine: EngineKind) {
    let (check, file) = open_aligned(SIZE, LARGE);
    check.write_all_at(&pattern(1, SIZE), 0).unwrap();
    on_shard(engine, |cx| async move {
        let buffers = Buffers::new(3 * 4096);
        let owner = Owner::with_buffers(vm_metrics(), buffers.clone());
        let disk = Rc::new(FileDisk::new(&cx, &owner, file, Box::new(|| ())));
        let ram = ram();
        // All is taken, so that the first has to wait.
        let reserved = disk.bounces.buffer(4096, LARGE).await.unwrap();
        let taken = buffers.try_take(3 * 4096).unwrap();
        // At an odd address: each takes a copy of a block.
        let reads = (0..32).map(|n| {
            let lease = lease(&ram, n * 1024 + 1, 512, LeaseUse::Target);
            let disk = Rc::clone(&disk);
            cx.spawn(&owner, async move { disk.read(lease, n * 512).await.0.unwrap() })
        });
        let reads: Vec<_> = reads.collect();
        while buffers.reading().held_back == 0 {
            cx.next_turn().await;
        }
        drop((reserved, taken));
        for read in reads {
            read.await.unwrap();
        }
        for n in 0..32 {
            let mut bytes = [0; 512];
            ram.read(n * 1024 + 1, &mut bytes).unwrap();
            let from = n as usize * 512;
            assert_eq!(bytes, pattern(1, SIZE)[from..from + 512], "{n}");
        }
        let reading = buffers.reading();
        assert_eq!((reading.used, reading.peak), (0, reading.max), "{reading:?}");
    });
}

/// Xorshift: the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Some ranges of guest RAM with `len` bytes in all, at odd addresses or aligned ones.
fn ranges(random: &mut Random, len: u64) -> Vec<GuestRange> {
    let unit = [1, 4, 512, 4096][random.below(4) as usize];
    let mut ranges = Vec::new();
    let mut left = len;
    while left > 0 {
        let part = if random.below(3) == 0 { left } else { (random.below(left) + 1).next_multiple_of(unit) };
        let part = part.min(left);
        let gpa = random.below(3 * MIB) / unit * unit;
        ranges.push(GuestRange { gpa, len: part as u32 });
        left -= part;
    }
    ranges
}

/// Random requests, one by one, against a plain copy of what the disk should be.
async fn compare_contents(disk: &FileDisk, ram: &GuestRam, check: &File, seed: u64) {
    let mut random = Random(seed);
    let mut model = vec![0; SIZE as usize];
    ram.write(0, &pattern(seed, 4 * MIB)).unwrap();
    for round in 0..400 {
        let offset = random.below(SIZE / SECTOR) * SECTOR;
        let most = (SIZE - offset).min(if round % 8 == 0 { SIZE } else { 16 << 10 });
        let len = (random.below(most / SECTOR) + 1) * SECTOR;
        let part = offset as usize..(offset + len) as usize;
        match random.below(8) {
            0 => {
                disk.write_zeroes(offset, len, round % 2 == 0).await.unwrap();
                model[part].fill(0);
            }
            1 => {
                disk.discard(offset, len).await.unwrap();
                check.read_exact_at(&mut model[part.clone()], offset).unwrap();
            }
            2..=4 => {
                let source = ram.lease(&ranges(&mut random, len), LeaseUse::Source).unwrap();
                ram.write(random.below(3 * MIB), &pattern(round, 16 << 10)).unwrap();
                source.copy_out(&mut model[part], 0).unwrap();
                disk.write(source, offset).await.0.unwrap();
            }
            _ => {
                // One range: in several that overlap, which comes last is nobody's business.
                let gpa = random.below(3 * MIB) / 4 * 4;
                disk.read(lease(ram, gpa, len, LeaseUse::Target), offset).await.0.unwrap();
                let mut bytes = vec![0; len as usize];
                ram.read(gpa, &mut bytes).unwrap();
                assert!(bytes == model[part], "round {round}: {len} bytes at {offset}");
            }
        }
    }
    disk.flush().await.unwrap();
    let mut contents = vec![0; SIZE as usize];
    check.read_exact_at(&mut contents, 0).unwrap();
    assert!(contents == model, "the file is not what was written");
}

/// As [`compare_contents`], and the file keeps its size.
async fn compare_with_model(disk: &FileDisk, ram: &GuestRam, check: &File, seed: u64) {
    compare_contents(disk, ram, check, seed).await;
    assert_eq!(check.metadata().unwrap().len(), SIZE);
}

fn a_disk_is_what_was_written_last(engine: EngineKind) {
    let (check, file) = open(SIZE);
    with_disk(engine, file, |_, disk, ram, copies| async move {
        compare_with_model(&disk, &ram, &check, 1).await;
        assert_eq!(copies.get(), 0, "the page cache needs no copies");
    });
}

fn a_disk_of_large_blocks_is_what_was_written_last(engine: EngineKind) {
    let (check, file) = open_aligned(SIZE, LARGE);
    with_disk(engine, file, |_, disk, ram, copies| async move {
        compare_with_model(&disk, &ram, &check, 2).await;
        assert!(copies.get() > 100, "{}", copies.get());
        disk.zero_range.set(false);
        disk.write_zeroes(0, SIZE, false).await.unwrap();
        compare_with_model(&disk, &ram, &check, 3).await;
    });
}

fn a_direct_disk_is_what_was_written_last(engine: EngineKind) {
    let (folder, path) = folder_with_file(SIZE);
    let file = DiskFile::open(&path, DiskOptions { read_only: false, direct: true }).unwrap();
    let check = File::open(&path).unwrap();
    with_disk(engine, file, |_, disk, ram, copies| async move {
        compare_with_model(&disk, &ram, &check, 4).await;
        // Addresses of every sort came, ones that no hardware takes among them.
        assert!(copies.get() > 0 || disk.alignment.memory == 1);
    });
    drop(folder);
}

fn only_unaligned_requests_are_copied(engine: EngineKind) {
    let (_check, file) = open_aligned(SIZE, LARGE);
    with_disk(engine, file, |_, disk, ram, copies| async move {
        for (gpa, len, offset, copied) in [
            (4096, 4096, 0, 0),
            (512, 8192, 8192, 0),
            (4096 + 4, 4096, 0, 1),
            (4096, 512, 0, 1),
            (4096, 4096, 512, 1),
        ] {
            for use_ in [LeaseUse::Target, LeaseUse::Source] {
                copies.set(0);
                let lease = lease(&ram, gpa, len, use_);
                match use_ {
                    LeaseUse::Target => disk.read(lease, offset).await.0.unwrap(),
                    LeaseUse::Source => disk.write(lease, offset).await.0.unwrap(),
                }
                assert_eq!(copies.get(), copied, "{use_:?} {gpa:#x} {len} {offset}");
            }
        }
    });
}

fn sec_02_what_is_charged_is_what_is_moved(engine: EngineKind) {
    with_disk(engine, open_aligned(SIZE, LARGE).1, |_, disk, _, _| async move {
        let moved = |offset, len| (disk.bytes_to_read(offset, len), disk.bytes_to_write(offset, len));
        assert_eq!(moved(4096, 8192), (8192, 8192));
        assert_eq!((moved(0, 512), moved(8192 - 512, 1024)), ((4096, 8192), (8192, 16_384)));
        assert_eq!(moved(0, 0), (0, 0));
        // Two whole pieces, and a part of a block that is read first.
        assert_eq!(moved(4096, 2 * PIECE + 512), (2 * PIECE + 4096, 2 * PIECE + 8192));
        // Every piece has parts of blocks.
        assert_eq!(moved(512, 2 * PIECE), (2 * (PIECE + 4096), 4 * (PIECE + 4096)));
    });
    with_disk(engine, open(SIZE).1, |_, disk, _, _| async move {
        assert_eq!((disk.bytes_to_read(512, 512), disk.bytes_to_write(512, 512)), (512, 512));
    });
}

fn requests_beside_each_other_in_a_block_do_not_undo_each_other(engine: EngineKind) {
    let (check, file) = open_aligned(SIZE, LARGE);
    with_disk(engine, file, |cx, disk, ram, _| async move {
        let owner = Owner::new(vm_metrics());
        for round in 0..40u8 {
            // Single sectors of two blocks, two blocks as a whole in some rounds, and a sector that is zeroed.
            ram.write(0, &[round + 1; 16 * 512]).unwrap();
            let tasks: Vec<_> = (0..16u64)
                .map(|number| {
                    let (disk, lease) = (Rc::clone(&disk), lease(&ram, number * 512, 512, LeaseUse::Source));
                    cx.spawn(&owner, async move {
                        if number == 5 {
                            disk.write_zeroes(number * 512, 512, false).await.unwrap();
                        } else {
                            disk.write(lease, number * 512).await.0.unwrap();
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let mut bytes = [0; 16 * 512];
            check.read_exact_at(&mut bytes, 0).unwrap();
            for (number, sector) in bytes.chunks(512).enumerate() {
                let expected = if number == 5 { 0 } else { round + 1 };
                assert!(sector.iter().all(|byte| *byte == expected), "round {round}, sector {number}");
            }
        }
    });
}

fn large_requests_are_served_whatever_their_alignment(engine: EngineKind) {
    let (check, file) = open_aligned(2 * MIB, LARGE);
    with_disk(engine, file, |_, disk, ram, copies| async move {
        ram.write(1, &pattern(9, MIB)).unwrap();
        disk.write(lease(&ram, 1, MIB, LeaseUse::Source), 512).await.0.unwrap();
        assert_eq!(copies.get(), 8, "in bounded pieces");
        let mut bytes = vec![0; MIB as usize];
        check.read_exact_at(&mut bytes, 512).unwrap();
        assert!(bytes == pattern(9, MIB));
        disk.read(lease(&ram, 2 * MIB + 3, MIB, LeaseUse::Target), 512).await.0.unwrap();
        ram.read(2 * MIB + 3, &mut bytes).unwrap();
        assert!(bytes == pattern(9, MIB));
    });
}

/// Both with and without a copy in between.
fn sec_12_a_file_made_shorter_is_an_error_and_no_old_memory(engine: EngineKind) {
    for alignment in [UNALIGNED, LARGE, Alignment { memory: 1 << 16, offset: 512 }] {
        let (check, file) = if alignment == UNALIGNED { open(SIZE) } else { open_aligned(SIZE, alignment) };
        check.write_all_at(&pattern(5, SIZE), 0).unwrap();
        with_disk(engine, file, |_, disk, ram, _| async move {
            check.set_len(8192 + 100).unwrap();
            ram.write(0, &[0xEE; 65_536]).unwrap();
            let (result, _) = disk.read(lease(&ram, 512, 16_384, LeaseUse::Target), 4096).await;
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert!(
                error.to_string().contains("disk.img") && error.to_string().contains("shorter"),
                "{error}"
            );
            let mut bytes = vec![0; 65_536];
            ram.read(0, &mut bytes).unwrap();
            // What the file has, and else what the guest had there itself.
            assert!(bytes[512..512 + 4196] == pattern(5, SIZE)[4096..8292]);
            assert!(bytes[..512].iter().chain(&bytes[512 + 4196..]).all(|byte| *byte == 0xEE));
            let (result, _) = disk.read(lease(&ram, 0, 512, LeaseUse::Target), 65_536).await;
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            // What is there can still be read.
            disk.read(lease(&ram, 0, 4096, LeaseUse::Target), 4096).await.0.unwrap();
        });
    }
}

fn a_write_to_a_file_made_shorter_does_not_invent_a_block(engine: EngineKind) {
    let (check, file) = open_aligned(SIZE, LARGE);
    with_disk(engine, file, |_, disk, ram, _| async move {
        check.set_len(4096).unwrap();
        let (result, _) = disk.write(lease(&ram, 0, 512, LeaseUse::Source), 8192).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(check.metadata().unwrap().len(), 4096);
    });
}

fn zeroes_are_written_where_the_host_cannot_zero(engine: EngineKind) {
    for (unit, alignment) in [(1, UNALIGNED), (4096, LARGE)] {
        let (check, file) = if unit == 1 { open(SIZE) } else { open_aligned(SIZE, alignment) };
        check.write_all_at(&[7; SIZE as usize], 0).unwrap();
        with_disk(engine, file, |_, disk, _, _| async move {
            disk.zero_range.set(false);
            disk.write_zeroes(512, SIZE - 1024, false).await.unwrap();
            let mut bytes = vec![1; SIZE as usize];
            check.read_exact_at(&mut bytes, 0).unwrap();
            let (end, tail) = (SIZE as usize - 512, SIZE as usize);
            assert!(bytes[512..end].iter().all(|byte| *byte == 0));
            assert!(bytes[..512].iter().chain(&bytes[end..tail]).all(|byte| *byte == 7));
            disk.write_zeroes(0, 0, false).await.unwrap();
        });
    }
}

fn discarded_space_is_given_back(engine: EngineKind) {
    let (check, file) = open(4 * MIB);
    assert!(file.info().discard, "the file system of the temporary folder punches no holes");
    let contents = pattern(6, 4 * MIB);
    check.write_all_at(&contents, 0).unwrap();
    check.sync_all().unwrap();
    with_disk(engine, file, move |_, disk, _, _| async move {
        let blocks = || check.metadata().unwrap().blocks() * 512;
        let full = blocks();
        disk.discard(MIB, MIB).await.unwrap();
        assert!(blocks() <= full - MIB, "{} of {full}", blocks());
        disk.write_zeroes(2 * MIB, MIB, true).await.unwrap();
        assert!(blocks() <= full - 2 * MIB);
        disk.write_zeroes(3 * MIB, MIB, false).await.unwrap();
        assert!(blocks() > full - 3 * MIB, "its space was to be kept");
        let mut bytes = vec![1; 4 * MIB as usize];
        check.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..MIB as usize] == contents[..MIB as usize]);
        assert!(bytes[MIB as usize..].iter().all(|byte| *byte == 0));
        assert_eq!(check.metadata().unwrap().len(), 4 * MIB);
    });
}

fn a_disk_follows_the_size_of_its_file(engine: EngineKind) {
    let (check, file) = open(8192);
    with_disk(engine, file, |_, disk, ram, _| async move {
        let (result, _) = disk.read(lease(&ram, 0, 512, LeaseUse::Target), 8192).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        check.set_len(16_384).unwrap();
        check.write_all_at(&pattern(7, 512), 8192).unwrap();
        assert_eq!(disk.info().size, 8192);
        assert_eq!(disk.refresh_size().unwrap(), 16_384);
        assert_eq!(disk.info().size, 16_384);
        disk.read(lease(&ram, 0, 512, LeaseUse::Target), 8192).await.0.unwrap();
        let mut bytes = vec![0; 512];
        ram.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, pattern(7, 512));
        for bad in [0, 1000] {
            check.set_len(bad).unwrap();
            assert!(disk.refresh_size().unwrap_err().to_string().contains("multiple of 512"));
            assert_eq!(disk.info().size, 16_384);
        }
        check.set_len(512).unwrap();
        assert_eq!(disk.refresh_size().unwrap(), 512);
        let (result, _) = disk.write(lease(&ram, 0, 1024, LeaseUse::Source), 0).await;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(check.metadata().unwrap().len(), 512, "a disk does not make its file longer");
    });
}

fn contents_are_durable_in_the_file(engine: EngineKind) {
    let (check, file) = open(SIZE);
    with_disk(engine, file, |_, disk, ram, _| async move {
        ram.write(0, &pattern(8, 4096)).unwrap();
        disk.write(lease(&ram, 0, 4096, LeaseUse::Source), 4096).await.0.unwrap();
        disk.flush().await.unwrap();
        let mut bytes = vec![0; 4096];
        check.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(bytes, pattern(8, 4096));
    });
}

/// The disk is gone, its last operation is not: until then, nobody else may write.
fn a_file_stays_locked_while_operations_are_under_way(engine: EngineKind) {
    let (folder, path) = folder_with_file(MIB);
    on_shard(engine, |cx| async move {
        let _folder = folder;
        // On the ring, nothing completes before the loop parks; here, while all threads wait for a pipe.
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let reader = RingFile::new(reader);
        if cx.engine() == EngineKind::Epoll {
            for _ in 0..FILE_THREADS {
                let (ring, reader) = (cx.ring().clone(), reader.clone());
                let read =
                    async move { ring.on_file(&reader, vec![0], 0, Kind::Read(CURRENT_POSITION)).await };
                cx.spawn(&Owner::shard(), read).detach();
            }
            cx.next_turn().await;
        }
        let file = DiskFile::open(&path, DiskOptions::default()).unwrap();
        let disk = FileDisk::new(&cx, &Owner::shard(), file, Box::new(|| ()));
        let mut write = disk.write(lease(&ram(), 0, MIB, LeaseUse::Source), 0);
        assert!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(write);
        drop(disk);
        let error = DiskFile::open(&path, DiskOptions::default()).unwrap_err();
        assert!(matches!(error, DiskError::InUse { .. }), "{error}");
        rustix::io::write(&writer, &[0; FILE_THREADS]).unwrap();
        while DiskFile::open(&path, DiskOptions::default()).is_err() {
            cx.timer().sleep(Duration::from_millis(1)).await;
        }
    });
}

/// On a block device: `RINGLET_TEST_BLOCK_DEVICE=/dev/loopN cargo test -p ringlet-io -- --ignored`. Overwrites it.
#[test]
#[ignore = "needs a block device of at least 256 KiB that may be overwritten"]
fn a_block_device_is_what_was_written_last() {
    let path = std::env::var("RINGLET_TEST_BLOCK_DEVICE").unwrap();
    for engine in [EngineKind::Uring, EngineKind::Epoll] {
        for direct in [false, true] {
            let mut file = DiskFile::open(&path, DiskOptions { read_only: false, direct }).unwrap();
            assert!(file.block_device && file.info.size >= SIZE);
            assert!(DiskFile::open(&path, DiskOptions { read_only: true, direct }).is_err());
            println!("{engine} {:?} {:?}", file.info, file.direct);
            file.info.size = SIZE;
            let check = File::open(&path).unwrap();
            with_disk(engine, file, move |_, disk, ram, _| async move {
                disk.write_zeroes(0, SIZE, true).await.unwrap();
                compare_contents(&disk, &ram, &check, 5).await;
            });
        }
    }
}
