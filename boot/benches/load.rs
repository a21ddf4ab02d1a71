//! What validating and loading an image costs: medians and 90th percentiles in microseconds.
//!
//! `cargo bench -p ringlet-boot`. Every load goes into fresh RAM, so the first touch of each page, the largest part
//! of the cost, is in it.

use std::error::Error;
use std::time::{Duration, Instant};

use ringlet_boot::layout::{IMAGE_START, ram_regions};
use ringlet_boot::{BootRequest, Image, Protocol, load};
use ringlet_io::{Backing, GuestRam};

const ROUNDS: usize = 501;
const RAM_SIZE: u64 = 128 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    println!("{:>8} {:<10} {:>10} {:>10}", "image", "step", "median us", "p90 us");
    for kib in [4, 32, 100, 1024] {
        let bytes = image(kib << 10);
        report(kib, "parse", || {
            let start = Instant::now();
            Image::from_static("bench", bytes)?;
            Ok(start.elapsed())
        })?;
        let image = Image::from_static("bench", bytes)?;
        for (name, protocol) in [("pvh", Protocol::Pvh), ("linux64", Protocol::Linux64)] {
            report(kib, name, || load_once(&image, protocol))?;
        }
    }
    Ok(())
}

fn load_once(image: &Image, protocol: Protocol) -> Result<Duration, Box<dyn Error>> {
    let ram = GuestRam::new(&ram_regions(RAM_SIZE), Backing::Pages4K)?;
    let args = [String::from("some"), String::from("arguments")];
    let request = BootRequest {
        image,
        protocol: Some(protocol),
        cmdline: "quiet",
        args: &args,
        initrd: None,
        vcpus: 1,
    };
    let start = Instant::now();
    load(&ram, &request)?;
    Ok(start.elapsed())
}

fn report(
    kib: usize,
    step: &str,
    mut once: impl FnMut() -> Result<Duration, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut times = (0..ROUNDS).map(|_| once()).collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    let micros = |percent: usize| {
        times.get(ROUNDS * percent / 100).map_or(0.0, |time| time.as_nanos() as f64 / 1000.0)
    };
    println!("{kib:>4} KiB {step:<10} {:>10.1} {:>10.1}", micros(50), micros(90));
    Ok(())
}

/// An ELF64 image of one code segment of `len` bytes, with both entries.
fn image(len: usize) -> &'static [u8] {
    let mut file = vec![0x90; 4096 + len];
    let mut put = |at: usize, bytes: &[u8]| {
        for (slot, byte) in file.iter_mut().skip(at).zip(bytes) {
            *slot = *byte;
        }
    };
    put(0, &[0; 4096]);
    put(0, b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 2u16), (18, 62), (54, 56), (56, 2)] {
        put(at, &value.to_le_bytes());
    }
    for (at, value) in
        [(64, 1u32), (68, 5), (120, 4), (512, 4), (516, 4), (520, 18), (528, IMAGE_START as u32)]
    {
        put(at, &value.to_le_bytes());
    }
    put(524, b"Xen\0");
    let len = len as u64;
    for (at, value) in [
        (24, IMAGE_START),
        (32, 64),
        (72, 4096),
        (88, IMAGE_START),
        (96, len),
        (104, len),
        (128, 512),
        (152, 20),
        (160, 20),
    ] {
        put(at, &value.to_le_bytes());
    }
    file.leak()
}
