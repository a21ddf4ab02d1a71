//! Says that it is ready, then sleeps forever without a timer: what a VM costs when it does nothing.

#![no_std]
#![no_main]

use ringlet_guest::{Context, cpu, ready, serial};

ringlet_guest::entry!(main);

fn main(_: &Context) {
    serial::write_bytes(b"idle\n");
    ready();
    cpu::park();
}
