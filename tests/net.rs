//! Network interfaces on real KVM, on both engines: the bundled guest `http` behind a socket on which the test is the
//! network. Needs no privilege; taps are tested where they are, in `io/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use common::capture::sum;
use common::network::metric;
use common::{Guest, Host, on_both_engines, within};
use ringlet::{
    AntiSpoof, Bucket, LimitsConfig, MacAddress, NetLimits, NetRates, NetworkInterface, RateLimiter,
    TenantConfig, TenantLimits, VmConfig,
};
use ringlet_metrics::ExitKind;

const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const GUEST: [u8; 4] = [192, 0, 2, 2];
const US: [u8; 4] = [192, 0, 2, 1];

/// The guest, and the wire to it: a datagram is a frame.
fn guest(host: &Host, change: impl FnOnce(NetworkInterface) -> NetworkInterface) -> (Guest, UnixDatagram) {
    guest_with(host, change, |config| config)
}

/// As [`guest`], with more in the VM's configuration.
fn guest_with(
    host: &Host,
    change: impl FnOnce(NetworkInterface) -> NetworkInterface,
    vm: impl FnOnce(VmConfig) -> VmConfig,
) -> (Guest, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_read_timeout(Some(common::deadline())).unwrap();
    let interface = NetworkInterface::fds("net0", [theirs.as_raw_fd()]).mac(MacAddress(GUEST_MAC));
    let config = VmConfig::new("http").memory_mib(64).network_interface(change(interface));
    let guest = host.bundled_with(vm(config.args(["ip=192.0.2.2/24"])));
    (guest, ours)
}

/// An ARP packet of ours (RFC 826): who has the guest's address?
fn question() -> Vec<u8> {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &OUR_MAC, &US, &[0; 6], &GUEST].concat();
    [&[0xFF; 6][..], &OUR_MAC, &[8, 6], &arp].concat()
}

/// Whether a frame is the guest's answer to that.
fn is_answer(frame: &[u8]) -> bool {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &GUEST_MAC, &GUEST, &OUR_MAC, &US].concat();
    frame.starts_with(&[&OUR_MAC[..], &GUEST_MAC, &[8, 6], &arp].concat())
}

/// How many wait for a level of the VM's limits.
fn waiting(guest: &Guest, level: &str) -> i64 {
    let limiters = guest.vm.metrics().limiters();
    limiters.iter().find(|(name, _)| name == level).map_or(0, |(_, reading)| reading.waiting)
}

/// Asks until the guest answers.
fn answered(wire: &UnixDatagram) {
    wire.send(&question()).unwrap();
    until_answered(wire);
}

/// Reads until the guest answers what it was asked.
fn until_answered(wire: &UnixDatagram) {
    let mut frame = [0; 2048];
    loop {
        let len = wire.recv(&mut frame).expect("the guest answers");
        if is_answer(&frame[..len]) {
            return;
        }
    }
}

/// Flags of a TCP segment (RFC 9293, 3.1).
mod flag {
    pub(super) const SYN: u8 = 2;
    pub(super) const RST: u8 = 4;
    pub(super) const ACK: u8 = 16;
}

/// A TCP segment for the guest's port 80.
fn segment(port: u16, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let be = |number: usize| u16::try_from(number).unwrap().to_be_bytes();
    let ports = [port.to_be_bytes(), be(80)].concat();
    let head = [&ports[..], &seq.to_be_bytes(), &ack.to_be_bytes(), &[5 << 4, flags, 0xFF, 0xFF]].concat();
    let pseudo = [&US[..], &GUEST, &[0, 6], &be(20 + payload.len())].concat();
    let checksum = !sum(&[&pseudo, &head, payload]);
    let packet = [&[0x45, 0][..], &be(40 + payload.len()), &[0, 0, 0x40, 0, 64, 6]].concat();
    let addresses = [US, GUEST].concat();
    let of_packet = (!sum(&[&packet, &addresses])).to_be_bytes();
    let ethernet = [&GUEST_MAC[..], &OUR_MAC, &[8, 0]].concat();
    [&ethernet[..], &packet, &of_packet, &addresses, &head, &checksum.to_be_bytes(), &[0; 2], payload]
        .concat()
}

/// A segment of the guest: sequence number, flags, payload.
type Segment = (u32, u8, Vec<u8>);

/// What a frame has for this port of ours.
fn segment_for(port: u16, frame: &[u8]) -> Option<Segment> {
    let packet = frame.strip_prefix(&[&OUR_MAC[..], &GUEST_MAC, &[8, 0]].concat()[..])?;
    let tcp = &packet[20..usize::from(u16::from_be_bytes([packet[2], packet[3]]))];
    let is_ours = packet[9] == 6 && tcp[2..4] == port.to_be_bytes();
    let seq = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    is_ours.then(|| (seq, tcp[13], tcp[usize::from(tcp[12] >> 4) * 4..].to_vec()))
}

/// Reads what comes for this port until something is `wanted`: the last is that.
fn segments_until(wire: &UnixDatagram, port: u16, wanted: impl Fn(&Segment) -> bool) -> Vec<Segment> {
    let (mut frame, mut segments) = ([0; 2048], Vec::new());
    while !segments.last().is_some_and(&wanted) {
        let len = wire.recv(&mut frame).expect("the guest says it");
        segments.extend(segment_for(port, &frame[..len]));
    }
    segments
}

/// Asks for a connection from this port of ours.
fn ask(wire: &UnixDatagram, port: u16) {
    wire.send(&segment(port, 0, 0, flag::SYN, &[])).unwrap();
}

/// Whether the guest agrees to a connection.
fn is_agreement((_, flags, _): &Segment) -> bool {
    *flags == flag::SYN | flag::ACK
}

fn take_back(wire: &UnixDatagram, port: u16) {
    wire.send(&segment(port, 1, 0, flag::RST, &[])).unwrap();
}

/// The guest agrees to the connection from this port, however often with the same number, and answers a request.
fn is_served(wire: &UnixDatagram, port: u16) {
    let first = segments_until(wire, port, is_agreement).pop().unwrap().0;
    let request = segment(port, 1, first.wrapping_add(1), flag::ACK, b"GET / HTTP/1.0\r\n\r\n");
    wire.send(&request).unwrap();
    let segments = segments_until(wire, port, |(_, flags, said)| !said.is_empty() || flags & flag::RST != 0);
    assert!(segments.iter().all(|segment| !is_agreement(segment) || segment.0 == first), "{segments:?}");
    let (_, flags, said) = segments.last().unwrap();
    assert!(flags & flag::RST == 0 && said.starts_with(b"HTTP/1.1 200"), "{segments:?}");
}

on_both_engines! {
    /// Whoever has no answer in time asks again, and the answer may be on its way.
    async fn a_connection_that_is_asked_for_twice_is_one(host: Host) {
        let (guest, wire) = guest(&host, |interface| interface);
        guest.until_printed("ready on port 80");
        answered(&wire);
        // The socket of a connection that ends is used for the next but one.
        ask(&wire, 1001);
        segments_until(&wire, 1001, is_agreement);
        take_back(&wire, 1001);
        answered(&wire);
        (0..3).for_each(|_| ask(&wire, 1002));
        is_served(&wire, 1002);
        // The socket of one that is taken back before it was agreed on, too; the guest looks at all these at once.
        within(guest.vm.pause()).await.unwrap();
        [1003, 1004].iter().for_each(|port| ask(&wire, *port));
        take_back(&wire, 1003);
        ask(&wire, 1004);
        within(guest.vm.resume()).await.unwrap();
        is_served(&wire, 1004);
        within(guest.vm.stop()).await;
    }

    async fn a_guest_answers_over_a_socket_before_and_after_a_pause(host: Host) {
        let (guest, wire) = guest(&host, |interface| interface);
        guest.until_printed("ready on port 80");
        answered(&wire);
        within(guest.vm.pause()).await.unwrap();
        // What comes meanwhile waits at the host.
        wire.send(&question()).unwrap();
        within(guest.vm.resume()).await.unwrap();
        answered(&wire);
        within(guest.vm.stop()).await;
    }

    async fn a_guest_sends_from_its_own_addresses_only(host: Host) {
        let other = AntiSpoof { ipv4: Some(vec![[192, 0, 2, 77].into()]), ipv6: Some(vec![]) };
        let (guest, wire) = guest(&host, |interface| interface.anti_spoof(other));
        guest.until_printed("ready on port 80");
        wire.send(&question()).unwrap();
        common::eventually("the answer is dropped", || {
            guest.errors(ringlet_metrics::GuestErrorKind::BadRequest) > 0
        });
        wire.set_nonblocking(true).unwrap();
        let mut frame = [0; 2048];
        loop {
            match wire.recv(&mut frame) {
                Ok(len) => assert!(!is_answer(&frame[..len])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        within(guest.vm.stop()).await;
    }

    async fn a_link_goes_down_and_up_while_the_guest_runs(host: Host) {
        let (guest, wire) = guest(&host, |interface| interface);
        guest.until_printed("ready on port 80");
        answered(&wire);
        within(guest.vm.set_link("net0", false)).await.unwrap();
        // Orders are carried out one after the other: the device has heard of that one when it has paused.
        within(guest.vm.pause()).await.unwrap();
        within(guest.vm.resume()).await.unwrap();
        // Nothing is received: the question stays in the socket, and nobody answers it.
        wire.send(&question()).unwrap();
        within(guest.vm.pause()).await.unwrap();
        within(guest.vm.resume()).await.unwrap();
        wire.set_nonblocking(true).unwrap();
        assert_eq!(wire.recv(&mut [0; 2048]).unwrap_err().kind(), ErrorKind::WouldBlock);
        wire.set_nonblocking(false).unwrap();
        // That one is answered when it is up again.
        within(guest.vm.set_link("net0", true)).await.unwrap();
        until_answered(&wire);
        answered(&wire);
        let error = within(guest.vm.set_link("net1", true)).await.unwrap_err().to_string();
        assert!(error.contains("net1"), "{error}");
        within(guest.vm.stop()).await;
        assert!(within(guest.vm.set_link("net0", true)).await.is_err());
    }

    async fn a_guest_is_told_of_its_link_by_an_interrupt(host: Host) {
        let (guest, wire) = guest(&host, |interface| interface);
        guest.until_printed("ready on port 80");
        for flap in 1..=5 {
            answered(&wire);
            for (up, told) in [(false, "the link is down"), (true, "the link is up")] {
                within(guest.vm.set_link("net0", up)).await.unwrap();
                // Nothing comes but the change itself: the guest sleeps until it is told.
                common::eventually(told, || guest.printed().matches(told).count() == flap);
            }
        }
        // What is so already is no news.
        within(guest.vm.set_link("net0", true)).await.unwrap();
        within(guest.vm.pause()).await.unwrap();
        within(guest.vm.resume()).await.unwrap();
        answered(&wire);
        assert_eq!(guest.printed().matches("the link is").count(), 10, "{}", guest.printed());
        within(guest.vm.stop()).await;
    }

    async fn a_link_that_is_down_when_a_guest_starts_is_down_for_it(host: Host) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_read_timeout(Some(common::deadline())).unwrap();
        let interface = NetworkInterface::fds("net0", [theirs.as_raw_fd()]).mac(MacAddress(GUEST_MAC));
        let config = VmConfig::new("http").memory_mib(64).network_interface(interface).args(["ip=192.0.2.2/24"]);
        let guest = host.create_bundled(&config);
        within(guest.vm.set_link("net0", false)).await.unwrap();
        within(guest.vm.start()).await.unwrap();
        guest.until_printed("the link is down");
        within(guest.vm.set_link("net0", true)).await.unwrap();
        guest.until_printed("the link is up");
        answered(&ours);
        within(guest.vm.stop()).await;
    }

    async fn interrupts_of_used_buffers_cost_a_guest_no_exit(host: Host) {
        const MANY: f64 = 200.0;
        let (guest, wire) = guest(&host, |interface| interface);
        guest.until_printed("ready on port 80");
        answered(&wire);
        let exits = || -> u64 {
            let kinds = [ExitKind::MmioRead, ExitKind::MmioWrite, ExitKind::PioRead, ExitKind::PioWrite, ExitKind::IoapicEoi];
            kinds.map(|kind| guest.vm.metrics().exits.get(kind)).iter().sum()
        };
        let interrupts = || metric(&host, &["ringlet_device_interrupts_total"]);
        let (exits_before, interrupts_before) = (exits(), interrupts());
        // One after the other: the guest sleeps in between, or is about to.
        common::eventually("so many interrupts", || {
            answered(&wire);
            interrupts() - interrupts_before >= MANY
        });
        // One that the guest had no need of, since it looked at the queue at that moment, has it look at the device's
        // registers, three times. With each acknowledgement an exit, there would be as many as interrupts.
        let exits = exits() - exits_before;
        println!("{exits} exits");
        assert!((exits as f64) < MANY / 4.0, "{exits} exits for {MANY} interrupts");
        within(guest.vm.stop()).await;
    }

    async fn limits_of_an_interface_change_while_the_guest_runs(host: Host) {
        let (guest, wire) = guest(&host, |interface| interface);
        guest.until_printed("ready on port 80");
        answered(&wire);
        // One packet, and then none for an hour.
        let packets = |size| {
            let bucket = Bucket { size, one_time_burst: None, refill_time: 3_600_000 };
            RateLimiter { ops: Some(bucket), bandwidth: None }
        };
        within(guest.vm.set_net_rate_limiters("net0", packets(1), RateLimiter::default())).await.unwrap();
        answered(&wire);
        wire.send(&question()).unwrap();
        common::eventually("the next one waits", || waiting(&guest, "net0") == 1);
        wire.set_nonblocking(true).unwrap();
        assert_eq!(wire.recv(&mut [0; 2048]).unwrap_err().kind(), ErrorKind::WouldBlock);
        wire.set_nonblocking(false).unwrap();
        within(guest.vm.set_net_rate_limiters("net0", packets(0), packets(0))).await.unwrap();
        until_answered(&wire);
        within(guest.vm.stop()).await;
    }

    async fn sec_02_all_interfaces_of_a_vm_and_of_a_tenant_have_limits_together(host: Host) {
        let one = NetLimits { rx: NetRates { bps: None, pps: Some(1) }, ..NetLimits::default() };
        let tenant = |net| TenantConfig { name: "acme".into(), limits: TenantLimits { net, ..TenantLimits::default() } };
        let of_vm = LimitsConfig::default().net(one);
        let vm = guest_with(&host, |it| it, |config| config.limits(of_vm).tenant(tenant(NetLimits::default())));
        let other = guest_with(&host, |it| it, |config| config.tenant(tenant(NetLimits::default())));
        for (guest, wire) in [&vm, &other] {
            guest.until_printed("ready on port 80");
            answered(wire);
        }
        let flood = |wire: &UnixDatagram| (0..8).for_each(|_| drop(wire.send(&question())));
        flood(&vm.1);
        common::eventually("the VM's limit holds", || waiting(&vm.0, "vm.net") == 1);
        flood(&other.1);
        answered(&other.1);
        // The tenant's is for both.
        host.runtime.limit_tenant(&tenant(one)).unwrap();
        within(vm.0.vm.set_limits(LimitsConfig::default())).await.unwrap();
        flood(&vm.1);
        flood(&other.1);
        common::eventually("the tenant's limit holds", || {
            let text = host.runtime.registry().encode();
            text.contains(r#"ringlet_tenant_waiting_operations{tenant="acme",limiter="net"} 2"#)
        });
        host.runtime.limit_tenant(&tenant(NetLimits::default())).unwrap();
        for (guest, wire) in [&vm, &other] {
            answered(wire);
            within(guest.vm.stop()).await;
        }
    }

    async fn a_peer_that_goes_leaves_the_guest_running(host: Host) {
        let (guest, wire) = guest(&host, |interface| interface);
        guest.until_printed("ready on port 80");
        answered(&wire);
        drop(wire);
        within(guest.vm.pause()).await.unwrap();
        within(guest.vm.resume()).await.unwrap();
        within(guest.vm.stop()).await;
    }
}

#[test]
fn descriptors_are_taken_by_number_and_what_is_no_tap_and_no_socket_is_refused() {
    let file = tempfile::tempfile().unwrap();
    let host = Host::new(ringlet::EngineChoice::Epoll);
    let refused = |fds: Vec<i32>| {
        let config = VmConfig::new("http").network_interface(NetworkInterface::fds("net0", fds));
        host.runtime.create(&config, ringlet::Resources::default()).unwrap_err().to_string()
    };
    assert!(
        refused(vec![file.as_raw_fd()]).contains("not attached to a tap"),
        "{}",
        refused(vec![file.as_raw_fd()])
    );
    // Programs that are started later do not inherit what a VM was given.
    let (ours, _theirs) = UnixDatagram::pair().unwrap();
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::empty()).unwrap();
    let config = VmConfig::new("http").network_interface(NetworkInterface::fds("net0", [ours.as_raw_fd()]));
    host.runtime.create(&config, ringlet::Resources::default()).unwrap();
    assert_eq!(rustix::io::fcntl_getfd(&ours).unwrap(), rustix::io::FdFlags::CLOEXEC);
    assert!(refused(vec![999_999]).contains("999999"), "{}", refused(vec![999_999]));
}
