use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringlet_io::EngineKind;
use ringlet_io::limiter::{Limits, PerUnit, TokenBucket};

use super::*;
use crate::testing::{Buffer, Options, Rig, wait_until};
use crate::virtio::spec::register;
use crate::vsock::VsockSource;
use crate::vsock::packet::{Header, Op};
use crate::vsock::test_util::*;

/// Where a test has buffers of its own.
const AT: u64 = Rig::DATA + 0x8_0000;

fn header(bench: &Bench, at: u64) -> Header {
    let mut bytes = [0; HEADER];
    bench.rig.ram.read(at, &mut bytes).unwrap();
    Header::parse(&bytes)
}

#[test]
fn a_packet_is_as_long_as_its_buffer_however_that_is_cut() {
    let mut bench = Bench::new();
    let (mut stream, _) = bench.connected();
    give(&mut stream, &bytes(300));
    let pieces: Vec<_> = (0..60).map(|n| Buffer::writable(AT + 2 * n, 1)).collect();
    bench.rig.send(&mut bench.rx, &pieces);
    assert_eq!(bench.rig.used(&mut bench.rx).len, 60);
    bench.rig.send(&mut bench.rx, &[Buffer::writable(AT, 45)]);
    assert_eq!(bench.rig.used(&mut bench.rx).len, 45);
    assert_eq!(header(&bench, AT).len, 1);
    bench.rig.send(&mut bench.rx, &[Buffer::writable(AT, 44), Buffer::writable(AT + 0x1000, 1000)]);
    assert_eq!(bench.rig.used(&mut bench.rx).len, 44 + 300 - 17);
    let mut rest = vec![0; 284];
    bench.rig.ram.read(AT + 0x1000, &mut rest).unwrap();
    assert_eq!(rest, [&bytes(300)[17..], &[0]].concat(), "and nothing behind it is written");
}

#[test]
fn sec_07_buffers_without_room_are_refused_and_the_queue_goes_on() {
    let mut bench = Bench::new();
    let (mut stream, _) = bench.connected();
    give(&mut stream, b"hello");
    for buffers in [
        &[Buffer::writable(AT, 44)][..],
        &[Buffer::readable(AT, 44), Buffer::writable(AT + 0x100, 1000)],
        &[Buffer::readable(AT, 1000)],
    ] {
        bench.rig.send(&mut bench.rx, buffers);
        assert_eq!(bench.rig.used(&mut bench.rx).len, 0);
    }
    assert_eq!((bench.bad(), bench.read(5)), (3, b"hello".to_vec()));
}

/// Each connection has one packet a turn, whatever the others have.
#[test]
fn sec_02_connections_have_their_turns() {
    let mut bench = Bench::new();
    let streams: Vec<(UnixStream, u32)> = (0..4).map(|_| bench.connected()).collect();
    let hosts: Vec<u32> = streams.iter().map(|(_, host)| *host).collect();
    for (stream, _) in &streams[..3] {
        let mut much = stream;
        much.write_all(&[7; 16_384]).unwrap();
    }
    bench.rig.settle();
    let mut little = &streams[3].0;
    let mut counts = [0; 4];
    for round in 0..100 {
        if round % 10 == 0 {
            little.write_all(b"x").unwrap();
            bench.rig.settle();
        }
        bench.rig.send(&mut bench.rx, &[Buffer::writable(AT, 44 + 64)]);
        bench.rig.used(&mut bench.rx);
        let packet = header(&bench, AT);
        let who = hosts.iter().position(|host| *host == packet.src_port).unwrap();
        counts[who] += 1;
        // What it takes, it passes on.
        let taken = Header {
            fwd_cnt: 64 * counts[who],
            buf_alloc: 1 << 20,
            ..Bench::header(Op::CreditUpdate, 7, packet.src_port)
        };
        if who < 3 {
            bench.send(taken, &[]);
        }
    }
    assert_eq!(counts[3], 10, "who has little does not wait for who has much: {counts:?}");
    assert!(counts[..3].iter().all(|count| *count >= 28), "{counts:?}");
}

#[test]
fn sec_02_without_buffers_nothing_is_taken_from_a_socket() {
    let mut bench = Bench::new();
    let (stream, _) = bench.connected();
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while let Ok(count) = (&stream).write(&[0; 4096]) {
        sent += count;
    }
    bench.rig.settle();
    assert!((&stream).write(&[0; 1]).is_err(), "it is still full");
    stream.shutdown(Shutdown::Write).unwrap();
    let mut came = 0;
    loop {
        let (header, data) = bench.next();
        if header.op == Op::Shutdown.number() {
            break;
        }
        came += data.len();
        let taken = Header { fwd_cnt: came as u32, ..Bench::header(Op::CreditUpdate, 7, header.src_port) };
        bench.send(taken, &[]);
    }
    assert_eq!(came, sent);
}

#[test]
fn sec_02_what_comes_is_limited_in_bytes_and_packets() {
    let hour = Duration::from_secs(3600);
    let limited = |operations: Option<u64>, bytes: Option<u64>| {
        let bucket = |size| TokenBucket::new(size, hour);
        let read = PerUnit { operations: operations.map(bucket), bytes: bytes.map(bucket) };
        let limits = Limits { read, ..Limits::default() };
        let rig = Options::limited(EngineKind::Epoll, limits);
        let mut bench = Bench::with(options(), VsockSource::new(None, None), rig);
        let (mut stream, _) = bench.connected();
        give(&mut stream, &[1; 20_000]);
        let before = bench.rx.used_index();
        for n in 0..20 {
            bench.rig.send(&mut bench.rx, &[Buffer::writable(AT + 0x1000 * n, 44 + 1000)]);
        }
        wait_until("some come", || bench.rx.used_index() != before);
        bench.rig.settle();
        bench.rx.used_index() - before
    };
    assert_eq!(limited(Some(6), None), 5, "the request was one");
    // The fourth is taken while 500 bytes are left, and nothing is while any are owed.
    assert_eq!(limited(None, Some(3_500)), 4);
}

#[test]
fn sec_08_a_reset_ends_all_connections_and_leaves_buffers_alone() {
    let mut bench = Bench::new();
    let (mut stream, _) = bench.connected();
    let (_, answer) = bench.connect(8);
    bench.expect(Op::Request);
    bench.offer();
    bench.rig.settle();
    bench.rig.write(register::STATUS, 0);
    assert!(rest_of(&mut stream).is_empty());
    assert_eq!(answer.recv().unwrap(), Err(crate::vsock::ConnectError::Reset));
    assert_eq!((bench.connections(), bench.rx.take_used()), (0, None));
    let (_, _unheard) = bench.connect(9);
    wait_until("it is asked", || bench.connections() == 1);
    bench.rig.settle();
    assert_eq!(bench.rx.take_used(), None, "nothing is written after a reset");
}

#[test]
fn suspending_keeps_connections_and_stopping_ends_them() {
    let mut bench = Bench::new();
    let (mut stream, host) = bench.connected();
    bench.offer();
    bench.rig.suspend().unwrap();
    give(&mut stream, b"meanwhile");
    bench.rig.settle();
    assert_eq!(bench.rx.take_used(), None);
    bench.rig.resume().unwrap();
    assert_eq!(bench.next().1, b"meanwhile");
    bench.write(7, host, b"on");
    assert_eq!(taken(&mut stream, 2), b"on");
    let mut listener = bench.handle.listen(5).unwrap();
    bench.rig.stop().unwrap();
    assert!(rest_of(&mut stream).is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(runtime.block_on(listener.accept()).is_none());
    assert_eq!(bench.connect(7).1.recv().unwrap(), Err(crate::vsock::ConnectError::Ended));
}
