use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringlet_io::limiter::{Limits, PerUnit, TokenBucket};
use ringlet_io::{EngineKind, Gate, LimiterSeed};

use super::*;
use crate::net::test_util::*;
use crate::net::{Filter, NetOptions};
use crate::testing::{Buffer, Options, Rig, wait_until};

const EMPTY: [u8; HEADER] = [0; HEADER];

fn dropped(driver: &Driver, reason: DropReason) -> u64 {
    driver.rig.metrics.dropped_packets.get(reason)
}

fn gated(gate: &Gate) -> Options {
    Options { limiter: LimiterSeed::gated(gate.clone()), ..Options::new(EngineKind::Epoll) }
}

#[test]
fn a_frame_goes_out_as_it_is_however_it_is_cut() {
    for piece in [1, 5, 12, 13, 60, 2000] {
        let mut driver = Driver::new(u64::MAX);
        driver.send(&EMPTY, &frame(45), piece);
        assert_eq!(driver.host.take_sent(0), [[&EMPTY[..], &frame(45)].concat()], "{piece}");
    }
    let mut driver = Driver::new(u64::MAX);
    driver.send(&EMPTY, &frame(65_550), 4096);
    driver.send(&EMPTY, &frame(14), 4096);
    let sent = driver.host.take_sent(0);
    assert!(sent == [[&EMPTY[..], &frame(65_550)].concat(), [&EMPTY[..], &frame(14)].concat()]);
}

#[test]
fn a_header_says_what_was_checked_and_no_more() {
    let mut driver = Driver::new(u64::MAX);
    // TCP over IPv4, to be cut into segments of 1460 bytes; bits and num_buffers that mean nothing.
    driver.send(&[0xFF, 1, 54, 0, 0xB4, 5, 34, 0, 16, 0, 9, 9], &frame(4000), 2000);
    driver.send(&[0xFE, 0, 54, 0, 0xB4, 5, 34, 0, 16, 0, 9, 9], &frame(60), 2000);
    let sent = driver.host.take_sent(0);
    assert_eq!(sent[0][..HEADER], [1, 1, 54, 0, 0xB4, 5, 34, 0, 16, 0, 0, 0]);
    assert_eq!(sent[1][..HEADER], EMPTY);
}

#[test]
fn sec_07_packets_with_flaws_are_dropped_counted_and_given_back() {
    let mut driver = Driver::new(without(11));
    for (header, len, reason) in [
        (EMPTY, 13, DropReason::BadLength),
        (EMPTY, 65_551, DropReason::BadLength),
        ([1, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0], 60, DropReason::BadHeader),
        ([1, 1, 0, 0, 0xB4, 5, 34, 0, 16, 0, 0, 0], 4000, DropReason::BadHeader),
        ([0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 60, DropReason::BadHeader),
    ] {
        let (before, errors) = (dropped(&driver, reason), driver.rig.errors(GuestErrorKind::BadRequest));
        driver.send(&header, &frame(len), 4096);
        assert_eq!(dropped(&driver, reason), before + 1, "{header:?}");
        assert_eq!(driver.rig.errors(GuestErrorKind::BadRequest), errors + 1);
    }
    assert!(driver.host.take_sent(0).is_empty());
    let io_errors = driver.rig.metrics.requests(RequestKind::Transmit, RequestStatus::IoError);
    assert_eq!((io_errors, driver.rig.metrics.broken_queues.get()), (5, 0));
}

#[test]
fn sec_07_chains_that_hold_no_packet_are_refused_and_the_queue_goes_on() {
    let mut driver = Driver::new(u64::MAX);
    let at = Rig::DATA;
    for buffers in [
        &[Buffer::readable(at, 72), Buffer::writable(at + 0x100, 8)][..],
        &[Buffer::writable(at, 100)],
        &[Buffer::readable(at, 11)],
        &[Buffer::readable(at, 12)],
    ] {
        let (rig, queue) = driver.split(1);
        rig.send(queue, buffers);
        assert_eq!(driver.used(1), 0);
    }
    assert_eq!(driver.rig.errors(GuestErrorKind::BadRequest), 4);
    driver.send(&EMPTY, &frame(60), 1000);
    assert_eq!(driver.host.take_sent(0).len(), 1);
}

#[test]
fn a_host_that_takes_nothing_makes_the_guest_wait_and_stopping_does_not_wait_for_it() {
    let mut driver = Driver::new(u64::MAX);
    driver.host.change(|state| state.answer = Sent::Later);
    driver.post(&EMPTY, &frame(60), 1000);
    wait_until("the packet waits", || driver.rig.metrics.in_flight.get() == 1);
    assert_eq!(driver.queues[1].take_used(), None);
    driver.rig.suspend().unwrap();
    assert_eq!(driver.rig.metrics.in_flight.get(), 0);
    driver.host.change(|state| state.answer = Sent::Taken);
    driver.rig.resume().unwrap();
    driver.used(1);
    assert_eq!(driver.host.take_sent(0).len(), 1, "once");
    driver.host.change(|state| state.answer = Sent::Later);
    driver.post(&EMPTY, &frame(61), 1000);
    wait_until("the packet waits", || driver.rig.metrics.in_flight.get() == 1);
    driver.host.change(|state| state.answer = Sent::Taken);
    driver.used(1);
    assert_eq!((driver.host.take_sent(0).len(), driver.rig.metrics.in_flight.get()), (1, 0));
}

#[test]
fn what_the_host_refuses_is_dropped_and_counted() {
    let mut driver = Driver::new(u64::MAX);
    driver.host.change(|state| state.answer = Sent::Refused);
    driver.send(&EMPTY, &frame(60), 1000);
    assert_eq!(
        (dropped(&driver, DropReason::Refused), driver.rig.errors(GuestErrorKind::BadRequest)),
        (1, 0)
    );
}

#[test]
fn a_packet_is_admitted_before_it_is_sent() {
    let gate = Gate::new();
    let mut driver = Driver::with(TestHost::new(1), options(), gated(&gate), u64::MAX);
    driver.post(&EMPTY, &frame(60), 1000);
    driver.rig.settle();
    assert!(driver.host.lock().sent[0].is_empty());
    driver.rig.suspend().unwrap();
    assert_eq!(driver.rig.save().unwrap().queues[1].unwrap().next_avail, 0);
    gate.open();
    driver.rig.settle();
    assert!(driver.host.lock().sent[0].is_empty(), "nothing is sent while it is suspended");
    driver.rig.resume().unwrap();
    driver.used(1);
    assert_eq!((driver.host.take_sent(0).len(), gate.costs()), (1, vec![Cost::write(60)]));
}

#[test]
fn sec_02_what_is_sent_is_limited_in_bytes_and_packets() {
    let hour = Duration::from_secs(3600);
    let limited = |operations: Option<u64>, bytes: Option<u64>| {
        let bucket = |size| TokenBucket::new(size, hour);
        let write = PerUnit { operations: operations.map(bucket), bytes: bytes.map(bucket) };
        let limits = Limits { write, ..Limits::default() };
        let rig = Options::limited(EngineKind::Epoll, limits);
        let mut driver = Driver::with(TestHost::new(1), options(), rig, u64::MAX);
        (0..20).for_each(|_| driver.post(&EMPTY, &frame(1000), 4096));
        // Receiving is not limited by this.
        driver.offer(&[(0x1_0000, 2000)]);
        driver.host.come(0, &frame(1500));
        driver.used(0);
        wait_until("some are sent", || !driver.host.lock().sent[0].is_empty());
        driver.rig.settle();
        driver.host.lock().sent[0].len()
    };
    assert_eq!(limited(Some(5), None), 5);
    assert_eq!(limited(None, Some(3_500)), 3);
}

/// Only [`MAC`] and 10.0.0.2 may send, and no address of IPv6.
fn pinned() -> Driver {
    let filter = Filter {
        mac: Some(MAC),
        ipv4: Some(vec![[10, 0, 0, 2].into()]),
        ipv6: Some(vec![]),
        ..Filter::default()
    };
    let options = NetOptions { filter, ..options() };
    Driver::with(TestHost::new(1), options, Options::new(EngineKind::Epoll), u64::MAX)
}

#[test]
fn what_is_pinned_is_all_that_goes_out() {
    let mut driver = pinned();
    let packet = |source: [u8; 6], address: [u8; 4], len: usize| {
        let mut frame = [&[0xFF; 6][..], &source, &[8, 0, 0x45], &[0; 11], &address, &[1; 4]].concat();
        frame.resize(len, 7);
        frame
    };
    for len in [40, 100, 1500] {
        let own = packet(MAC.0, [10, 0, 0, 2], len);
        driver.send(&EMPTY, &own, 64);
        assert_eq!(driver.host.take_sent(0), [[&EMPTY[..], &own].concat()]);
    }
    driver.send(&EMPTY, &packet([2; 6], [10, 0, 0, 2], 100), 64);
    driver.send(&EMPTY, &packet(MAC.0, [10, 0, 0, 3], 100), 64);
    driver.send(&EMPTY, &packet(MAC.0, [10, 0, 0, 3], 20), 64);
    assert_eq!((dropped(&driver, DropReason::Spoofed), driver.host.take_sent(0).len()), (3, 0));
    assert_eq!(driver.rig.errors(GuestErrorKind::BadRequest), 3);
}

/// The host would write the checksum over the sender of ARP, after that was judged.
#[test]
fn sec_11_no_checksum_is_written_where_addresses_were_judged() {
    let mut driver = pinned();
    let frame = |kind: [u8; 2], packet: &[u8]| [&[0xFF; 6][..], &MAC.0, &kind, packet].concat();
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &MAC.0, &[10, 0, 0, 2], &[0; 20]].concat();
    driver.send(&[1, 0, 0, 0, 0, 0, 14, 0, 14, 0, 0, 0], &frame([8, 6], &arp), 64);
    let link_local = [0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xFF, 0xFE, 0x12, 0x34, 0x56];
    let header = [&[0x60, 0, 0, 0, 0, 24, 58, 255][..], &link_local, &[0xFF; 16]].concat();
    let advertisement = [&header[..], &[136, 0, 0, 0, 0, 0, 0, 0], &link_local].concat();
    driver.send(&[1, 0, 0, 0, 0, 0, 54, 0, 22, 0, 0, 0], &frame([0x86, 0xDD], &advertisement), 64);
    assert_eq!((dropped(&driver, DropReason::BadHeader), driver.host.take_sent(0).len()), (2, 0));
    // They are dropped for that alone; and TCP may leave its checksum to the host.
    driver.send(&EMPTY, &frame([8, 6], &arp), 64);
    driver.send(&EMPTY, &frame([0x86, 0xDD], &advertisement), 64);
    let tcp = [&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 1, 1, 1, 1][..], &[0; 20]].concat();
    driver.send(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &frame([8, 0], &tcp), 64);
    assert_eq!((dropped(&driver, DropReason::BadHeader), driver.host.take_sent(0).len()), (2, 3));
}

/// A driver rewrites header and addresses while the device looks: what is sent was judged.
#[test]
fn sec_11_what_is_sent_is_what_was_judged() {
    let filter = Filter { mac: Some(MAC), ..Filter::default() };
    let options = NetOptions { filter, ..options() };
    let mut driver = Driver::with(
        TestHost::new(1),
        options,
        Options::new(EngineKind::Epoll),
        without(0) & !(0xF << 11) & without(56),
    );
    let stop = Arc::new(AtomicBool::new(false));
    let racer = {
        let (ram, stop) = (driver.rig.ram.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut own = false;
            while !stop.load(Ordering::Relaxed) {
                own = !own;
                let source = if own { MAC.0 } else { [2; 6] };
                ram.write(Rig::DATA + 12 + 6, &source).unwrap();
                ram.write(Rig::DATA, &[u8::from(!own)]).unwrap();
            }
        })
    };
    for _ in 0..2000 {
        let (rig, queue) = driver.split(1);
        rig.send(queue, &[Buffer::readable(Rig::DATA, 600)]);
        rig.used(queue);
    }
    stop.store(true, Ordering::Relaxed);
    racer.join().unwrap();
    for packet in driver.host.take_sent(0) {
        assert_eq!((&packet[..HEADER], &packet[HEADER + 6..HEADER + 12]), (&EMPTY[..], &MAC.0[..]));
    }
}
