//! All processors count together: each its share, all of them one total. Prints both.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ringlet_guest::{Context, MAX_CPUS, interrupts, lapic, println, smp};

ringlet_guest::entry!(main);

/// What each processor counts.
const SHARE: u64 = 250_000;
/// Tells processor 0 that another is done.
const DONE_VECTOR: u8 = 0x40;

static TOTAL: AtomicU64 = AtomicU64::new(0);
static COUNTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static FINISHED: AtomicUsize = AtomicUsize::new(0);
/// APIC id of processor 0.
static BOSS: AtomicUsize = AtomicUsize::new(0);

fn main(context: &Context) -> u32 {
    BOSS.store(lapic::id() as usize, Ordering::Relaxed);
    let started = smp::start(work);
    if started < context.vcpus().min(MAX_CPUS) {
        println!("only {started} of {} processors arrived", context.vcpus());
        return 1;
    }
    count(0);
    while FINISHED.load(Ordering::Acquire) < started {
        interrupts::wait();
    }
    for (index, count) in COUNTS.iter().enumerate().take(started) {
        println!("cpu {index}: {}", count.load(Ordering::Relaxed));
    }
    let total = TOTAL.load(Ordering::Relaxed);
    println!("total {total} on {started} cpus");
    u32::from(total != SHARE * started as u64)
}

/// What the further processors do.
fn work(index: usize) {
    count(index);
    lapic::send(BOSS.load(Ordering::Relaxed) as u32, DONE_VECTOR);
}

fn count(index: usize) {
    for _ in 0..SHARE {
        TOTAL.fetch_add(1, Ordering::Relaxed);
        COUNTS[index].fetch_add(1, Ordering::Relaxed);
    }
    FINISHED.fetch_add(1, Ordering::Release);
}
