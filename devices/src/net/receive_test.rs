use std::time::Duration;

use ringlet_io::limiter::{Limits, PerUnit, TokenBucket};
use ringlet_io::{Cost, EngineKind, Gate, LimiterSeed};
use ringlet_metrics::{GuestErrorKind, RequestStatus};

use super::*;
use crate::net::test_util::*;
use crate::testing::{Buffer, Options, Rig, wait_until};

/// Features of a driver that takes no mergeable buffers.
const PLAIN: u64 = without(VIRTIO_NET_F_MRG_RXBUF);
/// Features of a driver whose packets are never longer than its MTU.
const SHORT: u64 = !(1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 54 | 1 << 55);

fn dropped(driver: &Driver, reason: DropReason) -> u64 {
    driver.rig.metrics.dropped_packets.get(reason)
}

#[test]
fn a_frame_comes_with_its_header() {
    for features in [u64::MAX, PLAIN, SHORT] {
        let mut driver = Driver::new(features);
        driver.offer(&[(0x1000, 2000)]);
        let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0xEE, 0xEE];
        driver.host.change(|state| state.incoming[0].push_back([&header[..], &frame(600)].concat()));
        assert_eq!(driver.used(0), 612);
        assert_eq!(driver.bytes(0x1000, 12), [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0], "one buffer");
        assert_eq!(driver.bytes(0x1000 + 12, 601), [&frame(600)[..], &[0]].concat());
    }
}

#[test]
fn a_driver_without_checksums_is_told_nothing_of_them() {
    let mut driver = Driver::new(!(1 << VIRTIO_NET_F_GUEST_CSUM | !SHORT | 1 << 2));
    driver.offer(&[(0x1000, 2000)]);
    // What the host's kernel writes although nobody asked: DATA_VALID.
    let packet = [&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &frame(60)].concat();
    driver.host.change(|state| state.incoming[0].push_back(packet));
    driver.used(0);
    assert_eq!(driver.bytes(0x1000, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn a_packet_takes_as_many_buffers_as_it_needs_and_all_are_seen_at_once() {
    let mut driver = Driver::new(u64::MAX);
    let places: Vec<(u64, u32)> = (0..40).map(|n| (0x1000 * (n + 1), 2048)).collect();
    driver.offer(&places);
    let frame = frame(65_550);
    driver.host.come(0, &frame);
    wait_until("it comes", || driver.queues[0].used_index() != 0);
    // 65,562 bytes are 32 buffers and 26 bytes.
    assert_eq!(driver.queues[0].used_index(), 33, "none is seen before the others");
    let lens: Vec<u32> = (0..33).map(|_| driver.used(0)).collect();
    assert_eq!((lens[0], lens[31], lens[32]), (2048, 2048, 26));
    assert_eq!(driver.bytes(0x1000 + 10, 2), [33, 0]);
    let mut packet = driver.bytes(0x1000 + 12, 2036);
    for n in 1..33 {
        packet.extend(driver.bytes(0x1000 * (n + 1), 2048));
    }
    packet.truncate(frame.len());
    assert!(packet == frame);
    // The buffers that it did not take are for the next.
    driver.host.come(0, &frame[..3000]);
    assert_eq!((driver.used(0), driver.used(0)), (2048, 964));
    assert_eq!(driver.bytes(0x1000 * 34 + 10, 2), [2, 0]);
}

#[test]
fn a_buffer_may_be_smaller_than_a_frames_header_and_in_pieces() {
    let mut driver = Driver::new(u64::MAX);
    let (rig, queue) = driver.split(0);
    let at = Rig::DATA + 0x1000;
    queue.add(&[Buffer::writable(at, 5), Buffer::writable(at + 0x100, 7)]);
    queue.add(&[Buffer::writable(at + 0x200, 1)]);
    queue.add(&[Buffer::writable(at + 0x300, 1000)]);
    rig.ring(0);
    driver.host.come(0, &frame(60));
    assert_eq!([driver.used(0), driver.used(0), driver.used(0)], [12, 1, 59]);
    assert_eq!(driver.bytes(0x1000 + 0x100 + 5, 2), [3, 0]);
    let parts = [driver.bytes(0x1200, 1), driver.bytes(0x1300, 59)].concat();
    assert_eq!(parts, frame(60));
}

#[test]
fn without_mergeable_buffers_a_packet_has_one() {
    let mut driver = Driver::new(PLAIN);
    driver.offer(&[(0x1000, 500), (0x2000, 2000), (0x3000, 2000)]);
    driver.host.come(0, &frame(600));
    driver.host.come(0, &frame(100));
    driver.host.come(0, &frame(1500));
    assert_eq!((driver.used(0), driver.used(0)), (112, 1512));
    assert_eq!(dropped(&driver, DropReason::TooLong), 1);
    assert_eq!(driver.bytes(0x1000 + 10, 2), [1, 0]);
}

#[test]
fn what_does_not_fit_is_dropped_counted_and_followed_by_what_does() {
    let mut driver = Driver::new(u64::MAX);
    driver.offer(&[(0x1000, 1000), (0x2000, 1000)]);
    driver.host.come(0, &frame(60_000));
    driver.host.come(0, &frame(13));
    driver.host.come(0, &frame(1980));
    assert_eq!((driver.used(0), driver.used(0)), (1000, 992));
    assert_eq!((dropped(&driver, DropReason::TooLong), dropped(&driver, DropReason::BadLength)), (1, 1));
    let metrics = &driver.rig.metrics;
    assert_eq!(
        (metrics.requests(RequestKind::Receive, RequestStatus::Ok), metrics.bytes(RequestKind::Receive)),
        (1, 1980)
    );
}

#[test]
fn a_driver_that_is_about_to_offer_more_is_waited_for() {
    let mut driver = Driver::new(u64::MAX);
    let lots = |base: u64| (0..40).map(|n| (base + 0x800 * n, 2048)).collect::<Vec<_>>();
    driver.offer(&lots(0x1000));
    driver.host.come(0, &frame(65_000));
    // The driver has less left than the next packet needs, until it has seen to the first.
    wait_until("the first comes", || driver.queues[0].used_index() == 32);
    driver.offer(&lots(0x3_0000));
    driver.host.come(0, &frame(65_000));
    wait_until("the second comes", || driver.queues[0].used_index() == 64);
    assert_eq!(dropped(&driver, DropReason::TooLong), 0);
}

#[test]
fn a_driver_that_had_room_is_waited_for_though_it_gets_no_cpu() {
    let mut driver = Driver::new(u64::MAX);
    let lots = |base: u64| (0..40).map(|n| (base + 0x800 * n, 2048)).collect::<Vec<_>>();
    driver.offer(&lots(0x1000));
    driver.host.come(0, &frame(65_000));
    wait_until("the first comes", || driver.queues[0].used_index() == 32);
    driver.host.come(0, &frame(65_000));
    // Far longer than a driver that never had room is waited for, and far less than one that had.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(dropped(&driver, DropReason::TooLong), 0);
    driver.offer(&lots(0x3_0000));
    wait_until("the second comes", || driver.queues[0].used_index() == 64);
    assert_eq!(dropped(&driver, DropReason::TooLong), 0);
}

#[test]
fn a_driver_that_had_room_and_has_none_for_long_gets_what_fits() {
    let mut driver = Driver::new(u64::MAX);
    driver.offer(&(0..40).map(|n| (0x1000 + 0x800 * n, 2048)).collect::<Vec<_>>());
    driver.host.come(0, &frame(65_000));
    wait_until("the first comes", || driver.queues[0].used_index() == 32);
    driver.host.come(0, &frame(65_000));
    driver.host.come(0, &frame(2000));
    wait_until("what fits comes", || driver.queues[0].used_index() == 33);
    assert_eq!(dropped(&driver, DropReason::TooLong), 1);
}

#[test]
fn sec_02_without_buffers_the_host_is_not_asked() {
    let mut driver = Driver::new(u64::MAX);
    driver.host.change(|state| state.endless = Some([&[0; HEADER][..], &frame(1000)].concat()));
    driver.rig.settle();
    assert_eq!(driver.host.lock().asked[0], 0);
    driver.offer(&[(0x1000, 1012), (0x2000, 1012), (0x3000, 1012)]);
    let _ = [driver.used(0), driver.used(0), driver.used(0)];
    driver.rig.settle();
    let asked = driver.host.lock().asked[0];
    assert_eq!(asked, 3, "once a packet");
    driver.rig.settle();
    assert_eq!(driver.host.lock().asked[0], asked);
    assert_eq!(driver.queues[0].available_event(), 3, "the driver is asked to say when there are more");
}

#[test]
fn sec_02_a_flood_leaves_turns_to_others() {
    let mut driver = Driver::new(SHORT);
    driver.host.change(|state| state.endless = Some([&[0; HEADER][..], &frame(60)].concat()));
    driver.queues[0].set_used_event(u16::MAX);
    let turn = |rig: &Rig| rig.on_shard(async |cx| cx.turn());
    let before = turn(&driver.rig);
    for round in 0..16 {
        let buffers: Vec<_> = (0..64).map(|n| (0x1_0000 + 0x800 * n, 2048)).collect();
        driver.offer(&buffers);
        wait_until("all are filled", || driver.queues[0].used_index() == (round + 1) * 64);
    }
    assert!(turn(&driver.rig) - before >= 16, "no more than 64 packets a turn");
}

#[test]
fn a_packet_is_admitted_before_it_is_read_and_charged_with_what_came() {
    let gate = Gate::new();
    let rig = Options { limiter: LimiterSeed::gated(gate.clone()), ..Options::new(EngineKind::Epoll) };
    let mut driver = Driver::with(TestHost::new(1), options(), rig, SHORT);
    driver.offer(&[(0x1000, 2000), (0x2000, 2000)]);
    driver.host.come(0, &frame(100));
    driver.host.come(0, &frame(1500));
    driver.rig.settle();
    assert_eq!(driver.host.lock().asked[0], 0, "what was not admitted stays with the host");
    driver.rig.suspend().unwrap();
    let state = driver.rig.save().unwrap().queues[0].unwrap();
    assert_eq!((state.next_avail, state.next_used), (0, 0));
    driver.rig.resume().unwrap();
    gate.let_through(1);
    assert_eq!(driver.used(0), 112);
    gate.let_through(1);
    assert_eq!(driver.used(0), 1512);
    gate.open();
    driver.offer(&[(0x3000, 2000)]);
    driver.rig.settle();
    assert_eq!(gate.costs(), [Cost::read(100), Cost::read(1500)], "nothing came, nothing is charged");
}

#[test]
fn sec_02_what_comes_is_limited_in_bytes_and_packets_and_nothing_is_dropped() {
    let hour = Duration::from_secs(3600);
    let limited = |operations: Option<u64>, bytes: Option<u64>| {
        let bucket = |size| TokenBucket::new(size, hour);
        let read = PerUnit { operations: operations.map(bucket), bytes: bytes.map(bucket) };
        let limits = Limits { read, ..Limits::default() };
        let rig = Options::limited(EngineKind::Epoll, limits);
        let mut driver = Driver::with(TestHost::new(1), options(), rig, SHORT);
        driver.offer(&(0..20).map(|n| (0x1000 * (n + 1), 2000)).collect::<Vec<_>>());
        (0..20).for_each(|_| driver.host.come(0, &frame(1000)));
        wait_until("some come", || driver.queues[0].used_index() != 0);
        driver.rig.settle();
        // Sending is not limited by this.
        driver.post(&[0; HEADER], &frame(1500), 2000);
        driver.used(1);
        let left = driver.host.lock().incoming[0].len();
        (driver.queues[0].used_index(), left)
    };
    assert_eq!(limited(Some(5), None), (5, 15));
    // The fourth is read while 500 bytes are left, and nothing is while any are owed.
    assert_eq!(limited(None, Some(3_500)), (4, 16));
}

#[test]
fn sec_07_chains_that_cannot_hold_a_packet_are_refused_and_the_queue_goes_on() {
    for features in [u64::MAX, PLAIN] {
        let mut driver = Driver::new(features);
        let (rig, queue) = driver.split(0);
        let at = Rig::DATA + 0x1000;
        queue.add(&[Buffer::readable(at, 8), Buffer::writable(at + 8, 2000)]);
        queue.add(&[Buffer::writable(at, 11)]);
        queue.add(&[Buffer::writable(at, 2000)]);
        queue.add(&[Buffer::readable(at, 8)]);
        queue.add(&[Buffer::writable(at + 0x1000, 2000)]);
        rig.ring(0);
        driver.host.come(0, &frame(60));
        driver.host.come(0, &frame(80));
        let lens = [(); 5].map(|()| driver.used(0));
        assert_eq!(lens, [0, 0, 72, 0, 92]);
        assert_eq!(driver.rig.errors(GuestErrorKind::BadRequest), 3);
        assert_eq!(driver.rig.metrics.broken_queues.get(), 0);
    }
}

#[test]
fn sec_07_a_chain_that_is_offered_twice_in_one_packet_breaks_the_queue() {
    let mut driver = Driver::new(u64::MAX);
    let (rig, queue) = driver.split(0);
    let head = queue.add(&[Buffer::writable(Rig::DATA + 0x1000, 100)]);
    queue.offer(head);
    rig.ring(0);
    driver.host.come(0, &frame(150));
    wait_until("the queue is broken", || driver.rig.metrics.broken_queues.get() == 1);
    assert_eq!((driver.queues[0].used_index(), driver.rig.errors(GuestErrorKind::BadRing)), (0, 1));
    driver.send(&[0; HEADER], &frame(60), 1000);
    assert_eq!(driver.host.take_sent(0).len(), 1, "the other queue goes on");
}

#[test]
fn sec_08_a_reset_leaves_what_was_peeked_alone() {
    let mut driver = Driver::new(u64::MAX);
    driver.offer(&(0..10).map(|n| (0x1000 * (n + 1), 2000)).collect::<Vec<_>>());
    driver.rig.settle();
    driver.rig.write(crate::virtio::spec::register::STATUS, 0);
    driver.host.come(0, &frame(1000));
    driver.rig.settle();
    assert!(driver.bytes(0x1000, 0xB000).iter().all(|byte| *byte == 0));
    assert_eq!(driver.queues[0].used_index(), 0);
    driver.queues = driver.rig.bring_up(driver.rig.offered());
    driver.offer(&[(0x1000, 2000)]);
    assert_eq!(driver.used(0), 1012, "the next driver has it");
}
