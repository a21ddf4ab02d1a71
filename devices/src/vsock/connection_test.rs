use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringlet_io::{Buffers, DescriptorShare, EngineKind};
use ringlet_metrics::{ConnectionResult, RequestKind, RequestStatus, ResetReason};

use super::*;
use crate::testing::{Options, PATIENCE, wait_until};
use crate::vsock::test_util::*;
use crate::vsock::window::{CONNECTION_BYTES, USUAL, WIDE, connection_bytes};
use crate::vsock::{VsockOptions, VsockSource};

/// A connection that the guest has made from port 9 to port 5 of the process: the process's end.
fn accepted(bench: &mut Bench) -> UnixStream {
    let mut listener = bench.handle.listen(5).unwrap();
    bench.say(Op::Request, 9, 5);
    assert_eq!(bench.expect(Op::Response), (9, 5));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let incoming = runtime.block_on(listener.accept()).unwrap();
    assert_eq!(incoming.guest_port, 9);
    incoming.stream.set_nonblocking(false).unwrap();
    incoming.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    incoming.stream
}

#[test]
fn the_process_connects_and_bytes_pass_both_ways() {
    let mut bench = Bench::new();
    let (mut stream, host) = bench.connected();
    bench.write(7, host, b"from the guest");
    assert_eq!(taken(&mut stream, 14), b"from the guest");
    give(&mut stream, b"to the guest");
    let (header, data) = bench.next();
    assert_eq!(data, b"to the guest");
    assert_eq!((header.src_port, header.dst_port, header.op, header.flags), (host, 7, 5, 0));
    assert_eq!((header.buf_alloc, header.fwd_cnt), (WIDE, 14));
    bench.rig.settle();
    let metrics = &bench.rig.metrics;
    assert_eq!((metrics.bytes(RequestKind::Transmit), metrics.bytes(RequestKind::Receive)), (14, 12));
    assert_eq!(metrics.requests(RequestKind::Control, RequestStatus::Ok), 2);
    assert_eq!((bench.connections(), bench.results(ConnectionResult::Established)), (1, 1));
}

#[test]
fn the_guest_connects_and_bytes_pass_both_ways() {
    let mut bench = Bench::new();
    let mut stream = accepted(&mut bench);
    give(&mut stream, &bytes(100_000));
    assert!(bench.read(100_000) == bytes(100_000));
    let window = bytes(WIDE as usize);
    bench.write(9, 5, &window);
    assert!(taken(&mut stream, window.len()) == window);
    assert_eq!(bench.expect(Op::CreditUpdate), (9, 5), "there is room again");
    assert_eq!((bench.connections(), bench.results(ConnectionResult::Established), bench.bad()), (1, 1, 0));
}

#[test]
fn a_guest_that_refuses_is_told() {
    let mut bench = Bench::new();
    let (mut stream, answer) = bench.connect(7);
    let (_, host) = bench.expect(Op::Request);
    bench.say(Op::Reset, 7, host);
    assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Err(ConnectError::Refused));
    assert!(rest_of(&mut stream).is_empty());
    assert_eq!((bench.connections(), bench.results(ConnectionResult::Refused)), (0, 1));
}

#[test]
fn a_guest_that_does_not_answer_is_told_from_one_that_is_not_there() {
    let options = VsockOptions { connect_timeout: Duration::from_secs(1), ..options() };
    let mut bench = Bench::with(options, VsockSource::new(None, None), Options::new(EngineKind::Epoll));
    bench.offer();
    let (_, silent) = bench.connect(7);
    bench.expect(Op::Request);
    // There is no buffer for the second.
    let (_, unheard) = bench.connect(7);
    assert_eq!(silent.recv_timeout(PATIENCE).unwrap(), Err(ConnectError::TimedOut));
    assert_eq!(unheard.recv_timeout(PATIENCE).unwrap(), Err(ConnectError::NoDriver));
    bench.expect(Op::Reset);
    assert_eq!((bench.poll(), bench.connections(), bench.results(ConnectionResult::TimedOut)), (None, 0, 2));
}

#[test]
fn each_half_ends_by_itself() {
    let mut bench = Bench::new();
    let (mut stream, host) = bench.connected();
    stream.shutdown(Shutdown::Write).unwrap();
    let (header, _) = bench.next();
    assert_eq!((header.op, header.flags), (Op::Shutdown.number(), NO_MORE_SENT));
    bench.write(7, host, b"still");
    assert_eq!(taken(&mut stream, 5), b"still");
    bench.send(Header { flags: NO_MORE_SENT, ..Bench::header(Op::Shutdown, 7, host) }, &[]);
    assert!(rest_of(&mut stream).is_empty());
    let (header, _) = bench.next();
    assert_eq!((header.op, header.flags), (Op::Shutdown.number(), BOTH), "both halves are over");
    assert_eq!((bench.poll(), bench.connections()), (None, 1));
    bench.send(Header { flags: NO_MORE_RECEIVED, ..Bench::header(Op::Shutdown, 7, host) }, &[]);
    assert_eq!(bench.expect(Op::Reset), (7, host), "as the guest knows now");
    assert_eq!((bench.connections(), bench.bad()), (0, 0));
}

#[test]
fn a_guest_that_receives_no_more_ends_the_writing_of_the_process() {
    let mut bench = Bench::new();
    let (mut stream, host) = bench.connected();
    bench.send(Header { flags: NO_MORE_RECEIVED, ..Bench::header(Op::Shutdown, 7, host) }, &[]);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    bench.write(7, host, b"but it sends");
    assert_eq!(taken(&mut stream, 12), b"but it sends");
}

#[test]
fn a_process_that_goes_away_is_told_as_one() {
    let mut bench = Bench::new();
    let (mut stream, host) = bench.connected();
    give(&mut stream, b"bye");
    drop(stream);
    assert_eq!(bench.read(3), b"bye");
    let (header, _) = bench.next();
    assert_eq!((header.op, header.flags), (Op::Shutdown.number(), BOTH));
    bench.write(7, host, b"who is there");
    assert_eq!(bench.expect(Op::Reset), (7, host));
    assert_eq!(bench.connections(), 0);
    bench.say(Op::Reset, 7, host);
    assert_eq!((bench.poll(), bench.bad()), (None, 0));
}

/// A header that ends halves of a connection that the process has made.
fn shutdown(flags: u32, host: u32) -> Header {
    Header { flags, ..Bench::header(Op::Shutdown, 7, host) }
}

/// It shuts down one half, as many a client does before it waits for the answer, and then does not wait.
#[test]
fn a_process_that_ends_one_half_and_goes_away_is_told_as_soon_as_it_is_gone() {
    for engine in [EngineKind::Epoll, EngineKind::Uring] {
        if engine == EngineKind::Uring && ringlet_io::probe_uring().is_err() {
            continue;
        }
        let mut bench = Bench::with(options(), VsockSource::new(None, None), Options::new(engine));
        let (mut stream, host) = bench.connected();
        give(&mut stream, b"question");
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(bench.read(8), b"question");
        assert_eq!(bench.next().0.flags, NO_MORE_SENT);
        // What it reads, and what it does not, is no end.
        bench.write(7, host, b"an answer");
        assert_eq!(taken(&mut stream, 3), b"an ");
        assert_eq!(bench.poll(), None);
        drop(stream);
        let (header, _) = bench.next();
        assert_eq!((header.op, header.flags), (Op::Shutdown.number(), BOTH));
        bench.say(Op::Reset, 7, host);
        assert_eq!((bench.poll(), bench.connections(), bench.bad()), (None, 0, 0));
        assert!(bench.resets().iter().all(|(_, count)| *count == 0), "it is an orderly end");
    }
}

/// The guest receives no more, so that nothing that is received could tell.
#[test]
fn a_process_that_goes_away_is_told_to_a_guest_that_receives_no_more() {
    let mut bench = Bench::new();
    let (stream, host) = bench.connected();
    bench.send(shutdown(NO_MORE_RECEIVED, host), &[]);
    assert_eq!(bench.poll(), None);
    drop(stream);
    let (header, _) = bench.next();
    assert_eq!((header.op, header.flags), (Op::Shutdown.number(), BOTH));
    bench.send(shutdown(BOTH, host), &[]);
    assert_eq!(bench.expect(Op::Reset), (7, host));
    assert_eq!((bench.connections(), bench.bad()), (0, 0));
}

/// A bench whose guest has so long to answer, and what it takes of descriptors.
fn counting(connect_timeout: Duration) -> (Bench, DescriptorShare) {
    let share = DescriptorShare::unlimited();
    let (source, handle) = VsockSource::new(None, None);
    let source = (source.taking_from(share.clone()), handle);
    let options = VsockOptions { connect_timeout, ..options() };
    (Bench::with(options, source, Options::new(EngineKind::Epoll)), share)
}

#[test]
fn sec_02_a_guest_that_does_not_answer_the_end_keeps_no_socket_open() {
    let (mut bench, share) = counting(PATIENCE);
    let (stream, host) = bench.connected();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.next().0.flags, NO_MORE_SENT);
    assert_eq!(share.used(), 1);
    drop(stream);
    assert_eq!(bench.next().0.flags, BOTH);
    wait_until("its socket is closed", || share.used() == 0);
    assert_eq!(bench.connections(), 1);
    bench.write(7, host, b"who is there");
    assert_eq!(bench.expect(Op::Reset), (7, host));
    assert_eq!((bench.poll(), bench.connections(), bench.bad()), (None, 0, 0));
}

#[test]
fn sec_02_a_guest_that_does_not_answer_the_end_in_time_is_not_waited_for() {
    let time = Duration::from_secs(3);
    let (mut bench, share) = counting(time);
    let (stream, host) = bench.connected();
    drop(stream);
    assert_eq!(bench.next().0.flags, BOTH);
    wait_until("its socket is closed", || share.used() == 0);
    assert_eq!(bench.expect(Op::Reset), (7, host), "it has had its time");
    assert_eq!((bench.poll(), bench.connections()), (None, 0));
    // The buffer that was offered takes the request for one more, another one its first end, and then there is none.
    let (stream, host) = bench.connected();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.next().0.flags, NO_MORE_SENT);
    drop(stream);
    wait_until("its socket is closed", || share.used() == 0);
    let begun = Instant::now();
    wait_until("it would have had its time", || begun.elapsed() > time + time / 4);
    assert_eq!(bench.next().0.flags, BOTH, "but it takes no packets");
    bench.say(Op::Reset, 7, host);
    assert_eq!((bench.poll(), bench.connections(), bench.bad()), (None, 0, 0));
}

#[test]
fn a_reset_ends_the_stream() {
    let mut bench = Bench::new();
    let (mut stream, host) = bench.connected();
    bench.write(7, host, b"last");
    bench.say(Op::Reset, 7, host);
    assert_eq!(rest_of(&mut stream), b"last");
    assert_eq!((bench.connections(), bench.poll()), (0, None));
    bench.write(7, host, b"too late");
    assert_eq!(bench.expect(Op::Reset), (7, host));
}

/// Everything that a guest was promised room for arrives, though nobody reads for a while, and then the end.
#[test]
fn what_a_slow_reader_does_not_take_is_kept_up_to_the_credit_and_no_further() {
    let mut bench = Bench::new();
    let (mut stream, host) = bench.connected();
    let mut told = 0u32;
    let mut sent = Vec::new();
    loop {
        let free = WIDE - (sent.len() as u32 - told);
        if free == 0 {
            match bench.poll() {
                Some((header, _)) => told = header.fwd_cnt,
                None => break,
            }
            continue;
        }
        let part = bytes(free.min(10_000) as usize);
        bench.write(7, host, &part);
        sent.extend(part);
        assert!(sent.len() < 4 << 20, "sockets have bounds");
    }
    bench.send(Header { flags: BOTH, ..Bench::header(Op::Shutdown, 7, host) }, &[]);
    assert_eq!(bench.connections(), 1, "there is something left to deliver");
    assert!(taken(&mut stream, sent.len()) == sent);
    assert!(rest_of(&mut stream).is_empty());
    while Op::from_number(bench.next().0.op) != Some(Op::Reset) {}
    assert_eq!((bench.connections(), bench.bad()), (0, 0));
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let mut bench = Bench::new();
    let (mut stream, host) = bench.connected();
    let room = |bytes, taken| Header {
        buf_alloc: bytes,
        fwd_cnt: taken,
        ..Bench::header(Op::CreditUpdate, 7, host)
    };
    bench.send(room(100, 0), &[]);
    give(&mut stream, &bytes(250));
    assert_eq!(bench.next().1, bytes(100));
    bench.expect(Op::CreditRequest);
    assert_eq!(bench.poll(), None, "it asks once");
    bench.send(room(100, 60), &[]);
    assert_eq!(bench.next().1, bytes(160)[100..]);
    bench.expect(Op::CreditRequest);
    bench.send(room(0, 160), &[]);
    assert_eq!(bench.poll(), None);
    bench.send(room(1000, 160), &[]);
    assert_eq!(bench.next().1, bytes(250)[160..]);
    bench.say(Op::CreditRequest, 7, host);
    assert_eq!(bench.expect(Op::CreditUpdate), (7, host));
    assert_eq!(bench.bad(), 0);
}

#[test]
fn sec_02_a_connection_takes_what_was_counted_for_it() {
    assert!(
        6 * size_of::<Connection>() < CONNECTION_BYTES as usize,
        "with its place in two tables, and its task"
    );
    let buffers = Buffers::new(2 * connection_bytes(WIDE) + connection_bytes(USUAL[2]) + 2000);
    let rig = Options { buffers: buffers.clone(), ..Options::new(EngineKind::Epoll) };
    let mut bench = Bench::with(options(), VsockSource::new(None, None), rig);
    let mut windows = Vec::new();
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(bench.connect(7));
        windows.push(bench.next().0.buf_alloc);
    }
    assert_eq!(windows, [WIDE, WIDE, USUAL[2]], "the guest is promised what there is");
    let (_, answer) = bench.connect(7);
    assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Err(ConnectError::Full));
    bench.say(Op::Request, 9, 5);
    assert_eq!(bench.expect(Op::Reset), (9, 5));
    assert_eq!(bench.results(ConnectionResult::Full), 2);
    bench.rig.write(crate::virtio::spec::register::STATUS, 0);
    wait_until("all is given back", || buffers.reading().used == 0);
}

#[test]
fn what_breaks_connections_off_is_counted_by_reason() {
    let mut bench = Bench::new();
    let (_stream, host) = bench.connected();
    bench.say(Op::Reset, 7, host);
    let (_stream, host) = bench.connected();
    bench.say(Op::Response, 7, host);
    assert_eq!(bench.expect(Op::Reset), (7, host), "it was given already");
    bench.write(9, 5, b"whose?");
    assert_eq!(bench.expect(Op::Reset), (9, 5));
    // An orderly end is not among them.
    let (stream, host) = bench.connected();
    drop(stream);
    bench.expect(Op::Shutdown);
    bench.say(Op::Reset, 7, host);
    let (_stream, _) = bench.connected();
    bench.rig.write(crate::virtio::spec::register::STATUS, 0);
    wait_until("the reset is done", || bench.connections() == 0);
    let each_once: Vec<_> = ResetReason::ALL.iter().map(|reason| (*reason, 1)).collect();
    assert_eq!(bench.resets(), each_once);
}
