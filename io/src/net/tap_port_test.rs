use std::cell::Cell;
use std::future::Future;
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::mpsc::{Receiver, channel};
use std::task::{Context, Poll, Waker};
use std::thread;

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use super::super::testing::*;
use super::super::{MAX_FRAME, MAX_HEAD, MAX_PACKET, MAX_PACKET_PIECES, ioctl};
use super::*;
use crate::engine::EngineKind;
use crate::shard::ShardContext;
use crate::testing::*;

on_both_engines!(
    frames_go_both_ways,
    a_received_packet_is_marked_dirty,
    the_kernel_finishes_what_the_guest_left_open,
    datagrams_sent_as_one_stay_one_where_they_may,
    streams_pass_with_every_offload,
    streams_pass_with_none,
    fewer_offloads_drop_what_is_of_the_old_kind,
    a_packet_longer_than_its_room_is_dropped_and_told,
    leases_that_no_packet_fits_are_refused_and_nothing_is_lost,
    a_tap_that_is_down_refuses_packets,
    a_header_that_the_kernel_does_not_like_costs_one_packet,
    packets_come_over_every_queue_in_use_and_no_other,
    a_deleted_tap_ends_those_who_wait,
    a_tap_deleted_under_load_ends_both_directions,
    a_dropped_wait_loses_nothing,
    a_tap_that_was_made_goes_with_its_ports,
    settings_out_of_range_are_refused,
    wishes_that_nobody_waits_for_are_settled_in_order,
);

const PLAIN: [u8; HEADER] = [0; HEADER];

/// The port of a tap with one queue.
fn port(tap: Tap) -> Rc<dyn NetPort> {
    attach(tap).unwrap().swap_remove(0)
}

/// Gives a packet, waiting as long as need be.
async fn give(port: &dyn NetPort, head: &[u8], rest: &Lease) -> io::Result<Sent> {
    loop {
        match port.send(head, rest)? {
            Sent::Later => port.writable().await?,
            sent => return Ok(sent),
        }
    }
}

fn destination(socket: &UdpSocket) -> u16 {
    socket.local_addr().unwrap().port()
}

fn frames_go_both_ways(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    let mac = ioctl::address(tap.queues[0].as_fd()).unwrap();
    let host = namespace.udp();
    let to = destination(&host);
    let sender = host.try_clone().unwrap();
    let packet = on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        sender.send_to(b"to the guest", ("10.9.0.255", 4000)).unwrap();
        let packet = next_udp(&*port, &memory, 4000).await;
        let frame = udp_frame(mac, to, b"to the host");
        // All of it in guest memory, a part of it, nothing of it.
        for ours in [0, 14, frame.len()] {
            let (head, rest) = frame.split_at(ours);
            let head = [PLAIN.as_slice(), head].concat();
            let rest = memory.frame(rest, usize::from(!rest.is_empty()));
            assert_eq!(give(&*port, &head, &rest).await.unwrap(), Sent::Taken);
        }
        packet
    });
    assert_eq!(packet[..10], PLAIN[..10], "nothing is left open");
    assert_eq!(packet[HEADER..HEADER + 6], [0xff; 6]);
    assert_eq!(packet[HEADER + 42..], *b"to the guest");
    let mut bytes = [0; 100];
    for _ in 0..3 {
        let (count, from) = host.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..count], from), (b"to the host".as_slice(), (GUEST, 9).into()));
    }
}

fn a_received_packet_is_marked_dirty(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    let host = namespace.udp();
    let dirty = on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        memory.0.take_host_dirty();
        host.send_to(&[7; 100], ("10.9.0.255", 4000)).unwrap();
        let room = memory.room(MAX_PACKET, 1);
        next(&*port, &room).await.unwrap();
        memory.0.take_host_dirty()
    });
    assert_eq!(dirty, [0], "the first page, and none behind the packet");
}

/// A datagram without a checksum becomes one with, and a big one becomes small ones.
fn the_kernel_finishes_what_the_guest_left_open(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    let uso = tap.info().offloads.uso4;
    let mac = ioctl::address(tap.queues[0].as_fd()).unwrap();
    let host = namespace.udp();
    let to = destination(&host);
    on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        // NEEDS_CSUM; the checksum's place is 6 bytes into UDP, which is 34 bytes into the frame.
        let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
        let mut frame = unfinished(mac, to, b"unfinished");
        assert_eq!(give(&*port, &header, &memory.frame(&frame, 2)).await.unwrap(), Sent::Taken);
        if uso {
            // GSO_UDP_L4 (5), 42 bytes of headers, 1000 bytes a segment.
            let header = [1, 5, 42, 0, 0xe8, 3, 34, 0, 6, 0, 0, 0];
            frame = unfinished(mac, to, &[b'x'; 2500]);
            assert_eq!(give(&*port, &header, &memory.frame(&frame, 3)).await.unwrap(), Sent::Taken);
        }
    });
    let sizes = if uso { vec![10, 1000, 1000, 500] } else { vec![10] };
    for size in sizes {
        assert_eq!(host.recv(&mut [0; 4000]).unwrap(), size);
    }
}

/// What one call sends is one packet if the driver cuts it itself, and else what it is to become.
fn datagrams_sent_as_one_stay_one_where_they_may(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    let host = namespace.udp();
    setsockopt(&host, UdpGsoSegment, &1000).unwrap();
    if !tap.info().offloads.uso4 {
        eprintln!("NOT TESTED: this kernel's taps take no segments of UDP (Linux 6.2)");
        return;
    }
    on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        let bytes: Vec<u8> = (0..2500).map(|index| (index % 251) as u8).collect();
        let open = Offloads { checksum: true, ..Offloads::NONE };
        for (accepted, lengths) in [
            (Offloads { uso4: true, uso6: true, ..open }, &[2500][..]),
            // The kernel knows both kinds or none.
            (Offloads { uso4: true, ..open }, &[1000, 1000, 500]),
            (open, &[1000, 1000, 500]),
        ] {
            port.set_offloads(accepted).await.unwrap();
            host.send_to(&bytes, ("10.9.0.255", 4000)).unwrap();
            let mut came = Vec::new();
            for length in lengths {
                let packet = next_udp(&*port, &memory, 4000).await;
                // NEEDS_CSUM; GSO_UDP_L4 (5) of 1000 bytes.
                let kind = if *length > 1000 { [1, 5, 0xe8, 3] } else { [1, 0, 0, 0] };
                assert_eq!([packet[0], packet[1], packet[4], packet[5]], kind, "{accepted:?}");
                assert_eq!(packet.len(), HEADER + 42 + length, "{accepted:?}");
                came.extend_from_slice(&packet[HEADER + 42..]);
            }
            assert!(came == bytes, "{accepted:?}");
        }
    });
}

/// A frame whose UDP checksum is only that of the pseudo-header (RFC 768).
fn unfinished(to_mac: [u8; 6], to: u16, bytes: &[u8]) -> Vec<u8> {
    let mut frame = udp_frame(to_mac, to, bytes);
    let pseudo = [&frame[26..34], &[0, 17], &frame[38..40]].concat();
    let sum = sum(&pseudo).to_be_bytes();
    frame[40..42].copy_from_slice(&sum);
    frame
}

/// The largest packet that came over a wire, and how many were left open.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    largest: usize,
    open: usize,
}

/// Passes packets from one port to the other until it is dropped.
async fn wire(from: Rc<dyn NetPort>, to: Rc<dyn NetPort>, seen: Rc<Cell<Seen>>) -> io::Result<()> {
    let memory = Memory::new();
    let room = memory.room(MAX_PACKET, 3);
    loop {
        let Received::Packet(length) = next(&*from, &room).await? else { continue };
        let packet = memory.bytes(length, MAX_PACKET, 3);
        let mut header: [u8; HEADER] = packet[..HEADER].try_into().unwrap();
        header[10..].fill(0);
        let so_far = seen.get();
        let largest = so_far.largest.max(length - HEADER);
        seen.set(Seen { largest, open: so_far.open + usize::from(header[0] & 1) });
        // In other memory than what is received into.
        let other = Memory::new();
        give(&*to, &header, &other.frame(&packet[HEADER..], 2)).await?;
    }
}

const STREAM: usize = 3 << 20;

/// Sends a TCP stream from one namespace to another, whose taps are wired by two ports.
fn stream(engine: EngineKind, accepted: impl Fn(&NetInfo) -> Offloads) -> Seen {
    let (here, there) = (Namespace::new(), Namespace::new());
    let ends = [here.link(1), there.open("tap0", 1)];
    there.ip("addr add 10.9.0.2/24 dev tap0");
    there.ip("link set dev tap0 up");
    let accepted = accepted(&ends[0].info());
    let shard = runner(config(engine));
    let (done, seen) = channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = start(&shard, move |_| async move {
        let [one, other] = ends.map(port);
        one.set_offloads(accepted).await.unwrap();
        other.set_offloads(accepted).await.unwrap();
        let seen = Rc::new(Cell::new(Seen::default()));
        let forth = wire(Rc::clone(&one), Rc::clone(&other), Rc::clone(&seen));
        let back = wire(other, one, Rc::clone(&seen));
        tokio::select! {
            result = forth => result.unwrap(),
            result = back => result.unwrap(),
            _ = stopped => {}
        }
        done.send(seen.get()).unwrap();
    });
    let bytes: Vec<u8> = (0..STREAM).map(|index| (index * 31 % 251) as u8).collect();
    let listener = there.enter(|| TcpListener::bind((GUEST, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let reader = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        read_all(stream)
    });
    let mut writer = here.enter(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
    writer.set_write_timeout(Some(PATIENCE)).unwrap();
    writer.write_all(&bytes).unwrap();
    drop(writer);
    assert!(reader.join().unwrap() == bytes, "the stream comes as it was sent");
    stop.send(()).unwrap();
    running.recv_timeout(PATIENCE).unwrap();
    shard.stop().unwrap();
    seen.recv().unwrap()
}

fn streams_pass_with_every_offload(engine: EngineKind) {
    let seen = stream(engine, |info| info.offloads);
    // How large depends on how fast the stream is: at least two segments' worth.
    assert!(seen.largest > 1514 && seen.open > 0, "{seen:?}");
}

fn streams_pass_with_none(engine: EngineKind) {
    let seen = stream(engine, |_| Offloads::NONE);
    assert!(seen.largest <= 1514 && seen.open == 0, "{seen:?}");
}

fn fewer_offloads_drop_what_is_of_the_old_kind(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    let host = namespace.udp();
    on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        port.set_offloads(Offloads { checksum: true, ..Offloads::NONE }).await.unwrap();
        host.send_to(b"unfinished", ("10.9.0.255", 4000)).unwrap();
        assert_eq!(next_udp(&*port, &memory, 4000).await[0], 1, "the checksum is left open");
        host.send_to(b"unfinished", ("10.9.0.255", 4000)).unwrap();
        port.set_offloads(Offloads::NONE).await.unwrap();
        host.send_to(b"finished", ("10.9.0.255", 4000)).unwrap();
        let packet = next_udp(&*port, &memory, 4000).await;
        assert_eq!((packet[0], &packet[HEADER + 42..]), (0, b"finished".as_slice()));
    });
}

fn a_packet_longer_than_its_room_is_dropped_and_told(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    let host = namespace.udp();
    on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        let mine = async |room: &Lease| loop {
            // What the kernel greets the network with is shorter than 500 bytes.
            match next(&*port, room).await.unwrap() {
                Received::Packet(length) if length < 500 => {}
                received => break received,
            }
        };
        for _ in 0..3 {
            host.send_to(&[1; 1000], ("10.9.0.255", 4000)).unwrap();
        }
        let exactly = HEADER + 42 + 1000;
        assert_eq!(mine(&memory.room(exactly - 1, 2)).await, Received::TooLong);
        assert_eq!(mine(&memory.room(exactly, 2)).await, Received::Packet(exactly));
        assert_eq!(mine(&memory.room(exactly + 1, 2)).await, Received::Packet(exactly));
    });
}

fn leases_that_no_packet_fits_are_refused_and_nothing_is_lost(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    let host = namespace.udp();
    on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        host.send_to(b"still there", ("10.9.0.255", 4000)).unwrap();
        let source = memory.frame(&[0; 60], 1);
        let invalid =
            |result: io::Result<_>| assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        invalid(port.receive(&source).map(drop));
        invalid(port.receive(&memory.room(HEADER - 1, 1)).map(drop));
        invalid(port.receive(&memory.room(4096, 1024)).map(drop));
        invalid(port.send(&PLAIN, &memory.room(60, 1)).map(drop));
        invalid(port.send(&PLAIN, &memory.frame(&[0; MIN_FRAME - 1], 1)).map(drop));
        invalid(port.send(&PLAIN, &memory.frame(&[0; MAX_FRAME + 1], 1)).map(drop));
        invalid(port.send(&PLAIN, &memory.frame(&[0; 4096], 1024)).map(drop));
        invalid(port.send(&PLAIN[1..], &source).map(drop));
        invalid(port.send(&[0; MAX_HEAD + 1], &source).map(drop));
        invalid(port.send(&[0; HEADER + 1], &memory.frame(&[0; MIN_FRAME - 2], 1)).map(drop));
        invalid(port.send(&[0; HEADER + 1], &memory.frame(&[0; MAX_FRAME], 1)).map(drop));
        assert_eq!(next_udp(&*port, &memory, 4000).await[HEADER + 42..], *b"still there");
        host.send_to(&[5; 1400], ("10.9.0.255", 4000)).unwrap();
        let room = memory.room(4096, MAX_PACKET_PIECES);
        while next(&*port, &room).await.unwrap() != Received::Packet(HEADER + 42 + 1400) {}
        assert_eq!(give(&*port, &PLAIN, &memory.frame(&[0; 4096], 1023)).await.unwrap(), Sent::Taken);
    });
}

fn a_tap_that_is_down_refuses_packets(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        let frame = memory.frame(&[0xff; 60], 1);
        assert_eq!(give(&*port, &PLAIN, &frame).await.unwrap(), Sent::Taken);
        namespace.ip("link set dev tap0 down");
        assert_eq!(give(&*port, &PLAIN, &frame).await.unwrap(), Sent::Refused);
        namespace.ip("link set dev tap0 up");
        assert_eq!(give(&*port, &PLAIN, &frame).await.unwrap(), Sent::Taken);
        port.writable().await.unwrap();
    });
}

fn a_header_that_the_kernel_does_not_like_costs_one_packet(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        let frame = memory.frame(&[0xff; 60], 1);
        // A kind of segmentation that there is none of, with segments of 100 bytes.
        let header = [0, 77, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(give(&*port, &header, &frame).await.unwrap(), Sent::Refused);
        assert_eq!(give(&*port, &PLAIN, &frame).await.unwrap(), Sent::Taken);
    });
}

/// Sends from many ports, so that the flows are spread; gives over which of the queues each came.
async fn spread(ports: &[Rc<dyn NetPort>], namespace: &Namespace) -> Vec<usize> {
    let memory = Memory::new();
    let room = memory.room(MAX_PACKET, 7);
    let mut came = vec![0; ports.len()];
    for _ in 0..64 {
        namespace.udp().send_to(b"one of many", ("10.9.0.255", 4000)).unwrap();
    }
    while came.iter().sum::<usize>() < 64 {
        for (count, port) in came.iter_mut().zip(ports) {
            while let Some(received) = port.receive(&room).unwrap() {
                let Received::Packet(length) = received else { continue };
                let packet = memory.bytes(length, MAX_PACKET, 7);
                *count += usize::from(udp_destination(&packet) == Some(4000));
            }
        }
        let waits = ports.iter().map(|port| port.readable());
        first_of(waits.collect()).await;
    }
    came
}

/// Waits for the first of some, or until another turn has come, since what was counted may have been the last.
async fn first_of(mut waits: Vec<NetFuture<'_, io::Result<()>>>) {
    let mut asked = false;
    std::future::poll_fn(|cx| {
        let ready = waits.iter_mut().any(|wait| wait.as_mut().poll(cx).is_ready());
        if ready || asked {
            return Poll::Ready(());
        }
        asked = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn packets_come_over_every_queue_in_use_and_no_other(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(2);
    assert_eq!(tap.info().queue_pairs, 2);
    on_shard(engine, move |_| async move {
        let ports = attach(tap).unwrap();
        assert_eq!(ports.len(), 2);
        let came = spread(&ports, &namespace).await;
        assert!(came.iter().all(|&count| count > 0), "{came:?}");
        ports[1].set_queue_pairs(1).await.unwrap();
        assert_eq!(spread(&ports, &namespace).await, [64, 0]);
        ports[0].set_queue_pairs(2).await.unwrap();
        let came = spread(&ports, &namespace).await;
        assert!(came.iter().all(|&count| count > 0), "{came:?}");
    });
}

fn a_deleted_tap_ends_those_who_wait(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(2);
    on_shard(engine, move |_| async move {
        let (ports, memory) = (attach(tap).unwrap(), Memory::new());
        ports[0].set_queue_pairs(1).await.unwrap();
        let room = memory.room(MAX_PACKET, 1);
        for port in &ports {
            while port.receive(&room).unwrap().is_some() {}
        }
        namespace.ip("link delete dev tap0");
        for port in &ports {
            let error = loop {
                if let Err(error) = next(&**port, &room).await {
                    break error;
                }
            };
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
            assert!(port.receive(&room).is_err(), "it stays so");
            port.readable().await.unwrap();
            port.writable().await.unwrap();
            let frame = memory.frame(&[0xff; 60], 1);
            let error = loop {
                match port.send(&PLAIN, &frame) {
                    Ok(_) => port.writable().await.unwrap(),
                    Err(error) => break error,
                }
            };
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
        }
        assert!(ports[0].set_offloads(Offloads { checksum: true, ..Offloads::NONE }).await.is_err());
    });
}

/// Both directions are busy when the tap goes. Each ends with an error, after finding nothing a few times at most.
fn a_tap_deleted_under_load_ends_both_directions(engine: EngineKind) {
    for _ in 0..5 {
        let namespace = Namespace::new();
        let tap = namespace.link(1);
        let host = namespace.udp();
        let shard = runner(config(engine));
        let receiving = start(&shard, move |cx| async move {
            let port = port(tap);
            let sender = cx.spawn(&crate::Owner::shard(), send_until_gone(cx.clone(), Rc::clone(&port)));
            let memory = Memory::new();
            let room = memory.room(MAX_PACKET, 1);
            let mut received = 0;
            let mut in_vain = 0;
            loop {
                match port.receive(&room) {
                    Ok(Some(_)) => received += 1,
                    Ok(None) => {
                        port.readable().await.unwrap();
                        in_vain += 1;
                    }
                    Err(_) => break,
                }
            }
            sender.await.unwrap();
            (received, in_vain)
        });
        let (stop, stopped) = channel::<()>();
        let load = thread::spawn(move || blast(&host, &stopped));
        wait_until("some load", || load_has_begun(&namespace));
        namespace.ip("link delete dev tap0");
        let (received, in_vain) = receiving.recv_timeout(PATIENCE).expect("the receiver ends");
        assert!(in_vain <= received + 100, "{in_vain} waits in vain for {received} packets");
        drop(stop);
        load.join().unwrap();
        shard.stop().unwrap();
    }
}

/// True once something has passed over the tap in both directions.
fn load_has_begun(namespace: &Namespace) -> bool {
    let text = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = text.lines().find_map(|line| line.trim().strip_prefix("tap0:")).unwrap();
    let counts: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
    counts[1] > 100 && counts[9] > 100
}

fn blast(host: &UdpSocket, stopped: &Receiver<()>) {
    while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
        // Fails when the tap is gone.
        let _ = host.send_to(&[3; 900], ("10.9.0.255", 4000));
    }
}

async fn send_until_gone(cx: ShardContext, port: Rc<dyn NetPort>) {
    let memory = Memory::new();
    let frame = memory.frame(&[0xff; 600], 3);
    while give(&*port, &PLAIN, &frame).await.is_ok() {
        cx.next_turn().await;
    }
}

fn a_dropped_wait_loses_nothing(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    let host = namespace.udp();
    on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        let room = memory.room(MAX_PACKET, 1);
        while port.receive(&room).unwrap().is_some() {}
        for _ in 0..3 {
            let mut wait = pin!(port.readable());
            let _ = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            host.send_to(b"patience", ("10.9.0.255", 4000)).unwrap();
        }
        for _ in 0..3 {
            assert_eq!(next_udp(&*port, &memory, 4000).await[HEADER + 42..], *b"patience");
        }
    });
}

fn a_tap_that_was_made_goes_with_its_ports(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(2);
    on_shard(engine, move |_| async move {
        let ports = attach(tap).unwrap();
        // Left to itself.
        drop(ports[0].set_queue_pairs(1));
        ports.len()
    });
    wait_until("the tap's end", || !namespace.has("tap0"));
}

fn settings_out_of_range_are_refused(engine: EngineKind) {
    let namespace = Namespace::new();
    let mut tap = namespace.open("tap0", 1);
    tap.limit_offloads(Offloads { checksum: true, tso4: true, ..Offloads::NONE });
    on_shard(engine, move |_| async move {
        let port = port(tap);
        for pairs in [0, 2, u16::MAX] {
            assert_eq!(port.set_queue_pairs(pairs).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        let error = port.set_offloads(Offloads { tso6: true, ..Offloads::NONE }).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        port.set_offloads(Offloads { tso4: true, ..Offloads::NONE }).await.unwrap();
    });
}

fn wishes_that_nobody_waits_for_are_settled_in_order(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    let host = namespace.udp();
    let open = Offloads { checksum: true, ..Offloads::NONE };
    on_shard(engine, move |_| async move {
        let (port, memory) = (port(tap), Memory::new());
        for round in 0..300 {
            let accepted = [Offloads::NONE, open][round % 2];
            let mut wish = pin!(port.set_offloads(accepted));
            let _ = wish.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if round % 3 == 0 {
                // While the helper may be at the one before.
                port.set_offloads(open).await.unwrap();
            }
        }
        port.set_offloads(Offloads::NONE).await.unwrap();
        port.set_offloads(open).await.unwrap();
        host.send_to(b"the last one counts", ("10.9.0.255", 4000)).unwrap();
        assert_eq!(next_udp(&*port, &memory, 4000).await[0], 1);
    });
}
