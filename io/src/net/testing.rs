//! Helpers of the tests of networks: network namespaces of their own, frames, and guest RAM to put them in.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;
use crate::lease::{GuestRange, LeaseUse};
use crate::ram::{Backing, GuestRam};
use crate::testing::PATIENCE;

/// The guest's address on every link.
pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// The host's end of every link.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The guest's link address.
pub(super) const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A network namespace without anything but a loopback device; gone when nothing refers to it.
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    pub(super) fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map(|()| File::open("/proc/thread-self/ns/net").unwrap())
        });
        let file = made.join().unwrap();
        Self(file.expect("this test makes a network namespace: run it as root (CAP_SYS_ADMIN)").into())
    }

    /// Runs `body` on a thread in here.
    pub(super) fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                body()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` in here, with words that busybox knows too.
    pub(super) fn ip(&self, arguments: &str) -> String {
        self.enter(|| {
            let output = Command::new("ip").args(arguments.split_whitespace()).output();
            let output = output.expect("this test needs `ip`: run tests/setup (package iproute2)");
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ip {arguments}: {complaint}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// True if there is an interface of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.ip("link show").contains(&format!(" {name}:"))
    }

    pub(super) fn open(&self, name: &str, queue_pairs: u16) -> Tap {
        self.enter(|| Tap::open(name, queue_pairs)).expect("this test makes a tap")
    }

    /// A tap that is up, with the host's address on it.
    pub(super) fn link(&self, queue_pairs: u16) -> Tap {
        let tap = self.open("tap0", queue_pairs);
        self.ip("addr add 10.9.0.1/24 dev tap0");
        self.ip("link set dev tap0 up");
        tap
    }

    pub(super) fn udp(&self) -> UdpSocket {
        let socket = self.enter(|| UdpSocket::bind((HOST, 0)).unwrap());
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// Guest RAM, and a lease of all of it in pieces of odd sizes.
pub(super) struct Memory(pub(super) GuestRam);

const SIZE: u32 = 256 << 10;

impl Memory {
    pub(super) fn new() -> Self {
        Self(GuestRam::new(&[(0, SIZE.into())], Backing::Pages4K).unwrap())
    }

    /// Room for `len` bytes, in `pieces` pieces that do not touch each other.
    pub(super) fn room(&self, len: usize, pieces: usize) -> Lease {
        self.lease(len, pieces, LeaseUse::Target)
    }

    fn lease(&self, len: usize, pieces: usize, use_: LeaseUse) -> Lease {
        let ranges: Vec<_> = (0..pieces)
            .map(|index| (len * index / pieces, len * (index + 1) / pieces))
            .enumerate()
            .map(|(gap, (from, to))| GuestRange { gpa: (from + gap) as u64, len: (to - from) as u32 })
            .collect();
        self.0.lease(&ranges, use_).unwrap()
    }

    /// A frame in guest RAM, in `pieces` pieces.
    pub(super) fn frame(&self, bytes: &[u8], pieces: usize) -> Lease {
        let room = self.room(bytes.len(), pieces);
        room.copy_in(bytes, 0).unwrap();
        self.lease(bytes.len(), pieces, LeaseUse::Source)
    }

    /// The first `len` bytes of what is in a lease that [`Memory::room`] gave for `of` bytes.
    pub(super) fn bytes(&self, len: usize, of: usize, pieces: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.lease(of, pieces, LeaseUse::Source).copy_out(&mut bytes, 0).unwrap();
        bytes
    }
}

/// The next packet of a port; errors are those of the port.
pub(super) async fn next(port: &dyn NetPort, room: &Lease) -> io::Result<Received> {
    loop {
        if let Some(received) = port.receive(room)? {
            return Ok(received);
        }
        port.readable().await?;
    }
}

/// The next packet that carries UDP over IPv4 to `to`, header and all. Others (the kernel greets every network) are
/// passed over.
pub(super) async fn next_udp(port: &dyn NetPort, memory: &Memory, to: u16) -> Vec<u8> {
    let (len, pieces) = (MAX_PACKET, 7);
    let room = memory.room(len, pieces);
    loop {
        if let Received::Packet(count) = next(port, &room).await.unwrap() {
            let packet = memory.bytes(count, len, pieces);
            if udp_destination(&packet) == Some(to) {
                return packet;
            }
        }
    }
}

/// To which UDP port a packet goes.
pub(super) fn udp_destination(packet: &[u8]) -> Option<u16> {
    let frame = &packet[HEADER..];
    let is_udp = frame.len() >= 42 && frame[12..14] == [8, 0] && frame[14] == 0x45 && frame[23] == 17;
    is_udp.then(|| u16::from_be_bytes([frame[36], frame[37]]))
}

/// A frame from the guest to the host's UDP port, with `bytes`; its UDP checksum is left out (RFC 768).
pub(super) fn udp_frame(to_mac: [u8; 6], to: u16, bytes: &[u8]) -> Vec<u8> {
    let udp = 8 + bytes.len();
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&((20 + udp) as u16).to_be_bytes());
    ip.extend(GUEST.octets());
    ip.extend(HOST.octets());
    let sum = !sum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [to_mac.as_slice(), &GUEST_MAC, &[8, 0], &ip].concat();
    for field in [9u16, to, udp as u16, 0] {
        frame.extend(field.to_be_bytes());
    }
    frame.extend(bytes);
    frame
}

/// The Internet checksum's sum, not complemented (RFC 1071).
pub(super) fn sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| low.into()));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

/// All that a stream gives until its end.
pub(super) fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}
