//! Reads random bytes from the virtio entropy device, prints what they look like, and fails if they cannot be random.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;

use ringlet_guest::virtio::drivers::device::rng::VirtIORng;
use ringlet_guest::virtio::{self, GuestHal};
use ringlet_guest::{Context, cmdline, print, println, time};

ringlet_guest::entry!(main);

const ENTROPY: u32 = 4;
/// Bytes that are read without an argument.
const DEFAULT: u64 = 4096;
const MAX: u64 = 64 << 20;
/// Most bytes of a request.
const CHUNK: usize = 64 << 10;
/// Bytes that are printed.
const SHOWN: usize = 32;
/// Fewest bytes whose statistics mean anything.
const JUDGED: usize = 1024;

const USAGE: u32 = 2;
const NO_DEVICE: u32 = 3;
const DEVICE_FAILED: u32 = 4;
const NOT_RANDOM: u32 = 1;

fn main(context: &Context) -> u32 {
    let mut arguments = context.args();
    let len = arguments.next().map_or(Some(DEFAULT), |argument| cmdline::size(&argument.text()?));
    let (Some(len @ 1..=MAX), None) = (len, arguments.next()) else {
        println!("usage: rng [BYTES]   (1 to 64M, 4096 if not said; K and M are understood)");
        return USAGE;
    };
    let Some(slot) = virtio::find(context, ENTROPY).next() else {
        println!("rng: no entropy device; start with --rng");
        return NO_DEVICE;
    };
    let start = time::now();
    let bytes = match read(slot, len as usize) {
        Ok(bytes) => bytes,
        Err(error) => {
            println!("rng: {error}");
            return DEVICE_FAILED;
        }
    };
    let micros = (time::now() - start) / 1000;
    print!("rng: {len} bytes in {micros} us: ");
    bytes.iter().take(SHOWN).for_each(|byte| print!("{byte:02x}"));
    println!("{}", if bytes.len() > SHOWN { "..." } else { "" });
    judge(&bytes)
}

/// Reads `len` bytes, in requests of at most [`CHUNK`], each of which may bring less.
fn read(slot: virtio::Slot, len: usize) -> Result<Vec<u8>, &'static str> {
    let transport = slot.open().map_err(|_| "the device is not one that the driver knows")?;
    let mut device =
        VirtIORng::<GuestHal, _>::new(transport).map_err(|_| "the driver cannot set the device up")?;
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let wanted = rest.len().min(CHUNK);
        match device.request_entropy(&mut rest[..wanted]) {
            Ok(0) => return Err("the device returned no bytes"),
            Ok(got) if got <= wanted => filled += got,
            Ok(_) => return Err("the device returned more bytes than it was asked for"),
            Err(_) => return Err("a request failed"),
        }
    }
    Ok(bytes)
}

/// The exit code: whether these bytes could be random.
fn judge(bytes: &[u8]) -> u32 {
    if bytes.len() > 1 && bytes.windows(2).all(|pair| pair[0] == pair[1]) {
        println!("rng: all bytes are {:#04x}", bytes[0]);
        return NOT_RANDOM;
    }
    let ones: u64 = bytes.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let bits = bytes.len() as u64 * 8;
    let mut counts = [0_u32; 256];
    bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let values = counts.iter().filter(|&&count| count > 0).count();
    let longest = longest_run(bytes);
    println!(
        "rng: {}.{} % ones, {values} of 256 values, longest run {longest}",
        ones * 100 / bits,
        ones * 1000 / bits % 10
    );
    // Of at least 1024 random bytes, each of these fails less than once in 10^9 runs.
    let balanced = (bits * 45 / 100..=bits * 55 / 100).contains(&ones);
    if bytes.len() >= JUDGED && !(balanced && values > 192 && longest < 9) {
        println!("rng: that does not look random");
        return NOT_RANDOM;
    }
    0
}

/// Length of the longest run of equal bytes.
fn longest_run(bytes: &[u8]) -> usize {
    bytes.chunk_by(|one, other| one == other).map(<[u8]>::len).max().unwrap_or(0)
}
