//! The space of accesses, dealt out to the seeds: block `seed % 1000` of each of its two halves, in an order that
//! spreads neighbours over different seeds.

use core::hint::black_box;

use ringlet_guest::{mmio, port};

use crate::random::Random;

/// Seeds that cover the space.
const SEEDS: u64 = 1000;
/// Port, width (1, 2, 4), direction.
const PORT_SPACE: u64 = 65536 * 3 * 2;
/// Page from 3 to 4 GiB, width (1, 2, 4, 8).
const PAGE_SPACE: u64 = PAGES * 4;
const PAGES: u64 = 1 << 18;
const GAP: u64 = 0xc000_0000;
/// The pages' own scatter: odd, so that multiplying by it is a permutation.
const PAGE_STRIDE: u64 = 0x5_c6d3;
/// One more than a multiple of 6, for the same reason.
const PORT_STRIDE: u64 = 100_003;

const PORTS_PER_SEED: u64 = PORT_SPACE.div_ceil(SEEDS);
const PAGES_PER_SEED: u64 = PAGE_SPACE.div_ceil(SEEDS);

/// Accesses of [`walk`].
pub(crate) const ACCESSES: u32 = (PORTS_PER_SEED + PAGES_PER_SEED) as u32;

const _: () = assert!(PORT_STRIDE % 6 == 1 && PAGE_STRIDE % 2 == 1);

/// Makes the accesses of this seed, ports and pages mixed.
pub(crate) fn walk(seed: u64, random: &mut Random) {
    let block = seed % SEEDS;
    let (mut ports, mut pages) = (0, 0);
    while ports < PORTS_PER_SEED || pages < PAGES_PER_SEED {
        let turn = random.below(PORTS_PER_SEED + PAGES_PER_SEED);
        if pages == PAGES_PER_SEED || (turn < PORTS_PER_SEED && ports < PORTS_PER_SEED) {
            let index = (block * PORTS_PER_SEED + ports) % PORT_SPACE;
            access_port(index * PORT_STRIDE % PORT_SPACE, random);
            ports += 1;
        } else {
            let index = (block * PAGES_PER_SEED + pages) % PAGE_SPACE;
            access_page(index * PAGE_STRIDE % PAGE_SPACE, random);
            pages += 1;
        }
    }
}

fn access_port(combination: u64, random: &mut Random) {
    let number = (combination / 6) as u16;
    let value = random.value();
    match combination % 6 {
        0 => drop_value(port::inb(number)),
        1 => drop_value(port::inw(number)),
        2 => drop_value(port::inl(number)),
        3 => port::outb(number, value as u8),
        4 => port::outw(number, value as u16),
        _ => port::outl(number, value as u32),
    }
}

fn access_page(combination: u64, random: &mut Random) {
    let page = GAP + (combination >> 2 << 12);
    let width = 1 << (combination & 3);
    access_memory(page + offset(width, random), width, random);
}

/// An offset into a page: mostly aligned, often a low register, rarely across the page's end.
fn offset(width: u64, random: &mut Random) -> u64 {
    match random.below(16) {
        0 => 4096 - width.div_ceil(2),
        1 => random.below(4097 - width),
        2..8 => random.below(0x200 / width) * width,
        _ => random.below(4096 / width) * width,
    }
}

/// Reads or writes `width` bytes of a device. Writes to the local APIC's command register are left out: they could
/// reset this very processor, and the run would tell nothing more.
pub(crate) fn access_memory(address: u64, width: u64, random: &mut Random) {
    const COMMAND: core::ops::Range<u64> = 0xfee0_0300..0xfee0_0320;
    let touches_command = address < COMMAND.end && address + width > COMMAND.start;
    let value = random.value();
    let write = random.below(2) == 1 && !touches_command;
    // The last bytes below 4 GiB: what lies above is RAM, where an access would do harm to the guest itself.
    let address = address.min((1 << 32) - width);
    // SAFETY: no RAM lies from 3 to 4 GiB, and devices there write no memory that this guest uses.
    unsafe {
        match (width, write) {
            (1, true) => mmio::write(address, value as u8),
            (2, true) => mmio::write(address, value as u16),
            (4, true) => mmio::write(address, value as u32),
            (_, true) => mmio::write(address, value),
            (1, false) => drop_value(mmio::read::<u8>(address)),
            (2, false) => drop_value(mmio::read::<u16>(address)),
            (4, false) => drop_value(mmio::read::<u32>(address)),
            (_, false) => drop_value(mmio::read::<u64>(address)),
        }
    }
}

/// Keeps a read whose value nobody wants.
pub(crate) fn drop_value<T>(value: T) {
    black_box(value);
}
