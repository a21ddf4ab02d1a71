//! Counts forever; with the argument N it stops after N million iterations and prints how long they took.

#![no_std]
#![no_main]

use core::hint::black_box;

use ringlet_guest::{Context, println, time};

ringlet_guest::entry!(main);

const MILLION: u64 = 1_000_000;

fn main(context: &Context) -> u32 {
    let millions = match context.args().next() {
        None => u64::MAX / MILLION,
        Some(argument) => match argument.number() {
            Some(number) => number,
            None => {
                println!("spin: not a number: {argument}");
                return 2;
            }
        },
    };
    println!("spin");
    let start = time::now();
    for _ in 0..millions {
        count(MILLION);
    }
    let nanoseconds = time::now() - start;
    println!("{millions} million iterations in {}.{:06} ms", nanoseconds / MILLION, nanoseconds % MILLION);
    0
}

/// Counts to `limit`, one iteration a step.
fn count(limit: u64) {
    let mut at = 0;
    while at < limit {
        at = black_box(at + 1);
    }
}
