//! A driver that changes everything while the device looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringlet_io::{EngineKind, GuestRam};

use super::{Bench, MakeSubject};
use crate::testing::{Descriptor, DriverQueue, Rig};
use crate::virtio::spec::{descriptor, register};

/// How long a race runs.
const RACE: Duration = Duration::from_millis(300);
/// Memory that the racing driver offers, from [`Rig::DATA`] on.
const OFFERED: u64 = 0x8_0000;

/// A small generator, so that a failure can be repeated (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }
}

/// Fills memory that nobody offers, and checks it.
struct Canary {
    ram: GuestRam,
    ranges: Vec<(u64, u64)>,
}

impl Canary {
    const BYTE: u8 = 0x5A;

    fn plant(ram: &GuestRam) -> Self {
        let ranges = vec![(0, Rig::RINGS), (Rig::DATA + OFFERED, 0x10_0000), (Rig::HIGH, Rig::BORDER)];
        for (gpa, len) in &ranges {
            ram.write(*gpa, &vec![Self::BYTE; *len as usize]).unwrap();
        }
        Self { ram: ram.clone(), ranges }
    }

    fn check(&self) {
        for (gpa, len) in &self.ranges {
            let mut bytes = vec![0; *len as usize];
            self.ram.read(*gpa, &mut bytes).unwrap();
            let touched = bytes.iter().position(|byte| *byte != Self::BYTE);
            assert_eq!(touched.map(|at| gpa + at as u64), None, "memory that nobody offered was written");
        }
    }
}

/// Rewrites descriptors (only ever to memory that is offered, or to nonsense outside RAM) and the bytes of
/// requests, until told to stop.
fn rewrite(queue: &DriverQueue, seed: u64, stop: &AtomicBool) {
    let mut dice = Dice(seed);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..64 {
            let index = dice.below(queue.size.into()) as u16;
            let gpa = match dice.below(16) {
                0 => dice.roll() | 1 << 40,
                _ => Rig::DATA + dice.below(OFFERED - 0x1_0000),
            };
            let descriptor = Descriptor {
                gpa,
                len: dice.below(0x1_0000) as u32,
                flags: (dice.roll() & u64::from(descriptor::NEXT | descriptor::WRITE)) as u16,
                next: dice.below(u64::from(queue.size) + 1) as u16,
            };
            queue.write(index, descriptor);
            let header = Rig::DATA + dice.below(16) * 0x1_0000 % OFFERED + dice.below(64);
            let _ = queue.ram.write(header, &dice.roll().to_le_bytes());
        }
    }
}

/// Descriptors and headers are copied once: whatever the driver makes of them meanwhile, nothing but what it offers
/// is written, and the device can be reset.
pub fn sec_11_a_racing_driver_reaches_nothing_that_it_did_not_offer(
    engine: EngineKind,
    subject: MakeSubject,
) {
    let bench = Bench::new(engine, subject);
    let canary = Canary::plant(&bench.rig.ram);
    let end = Instant::now() + RACE;
    let mut rounds = 0u64;
    while Instant::now() < end {
        let mut queue = bench.up();
        let stop = Arc::new(AtomicBool::new(false));
        let racer = {
            let (queue, stop) = (queue.clone(), Arc::clone(&stop));
            thread::spawn(move || rewrite(&queue, 0x9E37_79B9_7F4A_7C15 ^ rounds, &stop))
        };
        for n in 0..256u64 {
            if n < 8 {
                let _ = bench.ask(&mut queue, n % 4);
            } else {
                queue.offer((n % u64::from(queue.size)) as u16);
                bench.rig.ring(queue.index);
            }
        }
        bench.rig.settle();
        bench.rig.write(register::STATUS, 0);
        stop.store(true, Ordering::Relaxed);
        racer.join().unwrap();
        bench.assert_memory_rests();
        rounds += 1;
    }
    canary.check();
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
}

/// Resets while another vCPU keeps the device busy: after each, memory rests.
pub fn sec_08_resets_under_load_leave_memory_alone(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let end = Instant::now() + RACE;
    while Instant::now() < end {
        let mut queue = bench.up();
        let stop = Arc::new(AtomicBool::new(false));
        let bell = bench.rig.transport.doorbells()[usize::from(queue.index)].clone();
        let ringer = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    bell.ring();
                }
            })
        };
        for n in 0..4 {
            let _ = bench.ask(&mut queue, n);
        }
        bench.rig.write(register::STATUS, 0);
        bench.assert_memory_rests();
        stop.store(true, Ordering::Relaxed);
        ringer.join().unwrap();
    }
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
}
