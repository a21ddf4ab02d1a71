use std::future::Future;
use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::pin::pin;
use std::task::{Context, Waker};
use std::thread;

use super::super::testing::*;
use super::super::{MAX_PACKET, NetSource, SocketError};
use super::*;
use crate::Owner;
use crate::engine::EngineKind;
use crate::testing::*;

on_both_engines!(
    frames_pass_between_two_ports,
    a_stream_carries_frames_with_their_lengths,
    frames_in_parts_come_whole,
    a_frame_that_came_with_another_is_ready_at_once,
    sec_07_a_peer_that_lies_about_a_length_is_told_and_ends_the_port,
    a_peer_that_goes_ends_the_port_after_what_it_sent,
    a_peer_that_reads_slowly_makes_senders_wait,
    a_frame_that_went_in_parts_is_sent_once,
    a_peer_that_writes_byte_by_byte_leaves_turns_to_others,
    frames_that_do_not_fit_are_dropped_and_told,
    what_would_have_to_be_finished_is_refused,
    datagrams_are_frames,
    a_dropped_wait_loses_nothing,
);

const PLAIN: [u8; HEADER] = [0; HEADER];

fn ports(cx: &ShardContext, sockets: [Socket; 2]) -> [Rc<dyn NetPort>; 2] {
    sockets.map(|socket| NetSource::Socket(socket).attach(cx).unwrap().swap_remove(0))
}

fn port(cx: &ShardContext, fd: impl Into<std::os::fd::OwnedFd>) -> Rc<dyn NetPort> {
    attach(Socket::from_fd(fd.into()).unwrap(), cx).unwrap()
}

/// All pairs of connected sockets that there are.
fn pairs() -> Vec<[Socket; 2]> {
    let stream = UnixStream::pair().unwrap();
    let datagram = UnixDatagram::pair().unwrap();
    vec![
        Socket::pair().unwrap().into(),
        [stream.0.into(), stream.1.into()].map(|fd| Socket::from_fd(fd).unwrap()),
        [datagram.0.into(), datagram.1.into()].map(|fd| Socket::from_fd(fd).unwrap()),
    ]
}

fn frame(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|index| ((index + seed) * 31 % 251) as u8).collect()
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

async fn give(port: &dyn NetPort, frame: &Lease) -> io::Result<()> {
    give_parts(port, &PLAIN, frame).await
}

async fn give_parts(port: &dyn NetPort, head: &[u8], rest: &Lease) -> io::Result<()> {
    loop {
        match port.send(head, rest)? {
            Sent::Later => port.writable().await?,
            Sent::Refused => panic!("the frame is refused"),
            Sent::Taken => return Ok(()),
        }
    }
}

/// The next packet's frame, with room in pieces.
async fn take(port: &dyn NetPort, memory: &Memory) -> io::Result<Vec<u8>> {
    let room = memory.room(MAX_PACKET, 5);
    match next(port, &room).await? {
        Received::Packet(length) => {
            let packet = memory.bytes(length, MAX_PACKET, 5);
            assert_eq!(packet[..HEADER], PLAIN, "nothing is left open");
            Ok(packet[HEADER..].to_vec())
        }
        other => panic!("{other:?}"),
    }
}

fn frames_pass_between_two_ports(engine: EngineKind) {
    for sockets in pairs() {
        assert_eq!(sockets[0].info().queue_pairs, 1);
        assert_eq!(sockets[0].info().offloads, Offloads::NONE);
        on_shard(engine, move |cx| async move {
            let ports = ports(&cx, sockets);
            let memory = [Memory::new(), Memory::new()];
            for length in [MIN_FRAME, 60, 1514, 9014, MAX_FRAME] {
                for (from, to) in [(0, 1), (1, 0)] {
                    let sender = Rc::clone(&ports[from]);
                    // Of one direction, a part of the frame is not in guest memory.
                    let bytes = frame(length, from);
                    let (ours, rest) = bytes.split_at(if from == 0 { MIN_FRAME } else { 0 });
                    let head = [PLAIN.as_slice(), ours].concat();
                    let lease = memory[0].frame(rest, 3);
                    let sending =
                        cx.spawn(&Owner::shard(), async move { give_parts(&*sender, &head, &lease).await });
                    assert_eq!(take(&*ports[to], &memory[1]).await.unwrap(), frame(length, from));
                    sending.await.unwrap().unwrap();
                }
            }
        });
    }
}

fn a_stream_carries_frames_with_their_lengths(engine: EngineKind) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    peer.write_all(&framed(&frame(60, 1))).unwrap();
    on_shard(engine, move |cx| async move {
        let (port, memory) = (port(&cx, ours), Memory::new());
        give(&*port, &memory.frame(&frame(70, 2), 2)).await.unwrap();
        assert_eq!(take(&*port, &memory).await.unwrap(), frame(60, 1));
    });
    assert_eq!(read_all(peer), framed(&frame(70, 2)));
}

fn frames_in_parts_come_whole(engine: EngineKind) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let sent: Vec<_> = (0..40).map(|index| frame(14 + index * 97, index)).collect();
    let bytes: Vec<u8> = sent.iter().flat_map(|frame| framed(frame)).collect();
    let writer = thread::spawn(move || {
        for part in bytes.chunks(601) {
            peer.write_all(part).unwrap();
            thread::yield_now();
        }
        peer
    });
    let count = sent.len();
    let came = on_shard(engine, move |cx| async move {
        let (port, memory) = (port(&cx, ours), Memory::new());
        let mut came = Vec::new();
        for _ in 0..count {
            came.push(take(&*port, &memory).await.unwrap());
        }
        came
    });
    assert!(came == sent);
    drop(writer.join().unwrap());
}

fn a_frame_that_came_with_another_is_ready_at_once(engine: EngineKind) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    peer.write_all(&[framed(&frame(60, 1)), framed(&frame(61, 2))].concat()).unwrap();
    on_shard(engine, move |cx| async move {
        let (port, memory) = (port(&cx, ours), Memory::new());
        assert_eq!(take(&*port, &memory).await.unwrap(), frame(60, 1));
        // The event loop has nothing to say about it.
        let mut wait = pin!(port.readable());
        assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        assert_eq!(take(&*port, &memory).await.unwrap(), frame(61, 2));
    });
    drop(peer);
}

fn sec_07_a_peer_that_lies_about_a_length_is_told_and_ends_the_port(engine: EngineKind) {
    for told in [MAX_FRAME as u32 + 1, u32::MAX] {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        peer.write_all(&[framed(&frame(60, 1)), told.to_be_bytes().to_vec(), vec![0; 1000]].concat())
            .unwrap();
        on_shard(engine, move |cx| async move {
            let (port, memory) = (port(&cx, ours), Memory::new());
            assert_eq!(take(&*port, &memory).await.unwrap(), frame(60, 1));
            for _ in 0..2 {
                let error = take(&*port, &memory).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                assert!(error.to_string().contains(&told.to_string()), "{error}");
            }
            assert!(port.send(&PLAIN, &memory.frame(&frame(60, 1), 1)).is_err());
            port.readable().await.unwrap();
            port.writable().await.unwrap();
        });
    }
}

fn a_peer_that_goes_ends_the_port_after_what_it_sent(engine: EngineKind) {
    let (packets, other) = Socket::pair().unwrap();
    let stream = UnixStream::pair().unwrap();
    rustix::io::write(&other.fd, &frame(60, 1)).unwrap();
    (&stream.1).write_all(&framed(&frame(60, 1))).unwrap();
    // In the middle of a frame.
    (&stream.1).write_all(&framed(&frame(60, 1))[..30]).unwrap();
    drop((other, stream.1));
    let sockets = [packets, Socket::from_fd(stream.0.into()).unwrap()];
    on_shard(engine, move |cx| async move {
        for port in ports(&cx, sockets) {
            let memory = Memory::new();
            assert_eq!(take(&*port, &memory).await.unwrap(), frame(60, 1));
            for _ in 0..2 {
                take(&*port, &memory).await.unwrap_err();
                port.readable().await.unwrap();
            }
            give(&*port, &memory.frame(&frame(60, 1), 1)).await.unwrap_err();
        }
    });
    // Waiting when it goes.
    for [ours, other] in pairs().into_iter().take(2) {
        on_shard(engine, move |cx| async move {
            let port = attach(ours, &cx).unwrap();
            let waiting = cx.spawn(&Owner::shard(), async move {
                let memory = Memory::new();
                take(&*port, &memory).await.unwrap_err();
            });
            cx.next_turn().await;
            drop(other);
            waiting.await.unwrap();
        });
    }
}

fn a_peer_that_reads_slowly_makes_senders_wait(engine: EngineKind) {
    for sockets in pairs() {
        on_shard(engine, move |cx| async move {
            let ports = ports(&cx, sockets);
            let memory = [Memory::new(), Memory::new()];
            let mut sent = 0;
            while ports[0].send(&PLAIN, &memory[0].frame(&frame(9000, sent), 3)).unwrap() == Sent::Taken {
                sent += 1;
                assert!(sent < 10_000, "a socket holds only so much");
            }
            let last = memory[0].frame(&frame(9000, sent), 3);
            let sender = Rc::clone(&ports[0]);
            let sending = cx.spawn(&Owner::shard(), async move { give(&*sender, &last).await });
            for index in 0..=sent {
                assert_eq!(take(&*ports[1], &memory[1]).await.unwrap(), frame(9000, index));
            }
            sending.await.unwrap().unwrap();
        });
    }
}

/// A frame of which a part has gone is finished, by itself or before another one.
fn a_frame_that_went_in_parts_is_sent_once(engine: EngineKind) {
    for next_length in [60_000, 500] {
        let (ours, peer) = UnixStream::pair().unwrap();
        // So small that the frame goes in parts.
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4608).unwrap();
        let shard = runner(config(engine));
        let (halfway, at_half) = std::sync::mpsc::channel();
        let sent = start(&shard, move |cx| async move {
            let (port, memory) = (port(&cx, ours), Memory::new());
            let first = memory.frame(&frame(60_000, 1), 3);
            assert_eq!(port.send(&PLAIN, &first).unwrap(), Sent::Later);
            halfway.send(()).unwrap();
            give(&*port, &memory.frame(&frame(next_length, 1), 2)).await.unwrap();
        });
        at_half.recv().unwrap();
        let bytes = read_all(peer);
        sent.recv_timeout(PATIENCE).unwrap();
        shard.stop().unwrap();
        let mut expected = framed(&frame(60_000, 1));
        if next_length != 60_000 {
            expected.extend(framed(&frame(next_length, 1)));
        }
        assert!(bytes == expected, "{} of {} bytes came", bytes.len(), expected.len());
    }
}

/// Each read gives one byte here. Whoever waits lets others have their turn meanwhile.
fn a_peer_that_writes_byte_by_byte_leaves_turns_to_others(engine: EngineKind) {
    let (ours, peer) = Socket::pair().unwrap();
    let ours = Socket { fd: ours.fd, framing: Framing::Length, passt: None };
    let bytes = framed(&frame(60, 1));
    for byte in &bytes {
        rustix::io::write(&peer.fd, &[*byte]).unwrap();
    }
    let turns = on_shard(engine, move |cx| async move {
        let (port, memory) = (attach(ours, &cx).unwrap(), Memory::new());
        port.readable().await.unwrap();
        let before = cx.turn();
        assert_eq!(take(&*port, &memory).await.unwrap(), frame(60, 1));
        cx.turn() - before
    });
    assert!(turns >= (bytes.len() / READS_A_FRAME - 1) as u64, "{turns} turns");
}

fn frames_that_do_not_fit_are_dropped_and_told(engine: EngineKind) {
    for sockets in pairs() {
        on_shard(engine, move |cx| async move {
            let ports = ports(&cx, sockets);
            let memory = [Memory::new(), Memory::new()];
            for _ in 0..2 {
                give(&*ports[0], &memory[0].frame(&frame(100, 1), 3)).await.unwrap();
            }
            let exactly = HEADER + 100;
            let room = memory[1].room(exactly - 1, 2);
            assert_eq!(next(&*ports[1], &room).await.unwrap(), Received::TooLong);
            let room = memory[1].room(exactly, 2);
            assert_eq!(next(&*ports[1], &room).await.unwrap(), Received::Packet(exactly));
        });
    }
    let (ours, peer) = UnixDatagram::pair().unwrap();
    let (stream, mut writer) = UnixStream::pair().unwrap();
    for short in [0, 1, MIN_FRAME - 1] {
        peer.send(&frame(short, 1)).unwrap();
        writer.write_all(&framed(&frame(short, 1))).unwrap();
    }
    on_shard(engine, move |cx| async move {
        for port in [port(&cx, ours), port(&cx, stream)] {
            let memory = Memory::new();
            let room = memory.room(MAX_PACKET, 1);
            for _ in 0..3 {
                assert_eq!(next(&*port, &room).await.unwrap(), Received::TooShort);
            }
        }
    });
}

fn what_would_have_to_be_finished_is_refused(engine: EngineKind) {
    for sockets in pairs() {
        on_shard(engine, move |cx| async move {
            let [port, _other] = ports(&cx, sockets);
            let memory = Memory::new();
            let lease = memory.frame(&frame(100, 1), 1);
            for header in [[1, 0], [0, 1], [0, 5]] {
                let mut asks = PLAIN;
                asks[..2].copy_from_slice(&header);
                let error = port.send(&asks, &lease).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            }
            assert!(port.send(&PLAIN, &memory.room(100, 1)).is_err());
            assert!(port.receive(&lease).is_err());
            let accepted = Offloads { checksum: true, ..Offloads::NONE };
            assert!(port.set_offloads(accepted).await.is_err());
            assert!(port.set_queue_pairs(2).await.is_err());
            port.set_offloads(Offloads::NONE).await.unwrap();
            port.set_queue_pairs(1).await.unwrap();
        });
    }
}

fn datagrams_are_frames(engine: EngineKind) {
    let (ours, peer) = UnixDatagram::pair().unwrap();
    peer.send(&frame(60, 3)).unwrap();
    let peer_stays = peer.try_clone().unwrap();
    on_shard(engine, move |cx| async move {
        let (port, memory) = (port(&cx, ours), Memory::new());
        assert_eq!(take(&*port, &memory).await.unwrap(), frame(60, 3));
        give(&*port, &memory.frame(&frame(61, 4), 2)).await.unwrap();
        let mut bytes = [0; 100];
        assert_eq!(peer_stays.recv(&mut bytes).unwrap(), 61);
        assert_eq!(bytes[..61], frame(61, 4));
        drop((peer, peer_stays));
        give(&*port, &memory.frame(&frame(61, 4), 2)).await.unwrap_err();
    });
}

fn a_dropped_wait_loses_nothing(engine: EngineKind) {
    for sockets in pairs() {
        on_shard(engine, move |cx| async move {
            let ports = ports(&cx, sockets);
            let memory = [Memory::new(), Memory::new()];
            for seed in 0..3 {
                let mut wait = pin!(ports[1].readable());
                let _ = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                give(&*ports[0], &memory[0].frame(&frame(60, seed), 1)).await.unwrap();
            }
            for seed in 0..3 {
                assert_eq!(take(&*ports[1], &memory[1]).await.unwrap(), frame(60, seed));
            }
        });
    }
}

#[test]
fn a_stream_is_connected_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let error = Socket::connect(&path).unwrap_err().to_string();
    assert!(error.contains("passt --socket"), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    let socket = Socket::connect(&path).unwrap();
    assert_eq!(socket.framing, Framing::Length);
    assert!(matches!(Socket::from_fd(listener.into()), Err(SocketError::NotUsable { .. })));
    let error = Socket::connect(&path).unwrap_err().to_string();
    assert!(error.contains("nobody listens"), "{error}");
    let long = folder.path().join("x".repeat(200));
    assert!(matches!(Socket::connect(long), Err(SocketError::Connect { .. })));
}

#[test]
fn descriptors_that_carry_no_frames_are_refused() {
    let refused = |fd: std::os::fd::OwnedFd, what: &str| {
        let error = Socket::from_fd(fd).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("give a connected"), "{error}");
    };
    refused(rustix::pipe::pipe().unwrap().0, "no socket");
    refused(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(), "no Unix socket");
    refused(UnixDatagram::unbound().unwrap().into(), "not connected");
}
