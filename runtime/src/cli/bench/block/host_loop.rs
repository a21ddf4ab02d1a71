//! The ceiling: the requests of a guest's disk on the ring facade alone, from guest RAM that no guest runs in. A process
//! of its own, as the other contenders are.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use ringlet_io::{
    Backing, EngineKind, GuestRam, GuestRange, LeaseUse, Owner, PAGE_SIZE, Ring, RingFile, ShardContext,
};

use super::super::blkbench::{BlockResult, Mode, Pattern};
use super::super::own_shard::run_on_shard;
use crate::cli::CliResult;
use crate::cli::run::EngineArg;

/// What blocks are filled with before they are written.
const FILL: u8 = 0xa5;

/// Options of the host loop: the guest's, and what the guest's VMM is told.
#[derive(Debug, Args)]
pub(in super::super) struct HostLoopArgs {
    /// The file
    #[arg(long)]
    file: PathBuf,

    /// Past the page cache
    #[arg(long)]
    direct: bool,

    /// What the event loop waits with
    #[arg(long, value_enum)]
    io_engine: EngineArg,

    /// What is done
    #[arg(long, value_enum)]
    mode: Mode,

    /// Requests at once
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=128))]
    depth: u16,

    /// Bytes a request
    #[arg(long, value_parser = clap::value_parser!(u32).range(512..=16 << 20))]
    block_size: u32,

    /// How many bytes in all
    #[arg(long)]
    total: u64,
}

/// What goes to the shard.
struct Job {
    pattern: Pattern,
    requests: u64,
    file: OwnedFd,
    /// Blocks of the file.
    blocks: u64,
    ram: GuestRam,
}

impl Job {
    /// Does it on an event loop.
    fn run(self, engine: EngineKind) -> CliResult<BlockResult> {
        let run = |cx: ShardContext| async move { State::new(cx.ring().clone(), self).run(&cx).await };
        Ok(run_on_shard(engine, run)??)
    }
}

/// Runs the loop and prints its result as the guest does.
pub(in super::super) fn run(args: &HostLoopArgs) -> CliResult<ExitCode> {
    let pattern = Pattern { mode: args.mode, depth: args.depth, block_size: args.block_size };
    let engine = ringlet_io::select(args.io_engine.into())?;
    let file = open(args)?;
    let blocks = file.metadata()?.len() / u64::from(args.block_size);
    if blocks == 0 {
        return Err("the file is smaller than a request".into());
    }
    let requests = (args.total / u64::from(args.block_size)).max(1);
    let job = Job { pattern, requests, file: file.into(), blocks, ram: ram(pattern)? };
    writeln!(io::stdout(), "{}", job.run(engine.kind)?)?;
    Ok(ExitCode::SUCCESS)
}

fn open(args: &HostLoopArgs) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(args.mode.writes());
    if args.direct {
        options.custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed());
    }
    options.open(&args.file)
}

/// RAM with the buffers of all requests.
fn ram(pattern: Pattern) -> CliResult<GuestRam> {
    let size = u64::from(pattern.depth) * stride(pattern);
    let ram = GuestRam::new(&[(0, size)], Backing::Pages4K)?;
    ram.write(0, &vec![FILL; usize::try_from(size)?])?;
    Ok(ram)
}

/// From one buffer to the next.
fn stride(pattern: Pattern) -> u64 {
    u64::from(pattern.block_size).next_multiple_of(PAGE_SIZE)
}

/// What the tasks of the loop share.
struct State {
    ring: Ring,
    file: RingFile,
    ram: GuestRam,
    pattern: Pattern,
    blocks: u64,
    left: Cell<u64>,
    /// The next block, or the state of the random numbers.
    next: Cell<u64>,
    /// Nanoseconds of each request.
    latencies: RefCell<Vec<u64>>,
}

impl State {
    fn new(ring: Ring, job: Job) -> Rc<Self> {
        let Job { pattern, requests, file, blocks, ram } = job;
        Rc::new(Self {
            ring,
            file: RingFile::new(file),
            ram,
            pattern,
            blocks,
            left: Cell::new(requests),
            next: Cell::new(0),
            latencies: RefCell::new(Vec::with_capacity(usize::try_from(requests).unwrap_or(0))),
        })
    }

    /// All requests, as many tasks as there may be at once; then, what was written is made durable, off the clock.
    async fn run(self: Rc<Self>, cx: &ShardContext) -> io::Result<BlockResult> {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..u64::from(self.pattern.depth))
            .map(|slot| cx.spawn(&Owner::shard(), Rc::clone(&self).slot(slot)))
            .collect();
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
        let time = begun.elapsed();
        if self.pattern.mode.writes() {
            self.ring.fdatasync(&self.file).await?;
        }
        Ok(self.result(time))
    }

    /// One request after the other.
    async fn slot(self: Rc<Self>, slot: u64) -> io::Result<()> {
        let Pattern { mode, block_size, .. } = self.pattern;
        let range = GuestRange { gpa: slot * stride(self.pattern), len: block_size };
        while let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            let offset = self.pick() * u64::from(block_size);
            let begun = Instant::now();
            let count = if mode.writes() {
                let lease = self.ram.lease(&[range], LeaseUse::Source).map_err(io::Error::other)?;
                self.ring.writev_at(&self.file, lease, 0, offset).await.0?
            } else {
                let lease = self.ram.lease(&[range], LeaseUse::Target).map_err(io::Error::other)?;
                self.ring.readv_at(&self.file, lease, 0, offset).await.0?
            };
            if u32::try_from(count) != Ok(block_size) {
                return Err(io::Error::other(format!("{count} bytes instead of {block_size}")));
            }
            let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latencies.borrow_mut().push(nanos);
        }
        Ok(())
    }

    /// The next block.
    fn pick(&self) -> u64 {
        if self.pattern.mode.is_random() {
            let state = self.next.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
            self.next.set(state);
            return mix(state) % self.blocks;
        }
        let block = self.next.get();
        self.next.set((block + 1) % self.blocks);
        block
    }

    fn result(&self, time: Duration) -> BlockResult {
        let mut latencies = self.latencies.borrow_mut();
        latencies.sort_unstable();
        let requests = latencies.len() as u64;
        let (reads, writes) = if self.pattern.mode.writes() { (0, requests) } else { (requests, 0) };
        BlockResult {
            ok: true,
            ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            reads,
            writes,
            p50_ns: percentile(&latencies, 50),
            p99_ns: percentile(&latencies, 99),
        }
    }
}

/// The finalizer of SplitMix64: every bit of `state` changes about half of the result's.
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Nearest rank; 0 of none.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
#[path = "host_loop_test.rs"]
mod tests;
