use std::task::{Context, Waker};
use std::thread;

use super::*;

fn read_all(reader: &PipeReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.take(&mut bytes);
    bytes
}

/// Polls a future once; true if it is done.
fn polled(future: impl Future) -> bool {
    pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn bytes_come_out_as_they_went_in_and_no_more_than_fit() {
    let (writer, reader) = pipe(4);
    assert_eq!(writer.try_write(b"abc"), Ok(3));
    assert_eq!(writer.try_write(b"def"), Ok(1));
    assert_eq!(writer.try_write(b"ef"), Ok(0));
    assert_eq!(reader.available(), 4);
    let mut first = [0; 2];
    assert_eq!((reader.peek(&mut first), &first), (2, b"ab"));
    assert_eq!(reader.available(), 4, "a peek takes nothing");
    reader.skip(1);
    assert_eq!(writer.try_write(b"ef"), Ok(1));
    assert_eq!(read_all(&reader), b"bcde");
    assert_eq!(reader.peek(&mut first), 0);
    reader.skip(100);
}

#[test]
fn waiting_ends_with_what_was_waited_for() {
    let (writer, reader) = pipe(2);
    assert!(polled(writer.room()) && !polled(reader.ready()));
    assert_eq!(writer.try_write(b"xy"), Ok(2));
    assert!(!polled(writer.room()) && polled(reader.ready()));
    reader.skip(1);
    assert!(polled(writer.room()));
}

#[tokio::test]
async fn a_reader_finds_the_end_after_the_last_byte_of_the_last_writer() {
    let (writer, reader) = pipe(8);
    let other = writer.clone();
    assert_eq!(writer.try_write(b"one"), Ok(3));
    drop(writer);
    let mut bytes = Vec::new();
    assert!(reader.read(&mut bytes).await);
    assert!(!polled(reader.ready()), "a writer is left");
    let (more, ()) = tokio::join!(reader.ready(), async { drop(other) });
    assert!(!more);
    assert!(!reader.read(&mut bytes).await);
    assert_eq!(bytes, b"one");
}

#[tokio::test]
async fn writers_find_a_dropped_reader_also_while_they_wait() {
    let (writer, reader) = pipe(1);
    assert!(!writer.is_closed());
    let (written, ()) = tokio::join!(writer.write_all(b"abc"), async { drop(reader) });
    assert_eq!(written, Err(Closed));
    assert!(writer.is_closed());
    assert_eq!((writer.try_write(b"x"), writer.room().await), (Err(Closed), Err(Closed)));
    assert_eq!(writer.write_all_blocking(b"x"), Err(Closed));
}

#[tokio::test]
async fn many_writers_wait_for_one_reader_and_nothing_is_lost() {
    let (writer, reader) = pipe(3);
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let writer = writer.clone();
            tokio::spawn(async move { writer.write_all(&[n; 100]).await })
        })
        .collect();
    drop(writer);
    let mut bytes = Vec::new();
    while reader.read(&mut bytes).await {}
    for writer in writers {
        assert_eq!(writer.await.unwrap(), Ok(()));
    }
    assert_eq!((0..8).map(|n| bytes.iter().filter(|byte| **byte == n).count()).collect::<Vec<_>>(), [100; 8]);
}

#[test]
fn threads_that_block_are_woken_by_the_reader_and_wake_it() {
    let (writer, reader) = pipe(7);
    let sent: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
    let expected = sent.clone();
    let sender = thread::spawn(move || writer.write_all_blocking(&sent));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let received = runtime.block_on(async {
        let mut bytes = Vec::new();
        while reader.read(&mut bytes).await {}
        bytes
    });
    assert_eq!(received, expected);
    assert_eq!(sender.join().unwrap(), Ok(()));
    let (writer, reader) = pipe(1);
    let sender = thread::spawn(move || writer.write_all_blocking(b"ab"));
    runtime.block_on(reader.ready());
    drop(reader);
    assert_eq!(sender.join().unwrap(), Err(Closed));
}

#[test]
fn sec_02_memory_is_bounded_and_given_back() {
    let (writer, reader) = pipe(64 << 10);
    let allocated = || reader.0.lock().bytes.capacity();
    assert_eq!(allocated(), 0, "an idle pipe costs nothing");
    while writer.try_write(&[0; 1000]).unwrap() > 0 {}
    assert!(allocated() <= 64 << 10, "{}", allocated());
    read_all(&reader);
    assert!(allocated() <= RETAINED, "{}", allocated());
}
