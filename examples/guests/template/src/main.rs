#![no_std]
#![no_main]

use ringlet_guest::{Context, println};

ringlet_guest::entry!(main);

fn main(context: &Context) -> u32 {
    for argument in context.args() {
        println!("hello, {argument}");
    }
    7
}
