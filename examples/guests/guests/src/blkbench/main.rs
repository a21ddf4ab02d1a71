//! Reads and writes a virtio disk as fast as it goes, and says how fast that was; with `--verify` it checks every byte
//! that it reads of what it wrote. It destroys what is on the disk, unless it only reads.

#![no_std]
#![no_main]

extern crate alloc;

mod disk;
mod histogram;
mod options;
mod pattern;
mod plan;
mod queue;
#[expect(dead_code, reason = "the values are for hostile guests")]
#[path = "../random.rs"]
mod random;
mod report;
mod run;

use core::fmt;

use ringlet_guest::{Context, println};

use disk::Disk;
use options::Options;
use run::Run;

ringlet_guest::entry!(main);

/// Why a run failed; the exit code is the variant's.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was read is not what was written.
    Mismatch,
    /// The arguments make no sense, or not for this disk.
    Usage(&'static str),
    /// There is no such disk.
    NoDisk,
    /// The device does not come up, or broke its queue.
    Device(&'static str),
    /// The device answered requests with an error.
    Io,
    /// The bookkeeping or the buffers do not fit into memory.
    Memory,
    /// A request was not answered in time.
    Stuck,
    /// A request was answered, but no interrupt came.
    Interrupt,
}

impl Failure {
    fn code(&self) -> u32 {
        match self {
            Self::Mismatch => 1,
            Self::Usage(_) => 2,
            Self::NoDisk => 3,
            Self::Device(_) => 4,
            Self::Io => 5,
            Self::Memory => 6,
            Self::Stuck => 7,
            Self::Interrupt => 8,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mismatch => "the disk does not hold what was written to it",
            Self::Usage(what) | Self::Device(what) => what,
            Self::NoDisk => "no such disk; start with --disk",
            Self::Io => "the disk answered with an error",
            Self::Memory => {
                "not enough memory: give the VM more, or use a smaller --depth, --block-size or --span"
            }
            Self::Stuck => "a request was not answered in time",
            Self::Interrupt => "a request was answered, but no interrupt told of it",
        })
    }
}

fn main(context: &Context) -> u32 {
    let options = match Options::parse(context.args()) {
        Ok(options) => options,
        Err(Failure::Usage(what)) => {
            println!("blkbench: {what}\n{}", options::USAGE);
            return 2;
        }
        Err(failure) => return failure.code(),
    };
    match bench(context, &options) {
        Ok(()) => 0,
        Err(failure) => {
            println!("blkbench: failed: {failure}");
            failure.code()
        }
    }
}

fn bench(context: &Context, options: &Options) -> Result<(), Failure> {
    let disk = Disk::open(context, options)?;
    report::disk(&disk, options);
    let mut run = Run::new(disk, options)?;
    let outcome = run.all();
    report::result(&run, options, outcome.is_ok());
    outcome
}
