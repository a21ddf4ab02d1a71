//! Network interfaces on real KVM, on both engines: the bundled guest `http` behind a socket on which the test is the
//! network. Needs no privilege; taps are tested where they are, in `io/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use common::{Guest, Host, on_both_engines, within};
use ringlet::{AntiSpoof, MacAddress, NetworkInterface, VmConfig};

const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const GUEST: [u8; 4] = [192, 0, 2, 2];
const US: [u8; 4] = [192, 0, 2, 1];

/// The guest, and the wire to it: a datagram is a frame.
fn guest(host: &Host, change: impl FnOnce(NetworkInterface) -> NetworkInterface) -> (Guest, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_read_timeout(Some(common::deadline())).unwrap();
    let interface = NetworkInterface::fds("net0", [theirs.as_raw_fd()]).mac(MacAddress(GUEST_MAC));
    let config = VmConfig::new("http").memory_mib(64).network_interface(change(interface));
    let guest = host.bundled_with(config.args(["ip=192.0.2.2/24"]));
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

/// Asks until the guest answers.
fn answered(wire: &UnixDatagram) {
    wire.send(&question()).unwrap();
    let mut frame = [0; 2048];
    loop {
        let len = wire.recv(&mut frame).expect("the guest answers");
        if is_answer(&frame[..len]) {
            return;
        }
    }
}

on_both_engines! {
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
fn what_is_no_tap_and_no_socket_is_refused_by_its_number() {
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
    assert!(refused(vec![999_999]).contains("999999"), "{}", refused(vec![999_999]));
}
