//! Segments of TCP that wait in a transmit queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringlet_io::limiter::{Limits, PerUnit, TokenBucket};
use ringlet_io::net::{HEADER, Offloads, Sent};
use ringlet_io::{Cost, EngineKind, Gate, GuestRam, LimiterSeed};
use ringlet_metrics::{DropReason, GuestErrorKind, RequestKind, RequestStatus};

use super::test_tcp::{Ip, TcpSegment, cut, whole_checksums};
use super::test_util::*;
use super::{Filter, NetOptions};
use crate::testing::{Buffer, Options, Rig, Subject, wait_until};
use crate::virtio::HostEvent;
use crate::virtio::spec::register;

const SIZE: usize = 1000;
/// Bytes of a frame of such a segment.
const FRAME: u64 = 54 + SIZE as u64;
/// So many frames are looked at in a turn however long that takes.
const LEAST: usize = 4;
/// Room of a frame.
const ROOM: u64 = 0x800;

/// A segment, the `n`th of its flow.
fn segment(n: u32) -> TcpSegment {
    TcpSegment { sequence: n.wrapping_mul(SIZE as u32), size: SIZE, ..TcpSegment::default() }
}

fn row(count: u32) -> Vec<TcpSegment> {
    (0..count).map(segment).collect()
}

/// Offers packets, each in one buffer, all before the device is told.
fn offer_packets(driver: &mut Driver, packets: &[Vec<u8>]) -> Vec<u16> {
    let (rig, queue) = driver.split(1);
    // It does not look any more, until it is told.
    rig.settle();
    let heads = (0..).zip(packets).map(|(n, packet)| {
        let place = Rig::DATA + n * ROOM;
        rig.ram.write(place, packet).unwrap();
        queue.build(&[Buffer::readable(place, packet.len() as u32)])
    });
    let heads: Vec<u16> = heads.collect();
    heads.iter().for_each(|head| queue.offer(*head));
    rig.ring(1);
    heads
}

fn packet(segment: &TcpSegment) -> Vec<u8> {
    [&segment.header()[..], &segment.frame()].concat()
}

fn offer(driver: &mut Driver, segments: &[TcpSegment]) -> Vec<u16> {
    offer_packets(driver, &segments.iter().map(packet).collect::<Vec<_>>())
}

/// The heads that come back, in their order.
fn used(driver: &mut Driver, count: usize) -> Vec<u16> {
    let (rig, queue) = driver.split(1);
    let heads = (0..count).map(|_| rig.used(queue).head).collect();
    rig.settle();
    heads
}

/// How many segments each packet has that was sent, all of which together are `segments`.
fn assert_sent(driver: &Driver, segments: &[TcpSegment]) -> Vec<usize> {
    let sent = driver.host.take_sent(0);
    let cuts: Vec<Vec<Vec<u8>>> = sent.iter().map(|packet| pieces(packet)).collect();
    let expected: Vec<Vec<u8>> = segments.iter().map(|segment| whole_checksums(&segment.frame())).collect();
    assert!(cuts.concat() == expected, "what was sent is what was offered");
    cuts.iter().map(Vec::len).collect()
}

/// As [`assert_sent`]; packets end after the segments of these numbers, and the first as late as it may. Others may end
/// earlier, since a turn may take only so long.
fn assert_ends(driver: &Driver, segments: &[TcpSegment], ends: &[usize]) {
    let counts = assert_sent(driver, segments);
    let mut sum = 0;
    let found: Vec<usize> = counts
        .iter()
        .map(|count| {
            sum += count;
            sum
        })
        .collect();
    assert!(ends.iter().all(|end| found.contains(end)), "{counts:?}");
    assert!(counts[0] >= ends[0].min(LEAST), "{counts:?}");
}

/// The frames of a packet.
fn pieces(packet: &[u8]) -> Vec<Vec<u8>> {
    if packet[1] == 0 { vec![whole_checksums(&packet[HEADER..])] } else { cut(packet) }
}

fn dropped(driver: &Driver, reason: DropReason) -> u64 {
    driver.rig.metrics.dropped_packets.get(reason)
}

fn requests(driver: &Driver) -> (u64, u64) {
    let of = |status| driver.rig.metrics.requests(RequestKind::Transmit, status);
    (of(RequestStatus::Ok), of(RequestStatus::IoError))
}

/// Each request is the next segment of a flow, of sixteen.
fn sending() -> Subject {
    let request = |ram: &GuestRam, gpa: u64| {
        let n = (gpa - Rig::DATA) / 0x1_0000;
        let packet = packet(&segment(n as u32));
        ram.write(gpa, &packet).unwrap();
        vec![Buffer::readable(gpa, 100), Buffer::readable(gpa + 100, packet.len() as u32 - 100)]
    };
    subject(&TestHost::new(2), options(), 1, request)
}

crate::virtio_conformance!(sending_segments_conforms, super::sending);

#[test]
fn segments_that_wait_go_out_as_one_packet_and_come_back_together() {
    for ip in [Ip::V4, Ip::V6] {
        // Without EVENT_IDX: whatever comes back in one turn is one interrupt.
        let mut driver = Driver::new(without(29));
        let segments: Vec<_> = row(20).into_iter().map(|segment| TcpSegment { ip, ..segment }).collect();
        let interrupts = driver.rig.metrics.interrupts.get();
        let heads = offer(&mut driver, &segments);
        assert_eq!(used(&mut driver, 20), heads);
        let interrupts = driver.rig.metrics.interrupts.get() - interrupts;
        let packets = driver.host.lock().sent[0].len();
        assert!(interrupts <= packets as u64, "{interrupts} interrupts for {packets} packets");
        assert_ends(&driver, &segments, &[20]);
        assert_eq!(requests(&driver), (20, 0), "{ip:?}");
    }
}

#[test]
fn where_a_packet_ends_the_next_one_begins() {
    let mut driver = Driver::new(u64::MAX);
    let mut segments = row(10);
    segments[3].pushed = true;
    segments[6].window += 1;
    offer(&mut driver, &segments);
    used(&mut driver, 10);
    assert_ends(&driver, &segments, &[4, 6, 7, 10]);
    // Not more than IP can carry, nor of more pieces than the kernel takes.
    let segments = row(64);
    offer(&mut driver, &segments);
    used(&mut driver, 64);
    let sent = assert_sent(&driver, &segments);
    assert!(sent.iter().all(|count| *count * SIZE < 65_500), "{sent:?}");
}

#[test]
fn segments_in_many_pieces_go_out_however_many_there_are() {
    let mut driver = Driver::new(u64::MAX);
    let segments = row(4);
    let table = Rig::DATA + 0x1_0000;
    let (rig, queue) = driver.split(1);
    rig.settle();
    for (n, segment) in (0..).zip(&segments) {
        let place = Rig::DATA + n * ROOM;
        let packet = packet(segment);
        rig.ram.write(place, &packet).unwrap();
        // What lies side by side counts as well.
        let pieces = (0..packet.len()).step_by(18).map(|at| (at as u64, (packet.len() - at).min(18) as u32));
        let buffers: Vec<_> = pieces.map(|(at, len)| Buffer::readable(place + at, len)).collect();
        let head = queue.build_indirect(&buffers, table + n * 0x1000);
        queue.offer(head);
    }
    rig.ring(1);
    used(&mut driver, 4);
    let sent = assert_sent(&driver, &segments);
    assert!(
        sent[0] == 2 && sent.iter().all(|count| *count <= 2),
        "60 pieces each, and no more than 128: {sent:?}"
    );
}

#[test]
fn no_more_is_joined_than_is_admitted_at_once() {
    let gate = Gate::new();
    let rig = Options { limiter: LimiterSeed::gated(gate.clone()), ..Options::new(EngineKind::Epoll) };
    let mut driver = Driver::with(TestHost::new(1), options(), rig, u64::MAX);
    let segments = row(8);
    offer(&mut driver, &segments);
    driver.rig.settle();
    assert!(driver.host.lock().sent[0].is_empty());
    gate.let_through(3);
    used(&mut driver, 3);
    assert_eq!(assert_sent(&driver, &segments[..3]), [3]);
    driver.rig.suspend().unwrap();
    let state = driver.rig.save().unwrap().queues[1].unwrap();
    assert_eq!((state.next_avail, state.next_used), (3, 3));
    driver.rig.resume().unwrap();
    gate.let_through(1);
    used(&mut driver, 1);
    assert_eq!(assert_sent(&driver, &segments[3..4]), [1]);
    assert_eq!(gate.costs(), [Cost::write(FRAME); 4], "each is charged once");
    gate.open();
    used(&mut driver, 4);
    assert_eq!(assert_sent(&driver, &segments[4..]), [4]);
    assert_eq!(gate.costs(), [Cost::write(FRAME); 8]);
}

#[test]
fn sec_02_segments_are_limited_as_all_packets_are() {
    let limited = |operations: Option<u64>, bytes: Option<u64>| {
        let bucket = |size| TokenBucket::new(size, Duration::from_secs(3600));
        let write = PerUnit { operations: operations.map(bucket), bytes: bytes.map(bucket) };
        let rig = Options::limited(EngineKind::Epoll, Limits { write, ..Limits::default() });
        let mut driver = Driver::with(TestHost::new(1), options(), rig, u64::MAX);
        offer(&mut driver, &row(20));
        wait_until("some are sent", || !driver.host.lock().sent[0].is_empty());
        driver.rig.settle();
        driver.host.take_sent(0).iter().map(|packet| pieces(packet).len()).sum::<usize>()
    };
    assert_eq!(limited(Some(5), None), 5);
    assert_eq!(limited(None, Some(3 * FRAME + FRAME / 2)), 3);
}

#[test]
fn what_the_host_refuses_is_dropped_frame_by_frame() {
    let mut driver = Driver::new(u64::MAX);
    driver.host.change(|state| state.answer = Sent::Refused);
    offer(&mut driver, &row(5));
    used(&mut driver, 5);
    assert_eq!((dropped(&driver, DropReason::Refused), requests(&driver)), (5, (0, 5)));
    driver.host.change(|state| state.answer = Sent::Taken);
    driver.rig.notice(HostEvent::LinkDown);
    offer(&mut driver, &row(5));
    used(&mut driver, 5);
    assert_eq!((dropped(&driver, DropReason::LinkDown), requests(&driver)), (5, (0, 10)));
    assert!(driver.host.take_sent(0).is_empty());
}

#[test]
fn sec_08_a_packet_that_waits_for_the_host_is_the_drivers_until_it_is_sent() {
    let mut driver = Driver::new(u64::MAX);
    let segments = row(4);
    let wait = |driver: &mut Driver| {
        driver.host.change(|state| state.answer = Sent::Later);
        offer(driver, &segments);
        wait_until("the packet waits", || driver.rig.metrics.in_flight.get() == 1);
    };
    wait(&mut driver);
    driver.rig.suspend().unwrap();
    let state = driver.rig.save().unwrap().queues[1].unwrap();
    assert_eq!((state.next_avail, state.next_used, driver.rig.metrics.in_flight.get()), (0, 0, 0));
    driver.host.change(|state| state.answer = Sent::Taken);
    driver.rig.resume().unwrap();
    used(&mut driver, 4);
    assert_eq!(assert_sent(&driver, &segments), [4], "once");
    wait(&mut driver);
    driver.host.change(|state| state.answer = Sent::Taken);
    used(&mut driver, 4);
    assert_eq!(assert_sent(&driver, &segments), [4]);
    wait(&mut driver);
    driver.rig.write(register::STATUS, 0);
    driver.host.change(|state| state.answer = Sent::Taken);
    driver.rig.settle();
    assert_eq!((driver.host.take_sent(0).len(), driver.rig.metrics.in_flight.get()), (0, 0));
    driver.queues = driver.rig.bring_up(driver.rig.offered());
    offer(&mut driver, &segments);
    used(&mut driver, 4);
    assert_eq!(assert_sent(&driver, &segments), [4], "of the next driver");
}

#[test]
fn sec_07_a_flaw_is_that_of_its_frame_alone() {
    let mut driver = Driver::new(u64::MAX);
    let segments = row(7);
    let mut packets: Vec<_> = segments.iter().map(packet).collect();
    packets[2][1] = 99;
    packets[5].truncate(HEADER + 13);
    offer_packets(&mut driver, &packets);
    used(&mut driver, 7);
    assert_eq!((dropped(&driver, DropReason::BadHeader), dropped(&driver, DropReason::BadLength)), (1, 1));
    assert_eq!(driver.rig.errors(GuestErrorKind::BadRequest), 2, "each is told of once");
    let good: Vec<_> = [0, 1, 3, 4, 6].map(|n| segments[n].clone()).into();
    assert_ends(&driver, &good, &[2, 4, 5]);
}

#[test]
fn sec_07_a_chain_that_breaks_the_queue_does_so_after_those_before_it() {
    let mut driver = Driver::new(u64::MAX);
    let segments = row(3);
    let (rig, queue) = driver.split(1);
    rig.settle();
    let mut heads = Vec::new();
    for (n, segment) in (0..).zip(&segments) {
        let packet = packet(segment);
        rig.ram.write(Rig::DATA + n * ROOM, &packet).unwrap();
        heads.push(queue.build(&[Buffer::readable(Rig::DATA + n * ROOM, packet.len() as u32)]));
    }
    heads.push(queue.build(&[Buffer::readable(u64::MAX - 100, 60)]));
    heads.iter().for_each(|head| queue.offer(*head));
    rig.ring(1);
    used(&mut driver, 3);
    wait_until("the queue is broken", || driver.rig.metrics.broken_queues.get() == 1);
    assert_eq!(assert_sent(&driver, &segments), [3]);
    assert_eq!((requests(&driver), driver.queues[1].used_index()), ((3, 0), 3));
}

#[test]
fn every_segment_passes_the_filter_by_itself() {
    let filter = Filter { mac: Some(MAC), ipv4: Some(vec![[10, 0, 0, 2].into()]), ..Filter::default() };
    let options = NetOptions { filter, ..options() };
    let mut driver = Driver::with(TestHost::new(1), options, Options::new(EngineKind::Epoll), u64::MAX);
    let segments = row(6);
    let mut offered = segments.clone();
    offered[2].source = 3;
    let others: Vec<_> = (0..3).map(|n| TcpSegment { source: 4, ..segment(n) }).collect();
    offer(&mut driver, &[&offered[..], &others].concat());
    used(&mut driver, 9);
    let good = [&segments[..2], &segments[3..]].concat();
    assert_ends(&driver, &good, &[2, 5]);
    assert_eq!((dropped(&driver, DropReason::Spoofed), requests(&driver)), (4, (5, 4)));
}

#[test]
fn a_host_that_does_not_cut_gets_segments_one_by_one() {
    for on_offer in [Offloads { tso4: false, ..ALL_OFFLOADS }, Offloads { checksum: true, ..Offloads::NONE }]
    {
        let host = TestHost::new(1);
        host.change(|state| state.on_offer = on_offer);
        let mut driver = Driver::with(host, options(), Options::new(EngineKind::Epoll), u64::MAX);
        let segments = row(4);
        offer(&mut driver, &segments);
        used(&mut driver, 4);
        assert_eq!(assert_sent(&driver, &segments), [1; 4]);
    }
    // A driver without TSO, though, need not know of it.
    let mut driver = Driver::new(without(11) & without(12) & without(13));
    offer(&mut driver, &row(4));
    used(&mut driver, 4);
    assert_eq!(assert_sent(&driver, &row(4)), [4]);
}

/// A driver rewrites headers while the device looks: a packet of several segments has headers that fit it, and no more
/// bytes than were offered.
#[test]
fn sec_11_segments_are_joined_as_they_were_copied() {
    const COUNT: u64 = 4;
    let filter = Filter { mac: Some(MAC), ..Filter::default() };
    let options = NetOptions { filter, ..options() };
    let mut driver = Driver::with(TestHost::new(1), options, Options::new(EngineKind::Epoll), u64::MAX);
    let stop = Arc::new(AtomicBool::new(false));
    let racer = {
        let (ram, stop) = (driver.rig.ram.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut wrong = false;
            while !stop.load(Ordering::Relaxed) {
                wrong = !wrong;
                for n in 0..COUNT {
                    let at = Rig::DATA + n * ROOM + HEADER as u64;
                    let source = if wrong { 2 } else { MAC.0[0] };
                    ram.write(at + 6, &[source]).unwrap();
                    // Total length, and that of TCP's header.
                    ram.write(at + 16, &[if wrong { 0xFF } else { 4 }]).unwrap();
                    ram.write(at + 46, &[if wrong { 0xF0 } else { 0x50 }]).unwrap();
                }
            }
        })
    };
    for round in 0..1000 {
        offer(&mut driver, &row(COUNT as u32));
        let (rig, queue) = driver.split(1);
        (0..COUNT).for_each(|_| _ = rig.used(queue));
        for packet in driver.host.take_sent(0) {
            assert_eq!(packet[HEADER + 6..HEADER + 12], MAC.0, "round {round}");
            assert!(packet.len() as u64 <= HEADER as u64 + COUNT * FRAME);
            if packet[1] != 0 {
                let frames = cut(&packet);
                assert!(frames.iter().all(|frame| frame.len() as u64 <= FRAME && frame[46] == 0x50));
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    racer.join().unwrap();
}

#[test]
fn a_host_that_refuses_a_whole_gets_segments_one_by_one_from_then_on() {
    let mut driver = Driver::new(u64::MAX);
    let segments = row(4);
    driver.host.change(|state| state.answer = Sent::Refused);
    offer(&mut driver, &segments);
    used(&mut driver, 4);
    driver.host.change(|state| state.answer = Sent::Taken);
    offer(&mut driver, &segments);
    used(&mut driver, 4);
    assert_eq!(assert_sent(&driver, &segments), [1; 4]);
}

#[test]
fn frames_that_are_longer_than_the_mtu_are_joined_to_nothing() {
    for (mtu, expected) in [(1039, &[1; 4][..]), (1040, &[4])] {
        let options = NetOptions { mtu: Some(mtu), ..options() };
        let mut driver = Driver::with(TestHost::new(1), options, Options::new(EngineKind::Epoll), u64::MAX);
        let segments = row(4);
        offer(&mut driver, &segments);
        used(&mut driver, 4);
        assert_eq!(assert_sent(&driver, &segments), expected, "{mtu}");
    }
}

#[test]
fn flows_that_take_turns_are_not_looked_behind_for_long() {
    let mut driver = Driver::new(u64::MAX);
    let turns = |n: u32| TcpSegment { ports: [80, 40_000 + (n % 2) as u16], ..segment(n / 2) };
    let segments: Vec<_> = (0..60).map(turns).collect();
    offer(&mut driver, &segments);
    used(&mut driver, 60);
    assert_eq!(assert_sent(&driver, &segments), [1; 60]);
    // One that comes alone is noticed, though.
    let segments = row(60);
    offer(&mut driver, &segments);
    used(&mut driver, 60);
    let counts = assert_sent(&driver, &segments);
    assert!(counts.iter().any(|count| *count > 1), "{counts:?}");
    offer(&mut driver, &segments);
    used(&mut driver, 60);
    assert!(assert_sent(&driver, &segments)[0] > 1);
}
