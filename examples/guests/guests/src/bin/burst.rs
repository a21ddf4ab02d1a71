//! Computes and sleeps in turn, on all processors: `burst ON OFF`, in microseconds. With OFF 0 it never sleeps.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};

use ringlet_guest::{Context, println, ready, smp, time};

ringlet_guest::entry!(main);

const MICROSECOND: u64 = 1_000;

/// How long to compute and to sleep, in nanoseconds.
static ON: AtomicU64 = AtomicU64::new(0);
static OFF: AtomicU64 = AtomicU64::new(0);

fn main(context: &Context) -> u32 {
    let mut times = context.args().map_while(|argument| argument.number());
    let (Some(on), Some(off)) = (times.next(), times.next()) else {
        println!("burst: say for how many microseconds to compute and to sleep");
        return 2;
    };
    ON.store(on * MICROSECOND, Ordering::Relaxed);
    OFF.store(off * MICROSECOND, Ordering::Relaxed);
    let started = smp::start(|_| take_turns());
    println!("burst on {started}");
    ready();
    take_turns()
}

fn take_turns() -> ! {
    loop {
        time::spin(ON.load(Ordering::Relaxed));
        time::sleep(OFF.load(Ordering::Relaxed));
    }
}
