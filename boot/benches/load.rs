//! What validating and loading an image costs.
//!
//! `cargo bench -p ringlet-boot --bench load`. Every load goes into fresh RAM, so the first touch of each page, the largest part
//! of the cost, is in it.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark; the macros make undocumented functions")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringlet_boot::layout::{IMAGE_START, ram_regions};
use ringlet_boot::{BootRequest, Image, Protocol, load};
use ringlet_io::{Backing, GuestRam};

const RAM_SIZE: u64 = 128 << 20;

fn images(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("image");
    for kib in [4usize, 32, 100, 1024] {
        let bytes = image(kib << 10);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(BenchmarkId::new("parse", kib), |bencher| {
            bencher.iter(|| Image::from_static("bench", bytes).unwrap());
        });
        let image = Image::from_static("bench", bytes).unwrap();
        for (name, protocol) in [("load pvh", Protocol::Pvh), ("load linux64", Protocol::Linux64)] {
            group.bench_with_input(BenchmarkId::new(name, kib), &image, |bencher, image| {
                let fresh = || GuestRam::new(&ram_regions(RAM_SIZE), Backing::Pages4K).unwrap();
                bencher.iter_batched(fresh, |ram| load_once(ram, image, protocol), BatchSize::PerIteration);
            });
        }
    }
}

/// Gives the RAM back, so that its unmapping is not timed.
fn load_once(ram: GuestRam, image: &Image, protocol: Protocol) -> GuestRam {
    let args = [String::from("some"), String::from("arguments")];
    let request = BootRequest {
        image,
        protocol: Some(protocol),
        cmdline: "quiet",
        args: &args,
        initrd: None,
        vcpus: 1,
    };
    load(&ram, &request).unwrap();
    ram
}

criterion_group!(benches, images);
criterion_main!(benches);

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
