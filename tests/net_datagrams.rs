//! Datagrams that this machine's kernel sends as one packet (`UDP_SEGMENT`, udp(7)), to the guest `netbench` on real KVM, on
//! both engines, each test in a network of its own. Needs `ip`, and user name spaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::net::{IpAddr, UdpSocket};

use common::network::{GUEST, configured, counter, in_networks_of_their_own, tap};
use common::{Guest, Host, deadline, within};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

/// Where the guest is asked (examples/guests/guests/src/netbench/wire.rs).
const PORT: u16 = 5001;
/// Bytes of a datagram that come back as they were, but for the kind; of the others only how many they are
/// (tests/guest_net.rs looks at what is cut).
const HEADER: usize = 40;
const ECHO: u8 = 1;
const REPLY: u8 = 2;
/// Bytes of each datagram that are sent at once, and of the last.
const SIZES: [(usize, &[usize]); 5] = [
    (HEADER, &[HEADER; 64]),
    (64, &[64, 64, 64, 64, 64, 64, 41]),
    (1000, &[1000; 30]),
    (1400, &[1400, 1400, 40]),
    (1452, &[1452; 44]),
];

/// A datagram that is to come back, with bytes that no other one has.
fn echo(number: usize, len: usize) -> Vec<u8> {
    let pattern = (0..32).map(|at| (number * 37 + at * 11 + len) as u8);
    let mut bytes: Vec<u8> = b"rnb1".iter().copied().chain([ECHO, 0, 0, 0]).chain(pattern).collect();
    bytes.resize(len, 0);
    bytes
}

/// Packets to a guest, more than one of its queues has buffers.
const MANY: usize = 300;

/// Sends all sizes; all of them come back in order. How many packets the tap had for the guest, and how many
/// datagrams they were.
fn exchange(address: IpAddr) -> (u64, u64) {
    let from = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(from).unwrap();
    socket.connect((address, PORT)).unwrap();
    socket.set_read_timeout(Some(deadline())).unwrap();
    // The way is known from here on.
    assert_eq!(send(&socket, 0, &[HEADER]).len(), 1);
    let before = counter("tap0", "tx", "packets");
    let mut sent = 0;
    for (number, (size, sizes)) in SIZES.into_iter().enumerate() {
        setsockopt(&socket, UdpGsoSegment, &i32::try_from(size).unwrap()).unwrap();
        let lengths: Vec<_> = send(&socket, number * 100, sizes).iter().map(Vec::len).collect();
        assert_eq!(lengths, sizes, "{address}");
        sent += sizes.len() as u64;
    }
    (counter("tap0", "tx", "packets") - before, sent)
}

/// Sends more packets than the guest has buffers for: it has given back each buffer that it looked at.
fn many(address: IpAddr) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((address, PORT)).unwrap();
    socket.set_read_timeout(Some(deadline())).unwrap();
    setsockopt(&socket, UdpGsoSegment, &64).unwrap();
    (0..MANY).for_each(|number| assert_eq!(send(&socket, number, &[64; 3]).len(), 3));
}

/// Sends datagrams by one call, and takes the replies.
fn send(socket: &UdpSocket, number: usize, sizes: &[usize]) -> Vec<Vec<u8>> {
    let sent: Vec<_> = sizes.iter().enumerate().map(|(nth, len)| echo(number + nth, *len)).collect();
    socket.send(&sent.concat()).unwrap();
    let reply = |sent: &Vec<u8>| {
        let mut bytes = vec![0; 2000];
        let len = socket.recv(&mut bytes).unwrap();
        bytes.truncate(len);
        let expected = [&sent[..4], &[REPLY], &sent[5..HEADER]].concat();
        assert_eq!(bytes[..HEADER], expected, "the datagram of {} bytes, of {sizes:?}", sent.len());
        bytes
    };
    sent.iter().map(reply).collect()
}

fn guest(host: &Host, words: &[&str]) -> Guest {
    tap(1500);
    let args = [&["serve", "ip=192.0.2.2/24", "ip=fd00::2/64"], words].concat();
    let guest = host.bundled_with(configured("netbench", &args));
    guest.until_printed("ready on port 5001");
    guest
}

/// Whether this kernel's taps take datagrams as one packet (Linux 6.2).
fn taps_take_them_as_one() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_str().unwrap();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 2)
}

/// Whether the kernel cuts what is for a device that computes no checksums (Linux 6.11).
fn cuts_without_checksums() -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    setsockopt(&socket, UdpGsoSegment, &HEADER.try_into().unwrap()).unwrap();
    match socket.send_to(&[0; 2 * HEADER], (GUEST, PORT)) {
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::EIO as i32), "{error}");
            false
        }
        Ok(_) => true,
    }
}

in_networks_of_their_own! {
    async fn datagrams_that_are_sent_as_one_come_to_a_guest_as_they_were(host: Host) {
        let guest = guest(&host, &[]);
        let as_one = taps_take_them_as_one();
        let taken = ["guest-uso4", "guest-uso6"].map(|name| guest.printed().contains(name));
        assert_eq!(taken, [as_one; 2], "{}", guest.printed());
        if !as_one {
            eprintln!("NOT TESTED as one packet: this kernel's taps take none such (Linux 6.2)");
        }
        for address in [GUEST.into(), "fd00::2".parse().unwrap()] {
            let (packets, datagrams) = exchange(address);
            // What the kernel says of itself comes along.
            let most = if as_one { SIZES.len() as u64 + 10 } else { datagrams + 10 };
            assert!(packets <= most, "{address}: {packets} for {datagrams}");
            assert!(as_one || packets >= datagrams, "{address}: {packets} for {datagrams}");
        }
        many(GUEST.into());
        within(guest.vm.stop()).await;
    }

    async fn datagrams_come_one_by_one_to_a_guest_that_takes_them_so(host: Host) {
        let guest = guest(&host, &["offloads=off"]);
        assert!(!guest.printed().contains("guest-uso"), "{}", guest.printed());
        if cuts_without_checksums() {
            for address in [GUEST.into(), "fd00::2".parse().unwrap()] {
                let (packets, datagrams) = exchange(address);
                assert!(packets >= datagrams, "{address}: {packets} for {datagrams}");
            }
        } else {
            eprintln!("NOT TESTED: this kernel sends nothing as one to a tap without checksums (Linux 6.11)");
        }
        within(guest.vm.stop()).await;
    }
}
