use std::future::Future;
use std::task::{Context, Waker};
use std::time::Duration;

use ringlet_io::limiter::{Limits, PerUnit, TokenBucket};
use ringlet_io::{EngineKind, Gate, LimiterSeed};
use ringlet_metrics::ConnectionResult;

use super::*;
use crate::testing::{Buffer, Options, Rig, wait_until};
use crate::vsock::packet::{HOST_CID, MAX_CID, NO_MORE_SENT};
use crate::vsock::switch::REPLIES;
use crate::vsock::test_util::*;
use crate::vsock::{MAX_CONNECTIONS, VsockOptions, VsockSource};

/// Headers that mean nothing, from port 9 to port 5, and whether they are answered.
fn malformed() -> Vec<(Header, bool)> {
    let data = Bench::header(Op::Data, 9, 5);
    vec![
        (Header { src_cid: CID + 1, ..data }, false),
        (Header { src_cid: HOST_CID, ..data }, false),
        (Header { src_cid: CID | 1 << 32, ..data }, false),
        (Header { dst_cid: CID, ..data }, false),
        (Header { dst_cid: MAX_CID + 1, ..data }, false),
        (Header { dst_cid: HOST_CID | 1 << 32, ..data }, false),
        (Header { kind: 0, ..data }, true),
        (Header { kind: 2, ..data }, true),
        (Header { op: 0, ..data }, true),
        (Header { op: 8, ..data }, true),
        (Header { op: u16::MAX, ..data }, true),
        (Header { len: 101, ..data }, true),
        (Header { len: u32::MAX, ..data }, true),
    ]
}

#[test]
fn sec_07_malformed_packets_are_counted_and_those_of_the_guest_are_answered() {
    let mut bench = Bench::new();
    for (n, (header, is_answered)) in (1..).zip(malformed()) {
        bench.send(header, &bytes(100));
        assert_eq!(bench.bad(), n, "{header:?}");
        let answer =
            bench.poll().map(|(answer, _)| (answer.op, answer.kind, answer.dst_port, answer.src_port));
        assert_eq!(answer, is_answered.then_some((Op::Reset.number(), header.kind, 9, 5)), "{header:?}");
    }
    // Nobody answers an answer.
    bench.send(Header { kind: 9, ..Bench::header(Op::Reset, 9, 5) }, &[]);
    assert_eq!((bench.poll(), bench.connections()), (None, 0));
    assert_eq!(bench.rig.metrics.broken_queues.get(), 0);
}

/// Each ends its connection, and no other.
#[test]
fn sec_07_malformed_packets_end_their_connection_only() {
    let mut bench = Bench::new();
    let (mut other, other_host) = bench.connected();
    let lies = [
        (Op::Data.number(), Header { len: 101, ..Header::default() }),
        (Op::Data.number(), Header { len: WIDE + 1, ..Header::default() }),
        (Op::Data.number(), Header { fwd_cnt: 1, ..Header::default() }),
        (Op::CreditUpdate.number(), Header { fwd_cnt: 1 << 30, ..Header::default() }),
        (Op::Shutdown.number(), Header { flags: 4, ..Header::default() }),
        (Op::Request.number(), Header::default()),
        (Op::Response.number(), Header::default()),
        (9, Header::default()),
    ];
    for (n, (op, lie)) in (1..).zip(lies) {
        let (mut stream, host) = bench.connected();
        let header = Header {
            op,
            len: lie.len,
            fwd_cnt: lie.fwd_cnt,
            flags: lie.flags,
            ..Bench::header(Op::Data, 7, host)
        };
        let there = if lie.len > WIDE { WIDE as usize + 1 } else { 100 };
        bench.send(header, &bytes(there));
        assert_eq!(bench.expect(Op::Reset), (7, host), "{header:?}");
        assert!(rest_of(&mut stream).is_empty(), "nothing of it is passed on");
        assert_eq!((bench.bad(), bench.connections()), (n, 1), "{header:?}");
    }
    bench.write(7, other_host, b"still there");
    assert_eq!(taken(&mut other, 11), b"still there");
}

#[test]
fn sec_07_a_guest_answers_what_it_was_asked_and_nothing_else() {
    let mut bench = Bench::new();
    let (_stream, answer) = bench.connect(7);
    wait_until("it is asked", || bench.connections() == 1);
    // It can guess the port.
    bench.say(Op::Response, 7, 1 << 30);
    assert_eq!(bench.expect(Op::Reset), (7, 1 << 30));
    assert!(answer.recv().unwrap().is_err());
    let (_stream, answer) = bench.connect(7);
    let (_, host) = bench.expect(Op::Request);
    bench.write(7, host, b"too early");
    assert_eq!(bench.expect(Op::Reset), (7, host));
    assert!(answer.recv().unwrap().is_err());
    let (_stream, host) = bench.connected();
    bench.send(Header { flags: NO_MORE_SENT, ..Bench::header(Op::Shutdown, 7, host) }, &[]);
    bench.write(7, host, b"too late");
    assert_eq!(bench.expect(Op::Reset), (7, host));
    assert_eq!((bench.bad(), bench.connections()), (3, 0));
}

#[test]
fn packets_without_a_connection_are_answered_by_a_reset() {
    let mut bench = Bench::new();
    for op in [Op::Request, Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        bench.say(op, 9, 5);
        assert_eq!(bench.expect(Op::Reset), (9, 5), "{op:?}");
    }
    bench.say(Op::Reset, 9, 5);
    assert_eq!((bench.poll(), bench.bad()), (None, 0), "none of them need be a mistake");
}

#[test]
fn sec_07_chains_that_hold_no_packet_are_refused_and_the_queue_goes_on() {
    let mut bench = Bench::new();
    let at = Rig::DATA;
    for buffers in [
        &[Buffer::readable(at, 44), Buffer::writable(at + 0x100, 8)][..],
        &[Buffer::writable(at, 100)],
        &[Buffer::readable(at, 43)],
    ] {
        bench.rig.send(&mut bench.tx, buffers);
        assert_eq!(bench.rig.used(&mut bench.tx).len, 0);
    }
    assert_eq!(bench.bad(), 3);
    let (mut stream, host) = bench.connected();
    bench
        .rig
        .ram
        .write(at, &[&Header { len: 3, ..Bench::header(Op::Data, 7, host) }.bytes()[..], b"abcd"].concat())
        .unwrap();
    let pieces: Vec<_> = (0..48).map(|n| Buffer::readable(at + n, 1)).collect();
    bench.rig.send(&mut bench.tx, &pieces);
    bench.rig.used(&mut bench.tx);
    assert_eq!(taken(&mut stream, 3), b"abc", "however it is cut, and no more than it says");
}

/// Asking for connections without end, and not listening to the answers.
#[test]
fn sec_02_a_guest_that_takes_no_answers_is_not_listened_to() {
    let mut bench = Bench::new();
    for port in 0..REPLIES as u32 {
        bench.say(Op::Request, port, 5);
    }
    bench.post(Bench::header(Op::Request, 1000, 5), &[]);
    bench.rig.settle();
    assert_eq!(bench.tx.take_used(), None, "it waits");
    bench.rig.suspend().unwrap();
    bench.rig.resume().unwrap();
    bench.rig.settle();
    assert_eq!(bench.tx.take_used(), None, "and holds up nobody");
    assert_eq!(bench.expect(Op::Reset), (0, 5));
    bench.rig.used(&mut bench.tx);
    for port in (1..REPLIES as u32).chain([1000]) {
        assert_eq!(bench.expect(Op::Reset), (port, 5));
    }
    assert_eq!((bench.poll(), bench.connections()), (None, 0));
}

#[test]
fn a_packet_is_admitted_before_it_is_taken() {
    let gate = Gate::new();
    let rig = Options { limiter: LimiterSeed::gated(gate.clone()), ..Options::new(EngineKind::Epoll) };
    let mut bench = Bench::with(options(), VsockSource::new(None, None), rig);
    gate.let_through(2);
    let (mut stream, host) = bench.connected();
    let header = Header { len: 5, ..Bench::header(Op::Data, 7, host) };
    bench.post(header, b"hello");
    bench.rig.settle();
    bench.rig.suspend().unwrap();
    assert_eq!(bench.rig.save().unwrap().queues[1].unwrap().next_avail, 1, "it is still the driver's");
    bench.rig.resume().unwrap();
    gate.let_through(1);
    bench.rig.used(&mut bench.tx);
    assert_eq!(taken(&mut stream, 5), b"hello");
    assert_eq!(gate.costs(), [Cost::read(0), Cost::write(0), Cost::write(5)]);
}

#[test]
fn sec_02_what_is_sent_is_limited_in_bytes_and_packets() {
    let hour = Duration::from_secs(3600);
    let limited = |operations: Option<u64>, bytes: Option<u64>| {
        let bucket = |size| TokenBucket::new(size, hour);
        let write = PerUnit { operations: operations.map(bucket), bytes: bytes.map(bucket) };
        let limits = Limits { write, ..Limits::default() };
        let rig = Options::limited(EngineKind::Epoll, limits);
        let mut bench = Bench::with(options(), VsockSource::new(None, None), rig);
        let (_stream, host) = bench.connected();
        for _ in 0..20 {
            bench.post(Header { len: 1000, ..Bench::header(Op::Data, 7, host) }, &[1; 1000]);
        }
        wait_until("some are sent", || bench.tx.used_index() > 1);
        bench.rig.settle();
        bench.tx.used_index() - 1
    };
    assert_eq!(limited(Some(6), None), 5, "the answer was one");
    assert_eq!(limited(None, Some(3_500)), 3);
}

/// A packet that is longer than any guest has room for is refused, so it does not make the others wait as if it had been
/// sent.
#[test]
fn sec_02_nobody_pays_for_what_is_not_moved() {
    let bytes = TokenBucket::new(u64::from(WIDE) + 1000, Duration::from_secs(3600));
    let write = PerUnit { operations: None, bytes: Some(bytes) };
    let limits = Limits { write, ..Limits::default() };
    let rig = Options::limited(EngineKind::Epoll, limits);
    let mut bench = Bench::with(options(), VsockSource::new(None, None), rig);
    bench.write(9, 5, &[1; WIDE as usize + (64 << 10)]);
    assert_eq!(bench.expect(Op::Reset), (9, 5));
    let (mut stream, host) = bench.connected();
    bench.write(7, host, b"not an hour later");
    assert_eq!(taken(&mut stream, 17), b"not an hour later");
}

/// Where packets are that come and go many at a time, and how many.
const AT: u64 = Rig::DATA;
const BATCH: u32 = 250;

/// Sends a packet without data from each of some ports, and waits until all are given back.
fn say_all(bench: &mut Bench, op: Op, ports: std::ops::Range<u32>) {
    for (at, port) in (AT..).step_by(HEADER).zip(ports.clone()) {
        bench.rig.ram.write(at, &Bench::header(op, port, 5).bytes()).unwrap();
        bench.tx.add(&[Buffer::readable(at, HEADER as u32)]);
    }
    bench.rig.ring(1);
    for _ in ports {
        bench.rig.used(&mut bench.tx);
    }
}

/// Takes so many packets; gives how many are of each operation.
fn hear_all(bench: &mut Bench, count: u32) -> [u32; 8] {
    let place = |n| AT + 0x1_0000 + 64 * u64::from(n);
    for n in 0..count {
        bench.rx.add(&[Buffer::writable(place(n), 64)]);
    }
    bench.rig.ring(0);
    let mut counts = [0; 8];
    for n in 0..count {
        assert_eq!(bench.rig.used(&mut bench.rx).len, HEADER as u32);
        let mut bytes = [0; HEADER];
        bench.rig.ram.read(place(n), &mut bytes).unwrap();
        counts[usize::from(Header::parse(&bytes).op)] += 1;
    }
    counts
}

/// As many connections as there may be, all of them open at the same time, and then some.
#[test]
fn sec_02_ten_thousand_connections_are_served_and_one_more_is_refused() {
    let options = VsockOptions { queue_size: 256, ..VsockOptions::new("vsock0", CID) };
    let mut bench = Bench::with(options, VsockSource::new(None, None), Options::new(EngineKind::Epoll));
    let mut listener = bench.handle.listen(5).unwrap();
    let mut accepted = 0;
    let batches = || (0..MAX_CONNECTIONS).step_by(100).map(|first| first..first + 100);
    for ports in batches() {
        say_all(&mut bench, Op::Request, ports);
        // The process goes away at once, but the guest does not answer: the connection stays.
        let mut cx = Context::from_waker(Waker::noop());
        while std::pin::pin!(listener.accept()).poll(&mut cx).is_ready() {
            accepted += 1;
        }
    }
    assert_eq!((accepted, bench.connections()), (MAX_CONNECTIONS, i64::from(MAX_CONNECTIONS)));
    bench.say(Op::Request, MAX_CONNECTIONS, 5);
    let mut heard = [0; 8];
    for _ in 0..2 * MAX_CONNECTIONS / BATCH {
        let more = hear_all(&mut bench, BATCH);
        heard.iter_mut().zip(more).for_each(|(sum, count)| *sum += count);
    }
    heard[usize::from(Op::from_number(bench.next().0.op).unwrap().number())] += 1;
    let expected = [0, 0, MAX_CONNECTIONS, 1, MAX_CONNECTIONS, 0, 0, 0];
    assert_eq!(heard, expected, "responses, a reset, shutdowns");
    assert_eq!(bench.results(ConnectionResult::Full), 1);
    for ports in batches() {
        say_all(&mut bench, Op::Reset, ports);
    }
    assert_eq!((bench.connections(), bench.bad()), (0, 0));
}
