//! Greets, tells what it was given, computes something, and exits with 0.
//!
//! With the argument `--brief` it prints one line and exits: the guest of the boot benchmarks.

#![no_std]
#![no_main]

use ringlet_guest::{Context, println, serial};

ringlet_guest::entry!(main);

fn main(context: &Context) {
    if context.args().any(|argument| argument == "--brief") {
        serial::write_bytes(b"hello\n");
        return;
    }
    println!("hello from a unikernel");
    println!("cmdline: {}", context.cmdline());
    for argument in context.args() {
        println!("argument: {argument}");
    }
    for region in context.memory().regions().filter(|region| region.is_usable()).take(3) {
        println!("memory: {:#x}..{:#x}", region.span.start, region.span.end);
    }
    println!("{} MiB usable, {} vCPU", context.memory().usable() >> 20, context.vcpus());
    println!("primes below 10000: {}", primes_below(10_000));
}

/// Counts primes by trial division: something that takes a processor a moment.
fn primes_below(limit: u32) -> usize {
    (2..limit).filter(|&n| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))).count()
}
