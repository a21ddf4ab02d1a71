//! Descriptors, and every way to get them wrong.
//!
//! What a descriptor may say depends on its place in the tables, so that a descriptor that is rewritten while a device
//! reads it is harmless in any mixture of old and new: even places may let the device write (data pages, or no RAM),
//! of the odd ones every second may be indirect (tables, or no RAM) and the others are only read (anything).

use crate::arena::{Arena, get, put};
use crate::packet::{self, Shape};
use crate::random::Random;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// Flags that mean nothing.
const UNKNOWN: u16 = 0xfff8;

/// No machine that this guest runs on has RAM there: between 3 and 4 GiB, and far up. Nor are there interrupt
/// controllers: QEMU lets devices write to those, which tells nothing but ends the guest.
const NO_RAM: [u64; 6] =
    [0xd800_0000, 0xe000_0000, 0xffff_f000, 0x1000_0000_0000, 0x1000_0000_0000_0000, u64::MAX - 0xfff];
/// With any address that has RAM this ends beyond RAM.
const HUGE: u32 = 0xffff_f000;
/// Bytes of a descriptor.
const SIZE: u64 = 16;
/// First place of an indirect table that holds a whole request: its entries 0, 1 and 3 are read, written, written.
const INDIRECT_PLACE: u16 = 257;
/// Ways to get a chain wrong.
pub(crate) const KINDS: u64 = 22;
/// Descriptors of a long chain, all of places that are only read: more than most queues have.
const LONG: u16 = 190;
/// So many of these are more than 4 GiB, though each is in RAM where there is that much.
const LARGE: u32 = 32 << 20;

/// Descriptor types, by their place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Written,
    Read,
    Indirect,
}

fn class(place: u16) -> Class {
    match place % 4 {
        1 => Class::Read,
        3 => Class::Indirect,
        _ => Class::Written,
    }
}

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// The queue that chains are made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) arena: Arena,
    pub(crate) queue: u16,
    /// Descriptors of the queue, 1 to 256.
    pub(crate) size: u16,
    /// Device type.
    pub(crate) device: u32,
    /// The guest's address, if it is a socket device.
    pub(crate) cid: u64,
}

impl Target {
    /// Address of a descriptor, counted over all tables of the queue.
    fn place(&self, place: u16) -> u64 {
        self.arena.tables(self.queue) + u64::from(place) * SIZE
    }

    pub(crate) fn set(&self, place: u16, descriptor: Descriptor) {
        let address = self.place(place);
        put(address, descriptor.address);
        put(address + 8, descriptor.len);
        put(address + 12, descriptor.flags);
        put(address + 14, descriptor.next);
    }

    fn data(&self, random: &mut Random) -> u64 {
        self.arena.data(self.queue, random.next()) + random.below(3 << 12)
    }

    /// Anything that a place may hold.
    pub(crate) fn anything(&self, place: u16, random: &mut Random) -> Descriptor {
        let no_ram = random.below(4) == 0;
        let outside = NO_RAM[random.below(NO_RAM.len() as u64) as usize];
        let class = class(place);
        let address = match class {
            _ if no_ram => outside,
            Class::Written => self.data(random),
            Class::Indirect => self.place(256 + random.below(511) as u16),
            Class::Read => self.readable(random),
        };
        let may = match class {
            Class::Written => WRITE,
            Class::Indirect => INDIRECT,
            Class::Read => 0,
        };
        let unknown = if random.below(16) == 0 { UNKNOWN } else { 0 };
        let flags = random.next() as u16 & NEXT | if random.below(8) > 0 { may } else { 0 } | unknown;
        Descriptor { address, len: length(class, random), flags, next: self.anywhere(random) }
    }

    /// An address that a device may read.
    fn readable(&self, random: &mut Random) -> u64 {
        match random.below(5) {
            0 => self.arena.canary(random.next()),
            1 => self.data(random),
            2 => self.place(random.below(512) as u16),
            3 => random.below(0x10_0000),
            _ => self.arena.headers(self.queue) + random.below(2048),
        }
    }

    /// A descriptor number, mostly one that there is.
    fn anywhere(&self, random: &mut Random) -> u16 {
        if random.below(8) == 0 { random.next() as u16 } else { random.below(self.size.into()) as u16 }
    }

    /// Rewrites one field of one descriptor.
    pub(crate) fn rewrite(&self, random: &mut Random) {
        let place = random.below(512) as u16 % if random.below(2) == 0 { self.size } else { 512 };
        let descriptor = self.anything(place, random);
        let address = self.place(place);
        match random.below(4) {
            0 => put(address, descriptor.address),
            1 => put(address + 8, descriptor.len),
            2 => put(address + 12, descriptor.flags),
            _ => put(address + 14, descriptor.next),
        }
    }

    /// Rewrites a header: another request, another sector.
    pub(crate) fn rewrite_header(&self, random: &mut Random) {
        packet::rewrite(self, self.arena.headers(self.queue) + random.below(32) * 64, random);
    }

    /// First and last place of a request in the places from `first` on.
    fn ends(&self, first: u16) -> (u16, u16) {
        match packet::shape(self.device, self.queue) {
            Shape::Written => (first, first),
            Shape::Read => (first + 1, first + 1),
            Shape::Packet => (first + 1, first + 5),
            Shape::Both => (first + 1, first + 4),
        }
    }

    /// Puts a request into the places from `first` (a multiple of 8) on; returns its head. It is right for devices of
    /// this type, but what it asks for may not be.
    fn request(&self, first: u16, random: &mut Random) -> u16 {
        let header = self.header(first);
        let payload = 1 + random.below(1024) as u32;
        let header_len = packet::fill(self, header, payload, random);
        self.place_request(first, header_len, payload, random)
    }

    /// The header of the request in the places from `first` on.
    fn header(&self, first: u16) -> u64 {
        self.arena.headers(self.queue) + u64::from(first / 8 % 32) * 64
    }

    fn place_request(&self, first: u16, header_len: u32, payload: u32, random: &mut Random) -> u16 {
        let header = self.header(first);
        let data = self.arena.data(self.queue, random.next()) + random.below(16) * 512;
        let read =
            |address, len, next| Descriptor { address, len, flags: if next > 0 { NEXT } else { 0 }, next };
        let written = |address, len, next| Descriptor {
            address,
            len,
            flags: WRITE | if next > 0 { NEXT } else { 0 },
            next,
        };
        match packet::shape(self.device, self.queue) {
            Shape::Written => self.set(first, written(data, 512, 0)),
            Shape::Read => self.set(first + 1, read(header, header_len, 0)),
            Shape::Packet => {
                self.set(first + 1, read(header, header_len, first + 5));
                self.set(first + 5, read(data, payload, 0));
            }
            Shape::Both => {
                self.set(first + 1, read(header, header_len, first + 2));
                self.set(first + 2, written(data, 512 * (1 + random.below(7) as u32), first + 4));
                self.set(first + 4, written(data + 4096, 1, 0));
            }
        }
        self.ends(first).0
    }
}

/// A length that suits a class, or does not.
fn length(class: Class, random: &mut Random) -> u32 {
    match (random.below(8), class) {
        (0, _) => 0,
        (1, _) => HUGE,
        (2, _) => 1 + random.below(15) as u32,
        (_, Class::Indirect) => 16 * (1 + random.below(255) as u32),
        (3, _) => 4096,
        _ => 512,
    }
}

/// A type of request: those of a disk, and none.
pub(crate) fn request(random: &mut Random) -> u32 {
    const KNOWN: [u32; 9] = [0, 1, 4, 8, 10, 11, 13, 14, 0x8000_0000];
    KNOWN.get(random.below(12) as usize).copied().unwrap_or(random.next() as u32)
}

/// A sector, mostly beyond any disk.
pub(crate) fn sector(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.below(1 << 16),
        1 => u64::MAX - random.below(16),
        2 => (1 << 55) - random.below(3),
        _ => random.value(),
    }
}

/// What is offered: heads, and the index that follows from them or does not.
#[derive(Debug)]
pub(crate) struct Offer {
    target: Target,
    index: u16,
}

impl Offer {
    pub(crate) fn new(target: Target) -> Self {
        Self { target, index: 0 }
    }

    pub(crate) fn push(&mut self, head: u16) {
        let entry =
            self.target.arena.avail(self.target.queue) + 4 + 2 * u64::from(self.index % self.target.size);
        put(entry, head);
        self.index = self.index.wrapping_add(1);
    }

    /// Lets the device see what was pushed, `further` more, and no interrupts or all of them.
    pub(crate) fn publish(&mut self, further: u16, random: &mut Random) {
        let ring = self.target.arena.avail(self.target.queue);
        put(ring, random.below(2) as u16);
        put(ring + 4 + 2 * u64::from(self.target.size), random.below(4) as u16);
        put(ring + 2, self.index.wrapping_add(further));
    }

    /// Offers `count` requests that are right.
    pub(crate) fn requests(&mut self, count: u16, random: &mut Random) {
        for number in 0..count.min(self.target.size / 8) {
            let head = self.target.request(number * 8, random);
            self.push(head);
        }
    }

    /// How many were offered.
    pub(crate) fn count(&self) -> u16 {
        self.index
    }

    /// Offers as many requests for connections as there is room for, from the guest's ports `port` on, and data of which
    /// there is none. Returns the port after the last.
    pub(crate) fn connections(&mut self, mut port: u32, random: &mut Random) -> u32 {
        for number in 0..self.target.size / 8 {
            let first = number * 8;
            let payload = 1 + random.below(4096) as u32;
            let header_len =
                packet::connection(&self.target, self.target.header(first), port, payload, random);
            let head = self.target.place_request(first, header_len, payload, random);
            self.push(head);
            port = port.wrapping_add(1);
        }
        port
    }

    /// Offers a chain that is wrong in the way `kind`; returns how far the index is to jump beyond it.
    pub(crate) fn wrong(&mut self, kind: u64, random: &mut Random) -> u16 {
        let target = self.target;
        // The last eight places, or whatever a small queue has.
        let first = target.size.saturating_sub(8) / 8 * 8;
        let head = target.request(first, random);
        let (_, last) = target.ends(first);
        let change = |place: u16, change: &dyn Fn(&mut Descriptor)| {
            let address = target.place(place);
            let mut descriptor = Descriptor {
                address: get(address),
                len: get(address + 8),
                flags: get(address + 12),
                next: get(address + 14),
            };
            change(&mut descriptor);
            target.set(place, descriptor);
        };
        let outside = NO_RAM[random.below(NO_RAM.len() as u64) as usize];
        match kind {
            0 => change(last, &|end| (end.flags, end.next) = (end.flags | NEXT, head)),
            1 => change(last, &|end| (end.flags, end.next) = (end.flags | NEXT, last)),
            2 => change(head, &|start| (start.flags, start.next) = (start.flags | NEXT, target.size)),
            3 => change(head, &|start| (start.flags, start.next) = (start.flags | NEXT, u16::MAX)),
            4 => change(last, &|end| end.len = 0),
            5 => change(last, &|end| end.address = outside),
            6 => change(head, &|start| start.address = outside),
            7 => change(last, &|end| end.len = HUGE),
            8 => change(head, &|start| start.flags |= UNKNOWN),
            9 => {
                change(last, &|end| (end.flags, end.next) = (end.flags | NEXT, first + 1));
                change(first + 1, &|header| header.flags &= !NEXT);
                self.push(last);
                return 0;
            }
            10 => change(head, &|start| start.len = 1 + start.len % 15),
            11 => change(head, &|start| start.flags &= !NEXT),
            12..=15 => return self.indirect(kind, random),
            20 | 21 => return self.long(if kind == 20 { 16 } else { LARGE }),
            16 => self.push(head),
            17 => return [target.size, target.size + 1, 0x8000, u16::MAX][random.below(4) as usize],
            18 => {
                self.push(target.size | random.next() as u16);
                return 0;
            }
            _ => {
                for place in 0..512 {
                    target.set(place, target.anything(place, random));
                }
                for _ in 0..random.below(8) {
                    let head = target.anywhere(random);
                    self.push(head);
                }
            }
        }
        self.push(head);
        0
    }

    /// Offers an indirect chain: a right one, with more behind it, nested, or with a table that is none.
    fn indirect(&mut self, kind: u64, random: &mut Random) -> u16 {
        let target = self.target;
        let head = 3 % target.size;
        let header = target.arena.headers(target.queue);
        let data = target.arena.data(target.queue, random.next());
        let entries = [
            Descriptor { address: header, len: 16, flags: NEXT, next: 1 },
            Descriptor { address: data, len: 512, flags: NEXT | WRITE, next: if kind == 14 { 2 } else { 3 } },
            Descriptor { address: target.place(INDIRECT_PLACE), len: 64, flags: INDIRECT, next: 0 },
            Descriptor { address: data + 4096, len: 1, flags: WRITE, next: 0 },
        ];
        for (place, entry) in (INDIRECT_PLACE..).zip(entries) {
            target.set(place, entry);
        }
        let len = if kind == 15 { [0, 1, 24, 4097, HUGE][random.below(5) as usize] } else { 64 };
        let more = if kind == 13 { NEXT } else { 0 };
        // In a queue of less than four places this one may be read as something else: then it says no more than that.
        if class(head) == Class::Indirect {
            let address = target.place(INDIRECT_PLACE);
            target.set(head, Descriptor { address, len, flags: INDIRECT | more, next: 1 });
        }
        self.push(head);
        0
    }

    /// Offers an indirect chain of very many buffers of `len` bytes.
    fn long(&mut self, len: u32) -> u16 {
        let target = self.target;
        for number in 0..LONG {
            let last = number + 1 == LONG;
            let (flags, next) = if last { (0, 0) } else { (NEXT, 4 * (number + 1)) };
            let address = if len == LARGE { 1 << 20 } else { target.arena.headers(target.queue) };
            target.set(INDIRECT_PLACE + 4 * number, Descriptor { address, len, flags, next });
        }
        let head = 3 % target.size;
        if class(head) == Class::Indirect {
            let address = target.place(INDIRECT_PLACE);
            let len = SIZE as u32 * (4 * u32::from(LONG - 1) + 1);
            target.set(head, Descriptor { address, len, flags: INDIRECT, next: 0 });
        }
        self.push(head);
        0
    }
}
