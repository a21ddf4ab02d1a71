//! A guest that means harm: nonsense on every port and device page, in every width, and storms of interrupts.
//!
//! Its argument is a seed. A seed makes at most [`LIMIT`] accesses and always the same ones; the seeds 0 to 999
//! together make every combination of port, width and direction, and of device page (3 to 4 GiB) and width. Some
//! seeds end in a triple fault, most exit with 0. The ports that end a machine are a part of the space, so a seed may
//! also end there.

#![no_std]
#![no_main]

#[path = "../random.rs"]
mod random;
mod space;
mod storm;

use ringlet_guest::{Context, exit, port, println, serial};

use random::Random;

ringlet_guest::entry!(main);

/// Most accesses of a seed.
const LIMIT: u32 = 2000;

const _: () = assert!(space::ACCESSES + storm::ACCESSES_MAX + RESTORE <= LIMIT);

/// Port writes that make the console usable again.
const RESTORE: u32 = 4;

fn main(context: &Context) -> u32 {
    let Some(seed) = context.args().next().and_then(|argument| argument.number()) else {
        println!("usage: hostile SEED");
        return 2;
    };
    println!("hostile {seed}");
    let mut random = Random::new(seed);
    space::walk(seed, &mut random);
    match seed % 10 {
        1 => storm::timer(&mut random),
        3 => storm::interprocessor(&mut random),
        5 => storm::ioapic(&mut random),
        7 => exit::triple_fault(),
        _ => storm::devices(&mut random),
    }
    restore_console();
    println!("done");
    0
}

/// Undoes what random writes did to the serial port: no divisor latch, no interrupts, no loopback.
fn restore_console() {
    const BASE: u16 = 0x3f8;
    for (register, value) in [(3, 0x03), (1, 0), (2, 0), (4, 0x0b)] {
        port::outb(BASE + register, value);
    }
    serial::write_bytes(b"\n");
}
