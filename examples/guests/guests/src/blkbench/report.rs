//! What is printed.

use core::fmt;

use ringlet_guest::println;

use crate::disk::{DISCARD, Disk, FLUSH, READ_ONLY, WRITE_ZEROES};
use crate::options::{Options, SECTOR};
use crate::run::Run;

/// The disk, and what is about to be done to it.
pub(crate) fn disk(disk: &Disk, options: &Options) {
    println!(
        "blkbench: disk of {}, blocks of {} bytes{}{}{}{}",
        Bytes(disk.sectors * SECTOR),
        disk.limits.block_size,
        if disk.has(READ_ONLY) { ", read-only" } else { "" },
        if disk.has(FLUSH) { ", flush" } else { "" },
        if disk.has(DISCARD) { ", discard" } else { "" },
        if disk.has(WRITE_ZEROES) { ", write-zeroes" } else { "" },
    );
    println!(
        "blkbench: {}, {} a request, depth {}, {} {}",
        options.name,
        Bytes(options.block.into()),
        options.depth,
        options.queues,
        if options.queues == 1 { "queue" } else { "queues" },
    );
}

/// What came of it, for people and, in one line of JSON, for programs.
pub(crate) fn result(run: &Run, options: &Options, ok: bool) {
    let stats = &run.stats;
    let requests = stats.reads + stats.writes;
    let nanoseconds = stats.nanoseconds.max(1);
    let per_second = |count: u64| (u128::from(count) * 1_000_000_000 / u128::from(nanoseconds)) as u64;
    let bytes = requests * u64::from(options.block);
    let percentile = |percent| stats.latency.percentile(percent);
    println!(
        "blkbench: {} IOPS, {}/s; latency p50 {}, p90 {}, p99 {}, max {}",
        per_second(requests),
        Bytes(per_second(bytes)),
        Micros(percentile(50)),
        Micros(percentile(90)),
        Micros(percentile(99)),
        Micros(stats.latency.max()),
    );
    if options.verify {
        println!("blkbench: {} blocks verified", stats.verified);
    }
    println!(
        "blkbench-result {{\"ok\":{ok},\"mode\":\"{}\",\"depth\":{},\"block_size\":{},\"queues\":{},\"ns\":{},\
         \"reads\":{},\"writes\":{},\"flushes\":{},\"discards\":{},\"zeroes\":{},\"verified\":{},\"iops\":{},\
         \"bytes_per_second\":{},\"p50_ns\":{},\"p90_ns\":{},\"p99_ns\":{},\"max_ns\":{},\"interrupts\":{},\
         \"notifications\":{}}}",
        options.name,
        options.depth,
        options.block,
        options.queues,
        stats.nanoseconds,
        stats.reads,
        stats.writes,
        stats.flushes,
        stats.discards,
        stats.zeroes,
        stats.verified,
        per_second(requests),
        per_second(bytes),
        percentile(50),
        percentile(90),
        percentile(99),
        stats.latency.max(),
        stats.interrupts,
        stats.notifications,
    );
}

/// A number of bytes, with one decimal.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            0..0x400 => return write!(f, "{} B", self.0),
            0x400..0x10_0000 => (10, "KiB"),
            0x10_0000..0x4000_0000 => (20, "MiB"),
            _ => (30, "GiB"),
        };
        let tenths = (u128::from(self.0) * 10) >> shift;
        if tenths % 10 == 0 {
            write!(f, "{} {unit}", tenths / 10)
        } else {
            write!(f, "{}.{} {unit}", tenths / 10, tenths % 10)
        }
    }
}

/// Nanoseconds as microseconds, with one decimal.
struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} us", self.0 / 1000, self.0 % 1000 / 100)
    }
}
