//! A device's registers, counted, and what is done to them.

use core::sync::atomic::{AtomicU32, Ordering};

use ringlet_guest::virtio::{Slot, feature, register};
use ringlet_guest::{mmio, time};

use crate::arena::{Arena, QUEUES};
use crate::packet::SOCKET;
use crate::random::Random;

/// Accesses to devices so far, of all processors.
static ACCESSES: AtomicU32 = AtomicU32::new(0);

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// Reads of the status, until a reset is given up.
const PATIENCE: u32 = 100;
/// Features that depend on the type of the device (virtio 1.2, 6).
const DEVICE_FEATURES: u64 = (1 << 24) - 1;
/// Feature bit of no device and no transport.
const NO_FEATURE: u64 = 1 << 63;

pub(crate) fn accesses() -> u32 {
    ACCESSES.load(Ordering::Relaxed)
}

/// A device that is attacked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) slot: Slot,
    pub(crate) kind: u32,
    /// The guest's address, if it is a socket device.
    pub(crate) cid: u64,
}

/// How a device is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Care {
    /// As a driver does that wants nothing special.
    Plain,
    /// Rightly, with any of the features that are offered.
    Right,
    /// With features, sizes and addresses that may be nonsense.
    Any,
}

/// A queue as it was set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) index: u16,
    /// Its number of descriptors, if the device took what it was told.
    pub(crate) size: u16,
}

impl Device {
    /// The device at a place, if there is one.
    pub(crate) fn at(slot: Slot) -> Option<Self> {
        let kind = slot.device()?;
        let half = |offset| u64::from(slot.read(register::CONFIG + offset));
        let cid = if kind == SOCKET { half(0) | half(4) << 32 } else { 0 };
        Some(Self { slot, kind, cid })
    }

    pub(crate) fn read(self, offset: u64) -> u32 {
        ACCESSES.fetch_add(1, Ordering::Relaxed);
        self.slot.read(offset)
    }

    pub(crate) fn write(self, offset: u64, value: u32) {
        ACCESSES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: queues are only ever placed in the arena, or where no RAM is, and descriptors let the device write to
        // the arena only; see `arena`.
        unsafe { self.slot.write(offset, value) };
    }

    /// An access of any width, to any register; queue addresses are those of the arena, or where no RAM is.
    pub(crate) fn nonsense(self, arena: Arena, random: &mut Random) {
        let width = 1 << random.below(4);
        let aligned = random.below(8) > 0;
        let offset = random.below(0x200 - 7) & if aligned { !(width - 1) } else { !0 };
        let address = self.slot.address + offset;
        let lane = |offset: u64, random: &mut Random| u64::from(register_value(offset & !3, arena, random));
        let value = lane(offset, random) | lane(offset + 4, random) << 32;
        ACCESSES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `write`: `register_value` chooses addresses.
        unsafe {
            match (width, random.below(2)) {
                (1, 0) => mmio::write(address, value as u8),
                (2, 0) => mmio::write(address, value as u16),
                (4, 0) => mmio::write(address, value as u32),
                (_, 0) => mmio::write(address, value),
                (1, _) => _ = core::hint::black_box(mmio::read::<u8>(address)),
                (2, _) => _ = core::hint::black_box(mmio::read::<u16>(address)),
                (4, _) => _ = core::hint::black_box(mmio::read::<u32>(address)),
                (..) => _ = core::hint::black_box(mmio::read::<u64>(address)),
            }
        }
    }

    /// Resets the device; whether it says that it is done.
    pub(crate) fn reset(self) -> bool {
        self.write(register::STATUS, 0);
        (0..PATIENCE).any(|_| self.read(register::STATUS) == 0)
    }

    /// Negotiates; what it asked for.
    fn negotiate(self, care: Care, random: &mut Random) -> u64 {
        self.write(register::STATUS, ACKNOWLEDGE);
        self.write(register::STATUS, ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            self.write(register::DEVICE_FEATURES_SEL, half);
            offered |= u64::from(self.read(register::DEVICE_FEATURES)) << (32 * half);
        }
        let chance = random.next();
        let mut wanted = feature::VERSION_1 | feature::RING_RESET;
        if care != Care::Plain {
            wanted |= chance & (feature::INDIRECT_DESC | feature::EVENT_IDX | DEVICE_FEATURES);
        }
        if care == Care::Any {
            wanted |= random.next();
            wanted &= if random.below(16) == 0 { !feature::VERSION_1 } else { !0 };
        }
        let refused = if care == Care::Any && random.below(8) == 0 { NO_FEATURE } else { 0 };
        let taken = offered & wanted | refused;
        for half in 0..2 {
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, (taken >> (32 * half)) as u32);
        }
        self.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        taken
    }

    /// Sets up a queue in the arena. With [`Care::Any`] its size and addresses may be nonsense.
    pub(crate) fn set_up(self, index: u16, care: Care, arena: Arena, random: &mut Random) -> Option<Queue> {
        self.write(register::QUEUE_SEL, index.into());
        let max = self.read(register::QUEUE_NUM_MAX).min(256) as u16;
        if max == 0 {
            return None;
        }
        let odd = care == Care::Any && random.below(8) == 0;
        let size =
            if care == Care::Plain { max.min(64) } else { 1 << random.below(u64::from(max.ilog2()) + 1) };
        let told =
            if odd { [0, 3, 255, 257, 0x8000, 0xffff_ffff][random.below(6) as usize] } else { size.into() };
        self.write(register::QUEUE_NUM, told);
        let places = [arena.tables(index), arena.avail(index), arena.used(index)];
        let registers = [register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE];
        for (register, place) in registers.into_iter().zip(places) {
            let nonsense = care == Care::Any && random.below(32) == 0;
            let low = if nonsense { register_value(register, arena, random) } else { place as u32 };
            let high =
                if nonsense { register_value(register + 4, arena, random) } else { (place >> 32) as u32 };
            self.write(register, low);
            self.write(register + 4, high);
        }
        self.write(register::QUEUE_READY, 1);
        Some(Queue { index, size })
    }

    /// Negotiates, sets up queues, and sets the device going.
    pub(crate) fn start(
        self,
        care: Care,
        arena: Arena,
        random: &mut Random,
    ) -> (u64, [Option<Queue>; QUEUES as usize]) {
        let features = self.negotiate(care, random);
        let mut queues = [None; QUEUES as usize];
        (0..QUEUES).for_each(|queue| arena.clear(queue));
        for (index, queue) in (0..).zip(&mut queues) {
            *queue = self.set_up(index, care, arena, random);
            if queue.is_none() {
                break;
            }
        }
        self.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        (features, queues)
    }

    pub(crate) fn notify(self, queue: u16) {
        self.write(register::QUEUE_NOTIFY, queue.into());
    }

    /// Resets one queue; whether the device says that it is done.
    pub(crate) fn reset_queue(self, queue: u16) -> bool {
        self.write(register::QUEUE_SEL, queue.into());
        self.write(register::QUEUE_RESET, 1);
        (0..PATIENCE).any(|_| self.read(register::QUEUE_RESET) == 0 && self.read(register::QUEUE_READY) == 0)
    }
}

/// A value for the register at `offset`, which is harmless in every combination with other values from here.
fn register_value(offset: u64, arena: Arena, random: &mut Random) -> u32 {
    const NO_RAM: [u32; 3] = [0xd800_0000, 0xe000_0000, 0xffff_f000];
    const HIGH: [u32; 3] = [0, 0x1000, 0x1000_0000];
    let queue = random.below(QUEUES.into()) as u16;
    let place = match offset {
        register::QUEUE_DESC => arena.tables(queue),
        register::QUEUE_DRIVER => arena.avail(queue),
        register::QUEUE_DEVICE => arena.used(queue) + 4 * random.below(1024),
        0x84 | 0x94 | 0xa4 => return HIGH[random.below(3) as usize],
        register::QUEUE_SEL | register::QUEUE_NOTIFY if random.below(2) == 0 => return queue.into(),
        register::QUEUE_READY | register::QUEUE_RESET | register::DRIVER_FEATURES_SEL => {
            return random.below(3) as u32;
        }
        register::STATUS if random.below(4) > 0 => return random.below(16) as u32,
        _ => return random.value() as u32,
    };
    if random.below(4) == 0 { NO_RAM[random.below(3) as usize] } else { place as u32 }
}

/// Gives devices time.
pub(crate) fn pause(nanoseconds: u64) {
    time::spin(nanoseconds);
}
