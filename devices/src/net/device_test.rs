use ringlet_io::net::{HEADER, Offloads};
use ringlet_io::{EngineKind, GuestRam};
use ringlet_metrics::{DropReason, GuestErrorKind, RequestKind, RequestStatus};
use virtio_bindings::virtio_net::VIRTIO_NET_F_STATUS;

use super::*;
use crate::net::config::bit;
use crate::net::test_util::*;
use crate::testing::{Buffer, DriverQueue, Options, Rig, Subject, wait_until};
use crate::virtio::VirtioState;
use crate::virtio::spec::{feature, isr, register, status};

/// Frames come without end; each request is a chain of buffers.
fn receiving() -> Subject {
    let host = TestHost::new(2);
    host.change(|state| state.endless = Some([&[0; HEADER][..], &frame(1000)].concat()));
    subject(&host, options(), 0, |_, gpa| {
        vec![Buffer::writable(gpa, 100), Buffer::writable(gpa + 0x1000, 5000)]
    })
}

/// Each request is a frame.
fn sending() -> Subject {
    let request = |ram: &GuestRam, gpa: u64| {
        ram.write(gpa, &[0; 2]).unwrap();
        ram.write(gpa, &[0; HEADER]).unwrap();
        vec![Buffer::readable(gpa, 100), Buffer::readable(gpa + 0x1000, 900)]
    };
    subject(&TestHost::new(2), options(), 1, request)
}

crate::virtio_conformance!(receiving_conforms, super::receiving);
crate::virtio_conformance!(sending_conforms, super::sending);

/// Without mergeable buffers.
fn config(rig: &Rig) -> Vec<u8> {
    let mut bytes = vec![0; 12];
    rig.read_config(&mut bytes);
    bytes
}

#[test]
fn a_driver_reads_address_link_pairs_and_mtu() {
    let rig =
        Rig::new(subject(&TestHost::new(2), options(), 0, |_, _| vec![]), Options::new(EngineKind::Epoll));
    assert_eq!(config(&rig), [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 2, 0, 0xDC, 5]);
    assert_eq!(rig.read(register::DEVICE_ID), 1);
    assert_eq!(rig.identity.queue_sizes, [64; 5]);
}

#[test]
fn what_the_host_prescribes_is_what_the_driver_gets() {
    let host = NetInfo { mac: Some([2; 6]), mtu: Some(9000), queue_pairs: 1, offloads: Offloads::NONE };
    let layout = options().layout(&host);
    assert_eq!((layout.mac, layout.mac_changes, layout.mtu), (Mac([2; 6]), false, Some(9000)));
    let layout = NetOptions { mtu: Some(1400), ..options() }.layout(&NetInfo { mac: None, ..host });
    assert_eq!((layout.mac, layout.mac_changes, layout.mtu), (MAC, true, Some(1400)));
    let pinned = NetOptions { filter: Filter { mac: Some(MAC), ..Filter::default() }, ..options() };
    assert!(!pinned.layout(&info(1)).mac_changes);
    let many = options().layout(&NetInfo { queue_pairs: u16::MAX, ..host });
    assert_eq!(many.pairs, MAX_PAIRS);
}

#[test]
fn sec_07_features_without_what_they_need_are_refused() {
    let rig =
        Rig::new(subject(&TestHost::new(2), options(), 0, |_, _| vec![]), Options::new(EngineKind::Epoll));
    // TSO4 without GUEST_CSUM, HOST_TSO4 without CSUM, ECN without TSO, MQ and CTRL_RX without CTRL_VQ.
    let wrong = [1 << 7, 1 << 11, 1 << 9 | 1 << 1, 1 << 13 | 1, 1 << 22, 1 << 18];
    for (n, features) in wrong.into_iter().enumerate() {
        rig.negotiate(features | feature::VERSION_1);
        assert_eq!(rig.status() & status::FEATURES_OK, 0, "{features:#x}");
        assert_eq!(rig.errors(GuestErrorKind::BadFeatures), n as u64 + 1);
    }
    for features in [0, 1, 1 << 1 | 1 << 7, 1 << 17 | 1 << 22, rig.offered()] {
        rig.negotiate(features | feature::VERSION_1);
        assert_ne!(rig.status() & status::FEATURES_OK, 0, "{features:#x}");
    }
}

#[test]
fn the_host_is_told_what_the_driver_accepts_and_only_if_it_changes() {
    let mut driver = Driver::new(feature::VERSION_1);
    driver.send(&[0; HEADER], &frame(60), 1000);
    assert!(driver.host.lock().offloads.is_empty(), "nothing was accepted, nothing is new");
    let mut driver = Driver::new(without(8));
    driver.send(&[0; HEADER], &frame(60), 1000);
    driver.send(&[0; HEADER], &frame(60), 1000);
    let expected = Offloads { tso6: false, ..ALL_OFFLOADS };
    assert_eq!(driver.host.lock().offloads, [expected], "once");
    assert!(driver.host.lock().pairs.is_empty(), "there is one pair");
}

#[test]
fn nothing_flows_before_the_host_is_told() {
    let host = TestHost::new(1);
    host.change(|state| state.held = true);
    let mut driver = Driver::with(host, options(), Options::new(EngineKind::Epoll), u64::MAX);
    driver.offer(&[(0x1000, 2000)]);
    driver.host.come(0, &frame(60));
    driver.post(&[0; HEADER], &frame(60), 1000);
    driver.rig.settle();
    assert_eq!(driver.host.lock().asked[0], 0);
    assert!(driver.host.lock().sent[0].is_empty());
    assert!(driver.rig.suspend().is_ok(), "that holds up nobody");
    driver.rig.resume().unwrap();
    driver.host.change(|state| state.held = false);
    assert_eq!((driver.used(0), driver.used(1)), (72, 0));
}

#[test]
fn a_link_goes_down_and_up() {
    let mut driver = Driver::new(u64::MAX);
    driver.offer(&[(0x1000, 2000)]);
    driver.host.come(0, &frame(60));
    driver.used(0);
    driver.rig.write(register::INTERRUPT_ACK, isr::USED);
    driver.rig.notice(HostEvent::LinkDown);
    wait_until("the driver is told", || driver.rig.read(register::INTERRUPT_STATUS) & isr::CONFIG != 0);
    assert_eq!(config(&driver.rig)[6], 0);
    driver.offer(&[(0x1000, 2000)]);
    driver.host.come(0, &frame(61));
    driver.send(&[0; HEADER], &frame(60), 1000);
    driver.rig.settle();
    assert_eq!(driver.rig.metrics.dropped_packets.get(DropReason::LinkDown), 1);
    assert!(driver.host.lock().sent[0].is_empty() && driver.queues[0].take_used().is_none());
    driver.rig.notice(HostEvent::LinkDown);
    driver.rig.notice(HostEvent::LinkUp);
    assert_eq!(driver.used(0), 73, "what waits at the host is not lost");
    assert_eq!(config(&driver.rig)[6], 1);
    driver.send(&[0; HEADER], &frame(60), 1000);
    assert_eq!(driver.host.take_sent(0).len(), 1);
}

#[test]
fn a_driver_without_status_is_not_interrupted_for_the_link() {
    let driver = Driver::new(without(VIRTIO_NET_F_STATUS));
    driver.rig.settle();
    let _ = driver.rig.take_interrupts();
    driver.rig.notice(HostEvent::LinkDown);
    driver.rig.settle();
    assert_eq!((config(&driver.rig)[6], driver.rig.take_interrupts()), (0, 0));
}

#[test]
fn a_port_at_its_end_takes_the_link_down_and_nothing_spins() {
    for is_read in [true, false] {
        let mut driver = Driver::new(u64::MAX);
        if is_read {
            driver.offer(&[(0x1000, 2000)]);
        }
        driver.rig.settle();
        driver.host.change(|state| state.error = Some(std::io::ErrorKind::BrokenPipe));
        if !is_read {
            driver.send(&[0; HEADER], &frame(60), 1000);
        }
        wait_until("the link is down", || config(&driver.rig)[6] == 0);
        let asked = driver.host.lock().asked[0];
        driver.rig.settle();
        assert_eq!(driver.host.lock().asked[0], asked);
        driver.send(&[0; HEADER], &frame(60), 1000);
        assert!(driver.rig.metrics.dropped_packets.get(DropReason::LinkDown) >= 1);
        assert_eq!(driver.rig.status() & status::NEEDS_RESET, 0, "it is no mistake of the driver's");
        driver.host.change(|state| state.error = None);
        driver.rig.notice(HostEvent::LinkUp);
        driver.send(&[0; HEADER], &frame(60), 1000);
        assert_eq!(driver.host.take_sent(0).len(), 1);
    }
}

#[test]
fn a_saved_interface_goes_on_with_traffic() {
    let mut old = Driver::new(u64::MAX);
    let offloads = bit(1) | bit(7);
    assert_eq!(old.control(&[&[5, 0][..], &offloads.to_le_bytes()].concat()), 0);
    assert_eq!(old.control(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    old.offer(&[(0x1000, 2000), (0x2000, 2000)]);
    old.host.come(0, &frame(60));
    old.used(0);
    old.host.change(|state| state.answer = ringlet_io::net::Sent::Later);
    old.post(&[0; HEADER], &frame(70), 1000);
    wait_until("a packet waits", || old.rig.metrics.in_flight.get() == 1);
    old.rig.suspend().unwrap();
    assert_eq!(old.rig.metrics.in_flight.get(), 0, "nothing waits for the host");
    let saved = old.rig.save().unwrap();
    let mac = [2, 0, 0, 0, 0, 9];
    assert_eq!(saved.device, DeviceState::Net { mac, pairs: 1, offloads, link_up: true });

    let host = TestHost::new(1);
    let restored = Some((old.rig.ram.clone(), saved.clone()));
    let options = Options { restored, ..Options::new(EngineKind::Epoll) };
    let rig = Rig::new(subject(&host, super::super::test_util::options(), 0, |_, _| vec![]), options);
    assert_eq!(rig.save().unwrap(), saved);
    assert_eq!(config(&rig)[..6], mac);
    rig.resume().unwrap();
    let mut new = Driver { rig, host, queues: old.queues.clone() };
    assert_eq!(new.used(1), 0);
    assert_eq!(new.host.take_sent(0), [[&[0; HEADER][..], &frame(70)].concat()]);
    new.host.come(0, &frame(80));
    assert_eq!(new.used(0), 92);
    let told = Offloads { checksum: true, tso4: true, ..Offloads::NONE };
    assert_eq!(new.host.lock().offloads, [told], "the new host is told what the driver accepts");
}

#[test]
fn a_driver_that_knew_another_link_is_told_after_a_restore() {
    let old = Driver::new(u64::MAX);
    old.rig.notice(HostEvent::LinkDown);
    old.rig.suspend().unwrap();
    let mut saved = old.rig.save().unwrap();
    saved.transport.interrupt_status = 0;
    let restored = Some((old.rig.ram.clone(), saved));
    let subject = subject(&TestHost::new(1), options(), 0, |_, _| vec![]);
    let rig = Rig::new(subject, Options { restored, ..Options::new(EngineKind::Epoll) });
    rig.settle();
    assert_eq!((config(&rig)[6], rig.read(register::INTERRUPT_STATUS)), (1, isr::CONFIG));
}

type Craft = fn(&mut [u8; 6], &mut u16, &mut u64);

#[test]
fn sec_10_a_state_that_no_driver_could_have_made_is_refused() {
    let restore = |features: u64, craft: Craft| {
        let host = TestHost::new(2);
        let driver = Driver::with(host, options(), Options::new(EngineKind::Epoll), features);
        driver.rig.suspend().unwrap();
        let mut saved: VirtioState = driver.rig.save().unwrap();
        let DeviceState::Net { mac, pairs, offloads, .. } = &mut saved.device else { panic!("{saved:?}") };
        craft(mac, pairs, offloads);
        let restored = Some((driver.rig.ram.clone(), saved));
        let subject = subject(&TestHost::new(2), options(), 0, |_, _| vec![]);
        let rig = Rig::new(subject, Options { restored, ..Options::new(EngineKind::Epoll) });
        let taken = rig.save().is_ok();
        let _ = rig.stop();
        taken
    };
    let possible: [(u64, Craft); 4] = [
        (u64::MAX, |_, _, _| {}),
        (u64::MAX, |mac, _, _| *mac = [2, 1, 1, 1, 1, 1]),
        (u64::MAX, |_, pairs, _| *pairs = 2),
        (u64::MAX, |_, _, offloads| *offloads = 2),
    ];
    for (n, (features, craft)) in possible.into_iter().enumerate() {
        assert!(restore(features, craft), "{n}");
    }
    let impossible: [(u64, Craft); 10] = [
        (u64::MAX, |mac, _, _| *mac = [1, 1, 1, 1, 1, 1]),
        (u64::MAX, |mac, _, _| *mac = [0; 6]),
        (without(23), |mac, _, _| *mac = [2, 1, 1, 1, 1, 1]),
        (u64::MAX, |_, pairs, _| *pairs = 0),
        (u64::MAX, |_, pairs, _| *pairs = 3),
        (without(22), |_, pairs, _| *pairs = 2),
        (u64::MAX, |_, _, offloads| *offloads |= 1),
        (u64::MAX, |_, _, offloads| *offloads = 1 << 7),
        (without(2), |_, _, offloads| *offloads = 0),
        (without(7), |_, _, offloads| *offloads |= 1 << 7),
    ];
    for (n, (features, craft)) in impossible.into_iter().enumerate() {
        assert!(!restore(features, craft), "{n}");
    }
}

/// Which queue is for what, by the features: the number of the control queue.
#[test]
fn the_control_queue_is_the_third_without_multiqueue() {
    for (features, control) in [(u64::MAX, 4usize), (without(22), 2)] {
        let host = TestHost::new(2);
        let mut driver = Driver::with(host, options(), Options::new(EngineKind::Epoll), features);
        driver.queues.truncate(control + 1);
        assert_eq!(driver.control(&[0, 0, 1]), 0);
    }
    // Without CTRL_VQ it is nothing, and neither are the queues of other pairs; all of them stop and start.
    let features = !(bit(17) | bit(18) | bit(20) | bit(22) | bit(23) | bit(2));
    let host = TestHost::new(2);
    let mut driver = Driver::with(host, options(), Options::new(EngineKind::Epoll), features);
    for queue in 2..5 {
        let (rig, queue) = driver.split(queue);
        rig.send(queue, &[Buffer::writable(Rig::DATA, 100)]);
    }
    driver.rig.suspend().unwrap();
    let saved = driver.rig.save().unwrap();
    assert!(saved.queues.iter().all(|queue| queue.is_some_and(|state| state.next_avail == 0)));
    driver.rig.resume().unwrap();
    driver.rig.settle();
    assert!(driver.queues.iter().all(|queue: &DriverQueue| queue.used_index() == 0));
}

#[test]
fn pairs_that_are_not_used_neither_read_nor_send() {
    let host = TestHost::new(2);
    let mut driver = Driver::with(host, options(), Options::new(EngineKind::Epoll), u64::MAX);
    let offer = |driver: &mut Driver| {
        let (rig, queue) = driver.split(2);
        rig.send(queue, &[Buffer::writable(Rig::DATA + 0x1000, 2000)]);
    };
    offer(&mut driver);
    driver.host.come(1, &frame(60));
    let (rig, queue) = driver.split(3);
    rig.send(queue, &[Buffer::readable(Rig::DATA, 72)]);
    assert_eq!(driver.used(3), 0);
    assert_eq!(driver.rig.metrics.dropped_packets.get(DropReason::Refused), 1);
    assert_eq!(driver.host.lock().asked[1], 0);
    assert_eq!(driver.host.lock().pairs, [1]);
    assert_eq!(driver.control(&[4, 0, 2, 0]), 0);
    assert_eq!(driver.host.lock().pairs, [1, 2]);
    assert_eq!(driver.used(2), 72);
    let (rig, queue) = driver.split(3);
    rig.send(queue, &[Buffer::readable(Rig::DATA + 0x4000, 72)]);
    driver.used(3);
    assert_eq!(driver.host.take_sent(1).len(), 1);
    assert_eq!(driver.control(&[4, 0, 1, 0]), 0);
    offer(&mut driver);
    driver.host.come(1, &frame(60));
    driver.rig.settle();
    assert_eq!((driver.queues[2].take_used(), driver.host.lock().pairs.clone()), (None, vec![1, 2, 1]));
}

#[test]
fn a_reset_forgets_the_driver() {
    let mut driver = Driver::new(u64::MAX);
    assert_eq!(driver.control(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(config(&driver.rig)[..6], [2, 0, 0, 0, 0, 9]);
    driver.rig.write(register::STATUS, 0);
    assert_eq!(config(&driver.rig)[..6], MAC.0);
    driver.queues = driver.rig.bring_up(feature::VERSION_1);
    driver.send(&[0; HEADER], &frame(60), 1000);
    assert_eq!(driver.host.lock().offloads.last(), Some(&Offloads::NONE), "the next one accepts nothing");
}

#[test]
fn packets_and_bytes_are_counted_both_ways() {
    let mut driver = Driver::new(u64::MAX);
    driver.offer(&[(0x1000, 2000)]);
    driver.host.come(0, &frame(100));
    driver.used(0);
    driver.send(&[0; HEADER], &frame(60), 1000);
    driver.send(&[0; HEADER], &frame(80), 1000);
    let count = |kind| {
        let metrics = &driver.rig.metrics;
        (metrics.requests(kind, RequestStatus::Ok), metrics.bytes(kind))
    };
    assert_eq!((count(RequestKind::Receive), count(RequestKind::Transmit)), ((1, 100), (2, 140)));
    assert!(driver.rig.metrics.notifications.get() > 0 && driver.rig.metrics.interrupts.get() > 0);
}
