//! What requests say: the headers of disks, of network packets and of sockets, right and wrong.

use crate::arena::put;
use crate::chain::{Target, request, sector};
use crate::random::Random;

/// Device types (virtio 1.2, 5).
const NETWORK: u32 = 1;
const DISK: u32 = 2;
const CONSOLE: u32 = 3;
pub(crate) const SOCKET: u32 = 19;

/// The queue of what goes out, of network and socket devices.
pub(crate) const TRANSMIT: u16 = 1;
/// The network's queue of commands.
const CONTROL: u16 = 2;

/// Which descriptors a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One that the device writes.
    Written,
    /// One that it reads.
    Read,
    /// A header and data that it reads.
    Packet,
    /// A header that it reads, data and a status that it writes.
    Both,
}

/// What devices of this type take on this queue.
pub(crate) fn shape(device: u32, queue: u16) -> Shape {
    match (device, queue) {
        (NETWORK | SOCKET, TRANSMIT) => Shape::Packet,
        (DISK, _) | (NETWORK, CONTROL) => Shape::Both,
        (CONSOLE, queue) if queue % 2 == 1 => Shape::Read,
        _ => Shape::Written,
    }
}

/// Writes a header to `address` that is followed by `payload` bytes; its length. Mostly it makes sense.
pub(crate) fn fill(target: &Target, address: u64, payload: u32, random: &mut Random) -> u32 {
    match (target.device, target.queue) {
        (NETWORK, TRANSMIT) => network(address, payload, random),
        (NETWORK, CONTROL) => {
            // Class and command (virtio 1.2, 5.1.6.5), and the device's own sense of the rest.
            put(address, random.below(6) as u8);
            put(address + 1, random.below(4) as u8);
            (2..16).for_each(|offset| put(address + offset, random.value() as u8));
            2 + random.below(9) as u32
        }
        (SOCKET, TRANSMIT) => {
            let port = random.below(16) as u32;
            socket(target, address, port, payload, random);
            SOCKET_HEADER
        }
        _ => {
            put(address, if random.below(4) == 0 { request(random) } else { 0 });
            put(address + 4, 0_u32);
            put(address + 8, if random.below(4) == 0 { sector(random) } else { random.below(64) });
            16
        }
    }
}

/// Rewrites a part of a header while the device may look at it.
pub(crate) fn rewrite(target: &Target, address: u64, random: &mut Random) {
    match (target.device, target.queue) {
        (SOCKET, TRANSMIT) => field(target, address, random.below(10), random),
        (NETWORK, TRANSMIT) => put(address + random.below(12), random.value() as u8),
        _ if random.below(2) == 0 => put(address, request(random)),
        _ => put(address + 8, sector(random)),
    }
}

/// Bytes of the header of network packets (virtio 1.2, 5.1.6).
const NETWORK_HEADER: u32 = 12;

/// A header without offloads, or with ones that lie about the packet behind it.
fn network(address: u64, payload: u32, random: &mut Random) -> u32 {
    (0..16).for_each(|offset| put(address + offset, 0_u8));
    if random.below(2) == 0 {
        return NETWORK_HEADER;
    }
    let half = |random: &mut Random| match random.below(4) {
        0 => random.value() as u16,
        1 => u16::MAX - random.below(4) as u16,
        2 => payload as u16,
        _ => random.below(128) as u16,
    };
    put(address, random.below(8) as u8);
    put(address + 1, [0, 1, 3, 4, 5, 0x81, random.next() as u8][random.below(7) as usize]);
    for offset in [2, 4, 6, 8, 10] {
        put(address + offset, half(random));
    }
    NETWORK_HEADER
}

/// Bytes of the header of a socket's packets (virtio 1.2, 5.10.6).
const SOCKET_HEADER: u32 = 44;
const HOST: u64 = 2;
/// A port of the host where somebody may listen.
const LISTENED: u32 = 1024;
const REQUEST: u16 = 1;
const DATA: u16 = 5;

/// A packet of the stream from the guest's `port`, in which any field may be wrong.
fn socket(target: &Target, address: u64, port: u32, payload: u32, random: &mut Random) {
    let op = if random.below(2) == 0 { DATA } else { random.below(9) as u16 };
    right(target, address, port, if op == DATA { payload } else { 0 }, op);
    if random.below(2) == 0 {
        field(target, address, random.below(10), random);
    }
}

/// A request for a connection, or data of the one before, with credit that is given and taken back.
pub(crate) fn connection(target: &Target, address: u64, port: u32, payload: u32, random: &mut Random) -> u32 {
    if random.below(3) == 0 {
        right(target, address, port.wrapping_sub(1), payload, DATA);
        if random.below(2) == 0 {
            field(target, address, 8 + random.below(2), random);
        }
    } else {
        right(target, address, port, 0, REQUEST);
    }
    SOCKET_HEADER
}

/// A packet that is right, as far as a single one can be.
fn right(target: &Target, address: u64, port: u32, len: u32, op: u16) {
    put(address, target.cid);
    put(address + 8, HOST);
    put(address + 16, port);
    put(address + 20, LISTENED);
    put(address + 24, len);
    put(address + 28, 1_u16);
    put(address + 30, op);
    put(address + 32, 0_u32);
    put(address + 36, 64_u32 << 10);
    put(address + 40, 0_u32);
}

/// Makes one of the ten fields another.
fn field(target: &Target, address: u64, which: u64, random: &mut Random) {
    let word = |random: &mut Random| match random.below(4) {
        0 => random.value() as u32,
        1 => u32::MAX - random.below(64) as u32,
        2 => (random.below(8) as u32) << 14,
        _ => random.below(64) as u32,
    };
    match which {
        0 => put(address, [target.cid, target.cid + 1, HOST, random.value()][random.below(4) as usize]),
        1 => put(address + 8, [HOST, target.cid, 0, 1, random.value()][random.below(5) as usize]),
        2 => put(address + 16, word(random)),
        3 => put(address + 20, if random.below(2) == 0 { LISTENED } else { word(random) }),
        4 => put(address + 24, word(random)),
        5 => put(address + 28, random.below(4) as u16),
        6 => put(address + 30, random.below(10) as u16),
        7 => put(address + 32, word(random)),
        8 => put(address + 36, word(random)),
        _ => put(address + 40, word(random)),
    }
}
