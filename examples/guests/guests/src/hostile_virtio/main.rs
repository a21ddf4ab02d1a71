//! A guest that means harm to virtio devices: through their real registers and rings it offers every kind of malformed
//! chain, rewrites descriptors and headers while devices read them, resets devices and queues with requests in flight,
//! rings bells in storms, and makes nonsense accesses; sends frames and packets of sockets whose headers lie, and floods of
//! connections. Then it looks whether memory that it never offered, or that a
//! completed reset withdrew, has changed.
//!
//! Its argument is a seed. What it does follows from the seed (but for what races by intent), and is bounded: about
//! 2000 accesses and a few storms. It destroys what is on disks. It takes two processors if it gets them.

#![no_std]
#![no_main]

extern crate alloc;

mod arena;
mod chain;
mod device;
mod packet;
mod race;
#[path = "../random.rs"]
mod random;

use alloc::vec::Vec;

use ringlet_guest::virtio::{self, feature, register};
use ringlet_guest::{Context, println, time};

use arena::{Arena, Part, get};
use chain::{KINDS, Offer, Target};
use device::{Care, Device, Queue, accesses, pause};
use random::Random;

ringlet_guest::entry!(main);

/// No attack begins beyond so many accesses, those of storms and of the second processor not counted.
const ACCESSES: u32 = 1800;
/// Attacks on a device.
const ATTACKS: u32 = 12;
/// Nonsense accesses in a row.
const NONSENSE: u32 = 40;
/// Bells in a storm, and resets.
const BELLS: u32 = 2000;
const RESETS: u32 = 30;
/// Rows of connections in a flood.
const FLOODS: u32 = 16;
/// Rewritings by the first processor while a device works.
const REWRITES: u32 = 400;
/// Time after a reset in which nothing may be written, in nanoseconds.
const QUIET: u64 = 300_000;
const LAST_QUIET: u64 = 5_000_000;
/// How long a request may take that is right, when all is over.
const SERVICE: u64 = 2_000_000_000;
/// More RAM would have addresses that are taken to have none.
const RAM_MAX: u64 = 3 << 30;

const CHANGED: u32 = 1;
const USAGE: u32 = 2;
const NO_DEVICE: u32 = 3;

fn main(context: &Context) -> u32 {
    let mut arguments = context.args();
    let seed = arguments.next().and_then(|argument| argument.number());
    let (Some(seed), None) = (seed, arguments.next()) else {
        println!("usage: hostile-virtio SEED");
        return USAGE;
    };
    let arena = Arena::new(seed).filter(|_| context.memory().usable() <= RAM_MAX);
    let Some(arena) = arena else {
        println!("hostile-virtio: needs from 8 MiB to 3 GiB of memory");
        return USAGE;
    };
    let devices: Vec<Device> = virtio::slots(context).filter_map(Device::at).collect();
    if devices.is_empty() {
        println!("hostile-virtio: no virtio devices");
        return NO_DEVICE;
    }
    let racing = race::start(context);
    let mut attacker = Attacker { arena, random: Random::new(seed), racing, storms: 0, unreset: 0 };
    let harm = attacker.all(&devices);
    race::finish();
    if let Some(Harm { part, address, word, device }) = harm {
        let what = match part {
            Part::Canaries => "was never offered",
            Part::Withdrawn => "was withdrawn by a reset of the device",
            Part::Queue(_) => "was withdrawn by a reset of its queue",
        };
        println!("hostile-virtio {seed}: device {device} wrote {word:#018x} to {address:#x}, which {what}");
        return CHANGED;
    }
    let served = devices.iter().filter(|&&device| attacker.serves(device)).count();
    println!(
        "hostile-virtio {seed}: {} devices, {} accesses, {} storms, {} resets not done; memory is unharmed, {served} serve",
        devices.len(),
        accesses(),
        attacker.storms,
        attacker.unreset,
    );
    0
}

/// What a device wrote where it must not.
struct Harm {
    part: Part,
    address: u64,
    word: u64,
    device: u32,
}

struct Attacker {
    arena: Arena,
    random: Random,
    /// Whether a second processor is there to help.
    racing: bool,
    storms: u32,
    /// Resets that did not come to an end.
    unreset: u32,
}

impl Attacker {
    /// Attacks all devices in turn, until enough was done; the first harm.
    fn all(&mut self, devices: &[Device]) -> Option<Harm> {
        for round in 0..ATTACKS {
            for &device in devices {
                if accesses() - race::accesses() - self.storms * BELLS > ACCESSES {
                    return self.quiet(device, LAST_QUIET);
                }
                let harm = match round % 4 {
                    3 => self.confuse(device),
                    1 if device.kind == packet::SOCKET => self.flood(device),
                    _ => self.attack(device),
                };
                if harm.is_some() {
                    return harm;
                }
            }
        }
        devices.first().and_then(|&device| self.quiet(device, LAST_QUIET))
    }

    /// Looks whether a part of the memory has changed.
    fn look(&self, part: Part, device: Device) -> Option<Harm> {
        let (address, word) = self.arena.changed(part)?;
        Some(Harm { part, address, word, device: device.kind })
    }

    /// Resets the device, takes all memory back, and looks whether it stays as it is.
    fn quiet(&mut self, device: Device, nanoseconds: u64) -> Option<Harm> {
        if !device.reset() {
            self.unreset += 1;
            pause(nanoseconds);
            return self.look(Part::Canaries, device);
        }
        self.arena.fill(Part::Withdrawn);
        pause(nanoseconds);
        self.look(Part::Canaries, device).or_else(|| self.look(Part::Withdrawn, device))
    }

    /// Nonsense accesses, some with a queue that is set up.
    fn confuse(&mut self, device: Device) -> Option<Harm> {
        let (_, queues) = device.start(Care::Any, self.arena, &mut self.random);
        for queue in queues.into_iter().flatten() {
            let mut offer = Offer::new(self.target(device, queue));
            offer.requests(4, &mut self.random);
            offer.publish(0, &mut self.random);
        }
        for _ in 0..NONSENSE {
            device.nonsense(self.arena, &mut self.random);
        }
        if self.random.below(8) == 0 {
            (0..RESETS).for_each(|_| device.write(register::STATUS, 0));
        }
        self.quiet(device, QUIET)
    }

    fn target(&self, device: Device, queue: Queue) -> Target {
        let Device { kind, cid, .. } = device;
        Target { arena: self.arena, queue: queue.index, size: queue.size, device: kind, cid }
    }

    /// Offers a malformed chain among right ones, and does something bad while the device works on them.
    fn attack(&mut self, device: Device) -> Option<Harm> {
        let care = [Care::Any, Care::Right, Care::Right, Care::Plain][self.random.below(4) as usize];
        let (features, queues) = device.start(care, self.arena, &mut self.random);
        let present = queues.iter().flatten().count() as u64;
        let chosen = queues.get(self.random.below(present.max(1)) as usize).copied().flatten();
        let Some(queue) = chosen else { return self.quiet(device, QUIET) };
        let target = self.target(device, queue);
        let mut offer = Offer::new(target);
        let count = self.random.below(8) as u16;
        offer.requests(count, &mut self.random);
        let kind = self.random.below(KINDS + 4);
        let jump = if kind < KINDS { offer.wrong(kind, &mut self.random) } else { 0 };
        offer.publish(jump, &mut self.random);
        // Drawn in any case, so that a seed means the same with one processor.
        let (help, registers) = (self.random.below(2) == 0, self.random.below(2) as u32 * 20);
        let help_seed = self.random.next();
        if self.racing && help {
            race::begin(device, target, registers, help_seed);
        }
        device.notify(queue.index);
        let harm = self.while_it_works(device, features, target, care);
        race::end();
        harm.or_else(|| self.quiet(device, QUIET))
    }

    /// Asks for more and more connections, with data that there is no room for, and none of them ever closed.
    fn flood(&mut self, device: Device) -> Option<Harm> {
        let (_, queues) = device.start(Care::Plain, self.arena, &mut self.random);
        let Some(queue) = queues[usize::from(packet::TRANSMIT)] else { return self.quiet(device, QUIET) };
        let target = self.target(device, queue);
        let mut offer = Offer::new(target);
        let mut port = self.random.next() as u32;
        for _ in 0..FLOODS {
            let before = offer.count();
            port = offer.connections(port, &mut self.random);
            offer.publish(0, &mut self.random);
            device.notify(queue.index);
            // The places of these are used again: what the device has not taken by now, it may find changed.
            let start = time::now();
            while get::<u16>(self.arena.used(queue.index) + 2) == before && time::now() - start < QUIET {
                core::hint::spin_loop();
            }
        }
        self.quiet(device, QUIET)
    }

    /// Something bad while a device works.
    fn while_it_works(&mut self, device: Device, features: u64, target: Target, care: Care) -> Option<Harm> {
        match self.random.below(8) {
            // At once: the reset that follows meets requests in flight.
            0 => {}
            1 => pause(self.random.below(200_000)),
            2 | 3 => {
                for _ in 0..REWRITES {
                    target.rewrite(&mut self.random);
                    target.rewrite_header(&mut self.random);
                }
            }
            4 if self.storms < 3 => {
                self.storms += 1;
                (0..BELLS).for_each(|_| device.notify(target.queue));
            }
            5 => {
                device.write(register::QUEUE_SEL, target.queue.into());
                device.write(register::QUEUE_READY, 0);
                let _ = device.set_up(target.queue, Care::Any, self.arena, &mut self.random);
                device.notify(target.queue);
            }
            6 => {
                let status = self.random.value() as u32;
                device.write(register::STATUS, if status == 0 { 0x80 } else { status });
                device.notify(target.queue);
            }
            _ if features & feature::RING_RESET != 0 => {
                race::end();
                let part = Part::Queue(target.queue);
                if device.reset_queue(target.queue) && care != Care::Any {
                    self.arena.fill(part);
                    pause(QUIET);
                    return self.look(part, device);
                }
            }
            _ => device.notify(self.random.next() as u16),
        }
        None
    }

    /// Whether a device serves a request that is right, after all of that.
    fn serves(&mut self, device: Device) -> bool {
        if !device.reset() {
            return false;
        }
        let (_, queues) = device.start(Care::Plain, self.arena, &mut self.random);
        // The receiving queue of a console, or of a network device, has nothing to serve.
        let index = usize::from(matches!(device.kind, 1 | 3 | 19));
        let Some(queue) = queues[index] else { return false };
        let mut offer = Offer::new(self.target(device, queue));
        offer.requests(1, &mut self.random);
        offer.publish(0, &mut self.random);
        device.notify(queue.index);
        let start = time::now();
        let used = self.arena.used(queue.index) + 2;
        while get::<u16>(used) == 0 && time::now() - start < SERVICE {
            core::hint::spin_loop();
        }
        let served = get::<u16>(used) == 1;
        device.reset() && served
    }
}
