//! Exits with the code that is its argument (0 without one).

#![no_std]
#![no_main]

use ringlet_guest::{Context, println};

ringlet_guest::entry!(main);

fn main(context: &Context) -> u32 {
    let Some(argument) = context.args().next() else { return 0 };
    match argument.number().and_then(|code| u32::try_from(code).ok()) {
        Some(code) => code,
        None => {
            println!("exit: not a number from 0 to 4294967295: {argument}");
            2
        }
    }
}
