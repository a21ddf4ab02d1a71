//! The second processor: rewrites descriptors and headers, and rings bells, while the first one attacks.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ringlet_guest::sync::SpinLock;
use ringlet_guest::virtio::register;
use ringlet_guest::{Context, smp};

use crate::chain::Target;
use crate::device::Device;
use crate::random::Random;

/// What the second processor does, if anything.
#[derive(Clone, Copy)]
struct Work {
    device: Device,
    target: Target,
    seed: u64,
    /// Accesses to registers that are left.
    registers: u32,
}

static WORK: SpinLock<Option<Work>> = SpinLock::new(None);
/// Accesses to registers that it made.
static ACCESSES: AtomicU32 = AtomicU32::new(0);
static ENDED: AtomicBool = AtomicBool::new(false);

/// Starts the second processor, if there is one.
pub(crate) fn start(context: &Context) -> bool {
    context.vcpus() > 1 && smp::start(work) > 1
}

/// Has it rewrite what `target` refers to, and make up to `registers` accesses to the device.
pub(crate) fn begin(device: Device, target: Target, registers: u32, seed: u64) {
    *WORK.lock() = Some(Work { device, target, seed, registers });
}

/// Has it stop; it does nothing any more when this returns.
pub(crate) fn end() {
    *WORK.lock() = None;
}

/// Accesses to registers that it made: how many, nobody can tell beforehand.
pub(crate) fn accesses() -> u32 {
    ACCESSES.load(Ordering::Relaxed)
}

/// Ends it for good.
pub(crate) fn finish() {
    end();
    ENDED.store(true, Ordering::Relaxed);
}

/// What a further processor does. Only the second one does anything.
fn work(index: usize) {
    while index == 1 && !ENDED.load(Ordering::Relaxed) {
        let mut work = WORK.lock();
        if let Some(work) = &mut *work {
            round(work);
        }
        drop(work);
        (0..100).for_each(|_| core::hint::spin_loop());
    }
}

/// Some rewriting under the lock, so that `end` waits for it.
fn round(work: &mut Work) {
    let mut random = Random::new(work.seed);
    for _ in 0..16 {
        work.target.rewrite(&mut random);
        work.target.rewrite_header(&mut random);
    }
    if work.registers > 0 && random.below(4) == 0 {
        work.registers -= 1;
        ACCESSES.fetch_add(1, Ordering::Relaxed);
        match random.below(8) {
            0 => work.device.write(register::STATUS, 0),
            1 => _ = work.device.read(register::STATUS),
            2 => work.device.write(register::INTERRUPT_ACK, 1 + random.below(3) as u32),
            _ => work.device.notify(work.target.queue),
        }
    }
    work.seed = random.next();
}
