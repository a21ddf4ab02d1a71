use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use rustix::pipe::pipe;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::*;
use crate::owner::Owner;
use crate::shard::{ShardConfig, ShardContext, ShardError};
use crate::task::Task;
use crate::testing::*;

on_both_engines!(
    files_are_read_and_written_at_offsets,
    errors_come_back_with_the_buffer,
    more_operations_than_the_ring_holds_wait_their_turn,
    operations_fill_the_ring_and_no_more,
    dropped_operations_give_their_place_back,
    a_shard_that_stops_finishes_its_writes,
    a_pipe_is_read_as_data_comes,
    a_full_pipe_makes_the_writer_wait,
    a_full_pipe_makes_the_writer_wait_on_an_old_kernel,
    a_closed_pipe_is_an_error_of_the_writer,
    files_are_streams_too,
    a_terminal_is_read_line_by_line,
    a_terminal_that_nobody_reads_stops_its_writer_and_nobody_else,
    a_pending_read_does_not_keep_a_shard_from_stopping,
    a_dropped_read_has_taken_nothing_from_a_pipe,
    a_dropped_read_has_taken_nothing_from_a_fifo,
    a_dropped_read_has_taken_nothing_on_an_old_kernel,
    input_that_another_reader_took_keeps_nobody,
    descriptor_flags_are_left_alone,
    readable_tells_without_taking,
    sockets_work_in_both_directions_at_once,
    sec_02_a_vm_whose_storage_hangs_leaves_room_to_others,
    operations_of_different_owners_take_turns,
);

fn pipe_files() -> (OwnedFd, OwnedFd) {
    pipe().unwrap()
}

fn files_are_read_and_written_at_offsets(engine: EngineKind) {
    let file = tempfile::tempfile().unwrap();
    let check = file.try_clone().unwrap();
    on_shard(engine, |cx| async move {
        let (ring, file) = (cx.ring(), RingFile::new(file));
        let (result, buf) = ring.write_all_at(&file, b"hello, ring".to_vec(), 100).await;
        assert_eq!((result.unwrap(), buf.as_slice()), (11, b"hello, ring".as_slice()));
        ring.fsync(&file).await.unwrap();
        ring.fdatasync(&file).await.unwrap();
        let (result, buf) = ring.read_at(&file, vec![1; 6], 107).await;
        // Four bytes to the end of the file; the rest of the buffer is what it was.
        assert_eq!((result.unwrap(), buf.as_slice()), (4, b"ring\x01\x01".as_slice()));
        let (result, _) = ring.read_at(&file, vec![0; 6], 1000).await;
        assert_eq!(result.unwrap(), 0);
        let (result, _) = ring.write_at(&file, Vec::new(), 0).await;
        assert_eq!(result.unwrap(), 0);
    });
    let mut bytes = [0; 111];
    check.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!((&bytes[..100], &bytes[100..]), ([0; 100].as_slice(), b"hello, ring".as_slice()));
}

fn errors_come_back_with_the_buffer(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let read_only = RingFile::new(File::open("/proc/self/exe").unwrap());
        let (result, buf) = cx.ring().write_at(&read_only, vec![5; 10], 0).await;
        assert_eq!(Errno::from_io_error(&result.unwrap_err()), Some(Errno::BADF));
        assert_eq!(buf, [5; 10]);
        let (result, buf) = cx.ring().write_all_at(&read_only, vec![5; 10], 0).await;
        assert!(result.is_err() && buf == [5; 10]);
    });
}

fn more_operations_than_the_ring_holds_wait_their_turn(engine: EngineKind) {
    let config = ShardConfig { ring_entries: 32, ..config(engine) };
    let shard = runner(config);
    let done = start(&shard, |cx| async move {
        let file = tempfile::tempfile().unwrap();
        let blocks: Vec<u8> = (0..1000u32).flat_map(|number| [number.to_le_bytes(); 128].concat()).collect();
        file.write_all_at(&blocks, 0).unwrap();
        let file = RingFile::new(file);
        let tasks: Vec<_> = (0..1000u32)
            .map(|number| {
                let (ring, file) = (cx.ring().clone(), file.clone());
                cx.spawn(&Owner::shard(), async move {
                    let (result, buf) = ring.read_at(&file, vec![0; 512], u64::from(number) * 512).await;
                    assert_eq!(result.unwrap(), 512);
                    assert_eq!(buf, [number.to_le_bytes(); 128].concat());
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    done.recv_timeout(PATIENCE).unwrap();
    shard.stop().unwrap();
}

fn operations_fill_the_ring_and_no_more(engine: EngineKind) {
    let (reader, writer) = pipe_files();
    let shard = runner(ShardConfig { ring_entries: 32, ..config(engine) });
    let done = start(&shard, |cx| async move {
        let reader = RingFile::new(reader);
        let tasks: Vec<_> = (0..100).map(|_| blocked(&cx, &Owner::shard(), &reader)).collect();
        come_to_rest(&cx, || cx.ring().0.files.available_permits() == 0).await;
        let counts = (cx.ring().capacity(), cx.ring().0.files.available_permits(), held(cx.ring()));
        rustix::io::write(&writer, &[0; 100]).unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        counts
    });
    let ring_holds = if engine == EngineKind::Uring { 16 } else { 0 };
    assert_eq!(done.recv_timeout(PATIENCE).unwrap(), (16, 0, ring_holds));
    shard.stop().unwrap();
}

/// Operations that the kernel's ring knows of.
fn held(ring: &Ring) -> usize {
    match &ring.0.backend {
        Backend::Uring(in_flight) => in_flight.len(),
        Backend::Epoll { .. } => 0,
    }
}

/// Starts operations and drops them at every stage: before and after submission, with and without result.
async fn start_and_drop(cx: &ShardContext, file: &RingFile, rounds: usize) {
    for round in 0..rounds {
        let tasks: Vec<_> = (0..24)
            .map(|number| {
                let (ring, file) = (cx.ring().clone(), file.clone());
                let buf = vec![0xAA; 64 << 10];
                cx.spawn(&Owner::shard(), async move {
                    if number % 3 == 0 {
                        ring.write_at(&file, buf, 1 << 20).await.0
                    } else {
                        ring.read_at(&file, buf, 0).await.0
                    }
                })
            })
            .collect();
        if round % 2 == 0 {
            let pause = Duration::from_micros((round as u64 * 7) % 90);
            cx.timer().sleep(pause).await;
        }
        for task in tasks {
            cx.abort(&task);
        }
    }
}

fn dropped_operations_give_their_place_back(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0x55; 1 << 20], 0).unwrap();
        let file = RingFile::new(file);
        start_and_drop(&cx, &file, 300).await;
        // Freed memory is used again here: a late write of the kernel would be seen.
        let canaries: Vec<Vec<u8>> = (0..64u8).map(|byte| vec![byte; 64 << 10]).collect();
        cx.ring().idle().await;
        assert!((0..64u8).zip(&canaries).all(|(byte, canary)| canary.iter().all(|b| *b == byte)));
        assert_eq!(cx.ring().0.files.available_permits(), cx.ring().capacity() as usize);
        let (result, buf) = cx.ring().read_at(&file, vec![0; 4096], 0).await;
        assert_eq!((result.unwrap(), buf), (4096, vec![0x55; 4096]));
    });
}

fn a_shard_that_stops_finishes_its_writes(engine: EngineKind) {
    let file = tempfile::tempfile().unwrap();
    let check = file.try_clone().unwrap();
    let shard = runner(config(engine));
    assert!(
        shard
            .send(Box::new(move |cx| {
                let file = RingFile::new(file);
                for number in 0..64u8 {
                    let (ring, file) = (cx.ring().clone(), file.clone());
                    let buf = vec![number + 1; 8192];
                    let write =
                        async move { drop(ring.write_at(&file, buf, u64::from(number) * 8192).await) };
                    cx.spawn(&Owner::shard(), write).detach();
                }
            }))
            .is_ok()
    );
    // The writes have started when a task that was spawned after them runs.
    start(&shard, |_| async {}).recv_timeout(PATIENCE).unwrap();
    shard.stop().unwrap();
    let mut bytes = vec![0; 64 * 8192];
    check.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.chunks(8192).zip(1..).all(|(block, number)| block.iter().all(|byte| *byte == number)));
}

fn a_pipe_is_read_as_data_comes(engine: EngineKind) {
    let (reader, writer) = pipe_files();
    let mut writer = File::from(writer);
    let shard = runner(config(engine));
    let (sender, heard) = mpsc::channel();
    let end = start(&shard, move |cx| async move {
        let reader = RingFile::new(reader);
        loop {
            let (result, mut buf) = cx.ring().read(&reader, vec![0; 16]).await;
            buf.truncate(result.unwrap());
            if buf.is_empty() {
                return;
            }
            sender.send(buf).unwrap();
        }
    });
    for word in [b"one".as_slice(), b"two", b"three"] {
        writer.write_all(word).unwrap();
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), word);
    }
    drop(writer);
    end.recv_timeout(PATIENCE).unwrap();
    shard.stop().unwrap();
}

fn a_full_pipe_makes_the_writer_wait(engine: EngineKind) {
    write_to_full_pipe(engine, RingFile::new);
}

fn a_full_pipe_makes_the_writer_wait_on_an_old_kernel(engine: EngineKind) {
    write_to_full_pipe(engine, on_old_kernel);
}

fn write_to_full_pipe(engine: EngineKind, open: fn(OwnedFd) -> RingFile) {
    let (reader, writer) = pipe_files();
    let shard = runner(config(engine));
    let bytes: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
    let expected = bytes.clone();
    let written = start(&shard, move |cx| async move {
        let (result, buf) = cx.ring().write_all(&open(writer), bytes).await;
        (result.unwrap(), buf.len())
    });
    // Others go on meanwhile.
    assert_eq!(start(&shard, |_| async { 7 }).recv_timeout(PATIENCE), Ok(7));
    let mut read = Vec::new();
    File::from(reader).read_to_end(&mut read).unwrap();
    assert_eq!(written.recv_timeout(PATIENCE), Ok((1_000_000, 1_000_000)));
    assert_eq!(read, expected);
    shard.stop().unwrap();
}

fn a_closed_pipe_is_an_error_of_the_writer(engine: EngineKind) {
    let (reader, writer) = pipe_files();
    drop(reader);
    let result =
        on_shard(engine, |cx| async move { cx.ring().write(&RingFile::new(writer), vec![0; 9]).await });
    assert_eq!(result.0.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(result.1.len(), 9);
}

fn files_are_streams_too(engine: EngineKind) {
    let file = tempfile::tempfile().unwrap();
    let mut check = file.try_clone().unwrap();
    on_shard(engine, |cx| async move {
        let file = RingFile::new(file);
        cx.ring().write(&file, b"one ".to_vec()).await.0.unwrap();
        cx.ring().write_all(&file, b"two".to_vec()).await.0.unwrap();
        cx.ring().readable(&file).await.unwrap();
        assert_eq!(cx.ring().read(&file, vec![0; 9]).await.0.unwrap(), 0);
        let null = RingFile::new(File::options().read(true).write(true).open("/dev/null").unwrap());
        assert_eq!(cx.ring().write(&null, vec![0; 9]).await.0.unwrap(), 9);
        assert_eq!(cx.ring().read(&null, vec![0; 9]).await.0.unwrap(), 0);
    });
    let mut text = String::new();
    std::io::Seek::rewind(&mut check).unwrap();
    check.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one two");
}

/// The two ends of a pseudo-terminal: ours, and the one that a program would have as stdin. Whoever reads what the
/// program says keeps that end open, too: once all have closed it, a read may fail with `EIO` though some text has not
/// been read yet.
fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    (File::from(ours), theirs)
}

/// What a program has said, as soon as there is some.
fn read_screen(screen: &mut File, buf: &mut [u8]) -> usize {
    let patience = PATIENCE.try_into().unwrap();
    let mut fds = [PollFd::new(&*screen, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "the program says no more");
    screen.read(buf).unwrap()
}

fn a_terminal_is_read_line_by_line(engine: EngineKind) {
    let (mut keyboard, terminal) = terminal();
    let _open = terminal.try_clone().unwrap();
    let shard = runner(config(engine));
    let (sender, heard) = mpsc::channel();
    let _task = start(&shard, move |cx| async move {
        let terminal = RingFile::new(terminal);
        for _ in 0..3 {
            let (result, mut buf) = cx.ring().read(&terminal, vec![0; 64]).await;
            buf.truncate(result.unwrap());
            sender.send(buf).unwrap();
        }
        cx.ring().write_all(&terminal, b"bye\n".to_vec()).await.0.unwrap();
    });
    for line in [b"one\n".as_slice(), b"two\n", b"three\n"] {
        keyboard.write_all(line).unwrap();
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), line);
    }
    let mut screen = Vec::new();
    while !screen.ends_with(b"bye\r\n") {
        let mut byte = [0];
        assert_eq!(read_screen(&mut keyboard, &mut byte), 1);
        screen.push(byte[0]);
    }
    shard.stop().unwrap();
}

fn a_terminal_that_nobody_reads_stops_its_writer_and_nobody_else(engine: EngineKind) {
    let (mut screen, terminal) = terminal();
    let _open = terminal.try_clone().unwrap();
    let shard = runner(config(engine));
    let text = b"x".repeat(1 << 20);
    let expected = text.len();
    let writer = start(&shard, move |cx| async move {
        cx.ring().write_all(&RingFile::new(terminal), text).await.0.unwrap()
    });
    // The loop goes on while the terminal is full, ...
    start(&shard, |cx| async move { cx.timer().sleep(Duration::from_millis(20)).await })
        .recv_timeout(PATIENCE)
        .unwrap();
    assert!(writer.try_recv().is_err(), "a terminal took a megabyte by itself");
    // ... and so does the writer, once somebody reads.
    let mut read = 0;
    while read < expected {
        read += read_screen(&mut screen, &mut [0; 4096]);
    }
    assert_eq!(writer.recv_timeout(PATIENCE).unwrap(), expected);
    shard.stop().unwrap();
}

fn a_pending_read_does_not_keep_a_shard_from_stopping(engine: EngineKind) {
    let (pipe, _writer) = pipe_files();
    let (_keyboard, terminal) = terminal();
    for silent in [pipe, terminal] {
        let shard = runner(config(engine));
        let pending = start(&shard, |cx| async move {
            drop(cx.ring().read(&RingFile::new(silent), vec![0; 64]).await);
        });
        start(&shard, |cx| async move { cx.timer().sleep(Duration::from_millis(2)).await })
            .recv_timeout(PATIENCE)
            .unwrap();
        let before = Instant::now();
        shard.stop().unwrap();
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
        assert!(pending.recv().is_err(), "the read has never ended");
    }
}

fn a_dropped_read_has_taken_nothing_from_a_pipe(engine: EngineKind) {
    let (reader, writer) = pipe_files();
    drop_reads(engine, RingFile::new, reader, writer);
}

fn a_dropped_read_has_taken_nothing_from_a_fifo(engine: EngineKind) {
    let (reader, writer) = fifo();
    drop_reads(engine, RingFile::new, reader, writer);
}

fn a_dropped_read_has_taken_nothing_on_an_old_kernel(engine: EngineKind) {
    let (reader, writer) = pipe_files();
    drop_reads(engine, on_old_kernel, reader, writer);
    let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    drop_reads(engine, on_old_kernel, reader.into(), writer.into());
}

/// The ends of a FIFO that has, or had, a name.
fn fifo() -> (OwnedFd, OwnedFd) {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &name, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    // One that is open for both waits for nobody.
    let both = File::options().read(true).write(true).open(&name).unwrap();
    let reader = File::open(&name).unwrap();
    let writer = File::options().write(true).open(&name).unwrap();
    drop(both);
    (reader.into(), writer.into())
}

/// As [`RingFile::new`] where the kernel knows no `RWF_NOWAIT` for this descriptor.
fn on_old_kernel(fd: OwnedFd) -> RingFile {
    let file = RingFile::new(fd);
    file.0.nowait.do_without_flag(&file.0.fd).unwrap();
    file
}

fn drop_reads(engine: EngineKind, open: fn(OwnedFd) -> RingFile, reader: OwnedFd, writer: OwnedFd) {
    let mut writer = File::from(writer);
    let feeder = thread::spawn(move || {
        for number in 0..2000u16 {
            writer.write_all(&number.to_le_bytes()).unwrap();
            if number % 7 == 0 {
                // Varies the pace; the test is right at any.
                thread::sleep(Duration::from_micros(30));
            }
        }
    });
    let bytes = on_shard(engine, move |cx| async move {
        let (reader, mut bytes) = (open(reader), Vec::new());
        loop {
            tokio::select! {
                (result, buf) = cx.ring().read(&reader, vec![0; 2]) => match result.unwrap() {
                    0 => return bytes,
                    count => bytes.extend_from_slice(&buf[..count]),
                },
                () = cx.timer().sleep(Duration::from_micros(20)) => {}
            }
        }
    });
    feeder.join().unwrap();
    assert_eq!(bytes, (0..2000u16).flat_map(u16::to_le_bytes).collect::<Vec<_>>());
}

fn input_that_another_reader_took_keeps_nobody(engine: EngineKind) {
    let (mut keyboard, terminal) = terminal();
    let shard = runner(config(engine));
    let done = start(&shard, move |cx| async move {
        let terminal = RingFile::new(terminal);
        cx.ring().readable(&terminal).await.unwrap();
        // Two reads that both saw one line: one gets it, the other is left with nothing to read.
        let mut reads: Vec<_> = (0..2)
            .map(|_| {
                let (ring, terminal) = (cx.ring().clone(), terminal.clone());
                cx.spawn(&Owner::shard(), async move {
                    ring.on_stream(&terminal, vec![0; 64], 0, Kind::Read(CURRENT_POSITION)).await
                })
            })
            .collect();
        let (second, first) = (reads.pop().unwrap(), reads.pop().unwrap());
        let (result, buf) = tokio::select! { read = first => read.unwrap(), read = second => read.unwrap() };
        buf[..result.unwrap()].to_vec()
    });
    keyboard.write_all(b"mine\n").unwrap();
    assert_eq!(done.recv_timeout(PATIENCE).unwrap(), b"mine\n");
    let before = Instant::now();
    shard.stop().unwrap();
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
}

fn descriptor_flags_are_left_alone(engine: EngineKind) {
    let (reader, writer) = pipe_files();
    let (_keyboard, terminal) = terminal();
    let flags = on_shard(engine, |cx| async move {
        let fds = [reader, writer, terminal].map(RingFile::new);
        let _ = cx.ring().write(&fds[1], b"x".to_vec()).await;
        let _ = cx.ring().read(&fds[0], vec![0; 1]).await;
        let _ = cx.ring().write(&fds[2], b"x".to_vec()).await;
        fds.map(|fd| fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK))
    });
    assert_eq!(flags, [false; 3]);
}

fn readable_tells_without_taking(engine: EngineKind) {
    let (reader, writer) = pipe_files();
    let bytes = on_shard(engine, |cx| async move {
        let (reader, writer) = (RingFile::new(reader), RingFile::new(writer));
        let early = tokio::select! {
            _ = cx.ring().readable(&reader) => true,
            () = cx.timer().sleep(Duration::from_millis(2)) => false,
        };
        assert!(!early);
        cx.ring().write(&writer, b"abc".to_vec()).await.0.unwrap();
        cx.ring().readable(&reader).await.unwrap();
        cx.ring().readable(&reader).await.unwrap();
        cx.ring().read(&reader, vec![0; 8]).await.0.unwrap()
    });
    assert_eq!(bytes, 3);
}

fn sockets_work_in_both_directions_at_once(engine: EngineKind) {
    use_both_directions(engine, RingFile::new);
    use_both_directions(engine, on_old_kernel);
}

fn use_both_directions(engine: EngineKind, open: fn(OwnedFd) -> RingFile) {
    const SIZE: usize = 2 << 20;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    on_shard(engine, move |cx| async move {
        let ends = [open(ours.into()), open(theirs.into())];
        let mut tasks = Vec::new();
        for end in &ends {
            let (ring, file) = (cx.ring().clone(), end.clone());
            tasks.push(cx.spawn(&Owner::shard(), async move {
                ring.write_all(&file, vec![3; SIZE]).await.0.unwrap()
            }));
            let (ring, file) = (cx.ring().clone(), end.clone());
            tasks.push(cx.spawn(&Owner::shard(), async move {
                let mut count = 0;
                while count < SIZE {
                    count += ring.read(&file, vec![0; 64 << 10]).await.0.unwrap();
                }
                count
            }));
        }
        for task in tasks {
            assert_eq!(task.await.unwrap(), SIZE);
        }
    });
}

/// An operation that the kernel would never finish: its buffer must outlive the ring's cancellation.
#[test]
fn an_endless_ring_operation_is_cancelled_before_its_buffer_is_freed() {
    require_uring();
    let (reader, writer) = pipe_files();
    let config = ShardConfig { drain_timeout: Duration::from_millis(50), ..config(EngineKind::Uring) };
    let shard = runner(config);
    assert!(
        shard
            .send(Box::new(move |cx| {
                let reader = RingFile::new(reader);
                for _ in 0..8 {
                    let (ring, reader) = (cx.ring().clone(), reader.clone());
                    let read = async move { drop(ring.read_at(&reader, vec![0x33; 4096], 0).await) };
                    cx.spawn(&Owner::shard(), read).detach();
                }
            }))
            .is_ok()
    );
    start(&shard, |_| async {}).recv_timeout(PATIENCE).unwrap();
    assert!(matches!(shard.stop(), Err(ShardError::DrainTimeout { .. })));
    // The operations are gone: nobody takes what is written now.
    let canaries: Vec<Vec<u8>> = (0..64).map(|_| vec![0x44; 4096]).collect();
    assert_eq!(rustix::io::write(&writer, &[0x99; 64]), Err(Errno::PIPE), "no reader is left");
    assert!(canaries.iter().flatten().all(|byte| *byte == 0x44));
}

/// The kernel may refuse a submission for the moment; it is tried again although nothing else happens.
#[test]
fn the_loop_parks_again_while_file_operations_are_under_way() {
    require_uring();
    let (reader, writer) = pipe_files();
    let shard = runner(config(EngineKind::Uring));
    let done = start(&shard, |cx| async move {
        let before = cx.turn();
        let (result, _) = cx.ring().read_at(&RingFile::new(reader), vec![0; 8], 0).await;
        (result.unwrap(), cx.turn() - before)
    });
    assert!(done.recv_timeout(Duration::from_millis(450)).is_err());
    rustix::io::write(&writer, b"end").unwrap();
    let (count, turns) = done.recv_timeout(PATIENCE).unwrap();
    shard.stop().unwrap();
    assert_eq!(count, 3);
    assert!((2..=20).contains(&turns), "{turns}");
}

/// Starts an operation of the sort that files have, which ends when something is written to the pipe.
fn blocked(cx: &ShardContext, owner: &Owner, pipe: &RingFile) -> Task<usize> {
    let (ring, pipe) = (cx.ring().clone(), pipe.clone());
    cx.spawn(owner, async move {
        ring.on_file(&pipe, vec![0; 1], 0, Kind::Read(CURRENT_POSITION)).await.0.unwrap()
    })
}

/// Until `there` holds, and some turns more, in which too much could happen.
async fn come_to_rest(cx: &ShardContext, there: impl Fn() -> bool) {
    let started = Instant::now();
    while !there() {
        assert!(started.elapsed() < PATIENCE);
        cx.next_turn().await;
    }
    for _ in 0..16 {
        cx.next_turn().await;
    }
}

/// What one VM may have under way.
fn share(ring: &Ring) -> usize {
    match ring.engine() {
        EngineKind::Uring => ring.capacity() as usize / 2,
        EngineKind::Epoll => FILE_THREADS_PER_OWNER as usize,
    }
}

/// However many operations a VM has that never end, others' go on; on both engines.
fn sec_02_a_vm_whose_storage_hangs_leaves_room_to_others(engine: EngineKind) {
    let (reader, writer) = pipe_files();
    on_shard(engine, move |cx| async move {
        let (hanging, other) = (Owner::new(vm_metrics()), Owner::new(vm_metrics()));
        let (ring, capacity) = (cx.ring(), cx.ring().capacity() as usize);
        let (pipe, second) = (ring.file_of(&hanging, reader), tempfile::tempfile().unwrap());
        let tasks: Vec<_> = (0..2 * capacity).map(|_| blocked(&cx, &hanging, &pipe)).collect();
        let left = capacity - share(ring);
        come_to_rest(&cx, || ring.0.files.available_permits() <= left).await;
        assert_eq!(ring.0.files.available_permits(), left);
        let file = ring.file_of(&other, tempfile::tempfile().unwrap());
        for number in 0..100 {
            let (result, _) = ring.write_at(&file, vec![1; 512], number * 512).await;
            assert_eq!(result.unwrap(), 512);
        }
        // All files of a VM together have one share.
        let late = blocked(&cx, &hanging, &ring.file_of(&hanging, second));
        cx.timer().sleep(Duration::from_millis(5)).await;
        assert!(!late.is_finished());
        rustix::io::write(&writer, &vec![0; 2 * capacity]).unwrap();
        for task in tasks {
            assert_eq!(task.await.unwrap(), 1);
        }
        assert_eq!(late.await.unwrap(), 0);
        assert_eq!(ring.0.files.available_permits(), capacity);
    });
}

/// Two VMs that have taken everything, and always want more: the next place is a third one's.
fn operations_of_different_owners_take_turns(engine: EngineKind) {
    let (reader, writer) = pipe_files();
    on_shard(engine, |cx| async move {
        let ring = cx.ring();
        let reader = RingFile::new(reader);
        let greedy = [Owner::new(vm_metrics()), Owner::new(vm_metrics())];
        let mut tasks = Vec::new();
        for owner in &greedy {
            let pipe = ring.file_of(owner, reader.as_fd().try_clone_to_owned().unwrap());
            tasks.extend((0..ring.capacity()).map(|_| blocked(&cx, owner, &pipe)));
        }
        let left = ring.capacity() as usize - 2 * share(ring);
        come_to_rest(&cx, || ring.0.files.available_permits() <= left).await;
        let third = Owner::new(vm_metrics());
        let (ring, file) = (ring.clone(), ring.file_of(&third, tempfile::tempfile().unwrap()));
        let late = cx.spawn(&third, async move { ring.write_at(&file, vec![1; 512], 0).await.0.unwrap() });
        cx.timer().sleep(Duration::from_millis(2)).await;
        assert!(!late.is_finished(), "something was left");
        rustix::io::write(&writer, b"1").unwrap();
        assert_eq!(late.await.unwrap(), 512);
        rustix::io::write(&writer, &vec![0; tasks.len()]).unwrap();
        for task in tasks {
            assert_eq!(task.await.unwrap(), 1);
        }
    });
}
