//! The arguments.

use ringlet_guest::cmdline::{Args, size};

use crate::Failure;

pub(crate) const USAGE: &str = "\
usage: blkbench [OPTIONS]     (numbers understand K, M, G, T)
  --mode read|write|mixed|randread|randwrite|randrw   what is done (randread)
  --depth N            requests at once, all queues together, 1 to 128 (32)
  --block-size BYTES   bytes a request, a multiple of 512, up to 16M (4K)
  --duration SECONDS   how long (5, or 64M with --verify)
  --total BYTES        how much, instead of how long
  --span BYTES         how much of the disk, from its start (all)
  --queues N           over so many queues (1)
  --disk N             which disk, from 0 (0)
  --verify             write a pattern, check all that is read, and all that was written once more at the end;
                       also discards, writes zeroes and splits buffers
  --flush-every N      flush after so many writes; 0 is never (0, or 256 with --verify)
  --wait interrupt|poll   how to wait for the disk (interrupt)
  --driver ring|crate  the kit's queue, or the one of the crate virtio-drivers (ring)
  --seed N             of what is random (1)
  --timeout SECONDS    how long a request may take (60)
exit codes: 1 wrong data, 2 usage, 3 no disk, 4 device, 5 I/O error, 6 memory, 7 no answer, 8 lost interrupt";

/// Most requests at once.
const DEPTH_MAX: u64 = 128;
const BLOCK_MAX: u64 = 16 << 20;
const SECOND: u64 = 1_000_000_000;
pub(crate) const SECTOR: u64 = 512;

/// What is done to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    Read,
    Write,
    Both,
}

/// Which queue implementation drives the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    Ring,
    Crate,
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// After so many nanoseconds.
    Time(u64),
    /// After so many bytes.
    Bytes(u64),
}

/// The arguments, within their ranges.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) name: &'static str,
    pub(crate) mix: Mix,
    pub(crate) random: bool,
    pub(crate) depth: u16,
    pub(crate) block: u32,
    pub(crate) until: Until,
    pub(crate) span: u64,
    pub(crate) queues: u16,
    pub(crate) disk: usize,
    pub(crate) verify: bool,
    pub(crate) flush_every: u64,
    pub(crate) poll: bool,
    pub(crate) driver: Driver,
    pub(crate) seed: u64,
    /// Nanoseconds.
    pub(crate) timeout: u64,
}

impl Options {
    fn new() -> Self {
        Self {
            name: "randread",
            mix: Mix::Read,
            random: true,
            depth: 32,
            block: 4096,
            until: Until::Bytes(0),
            span: u64::MAX,
            queues: 1,
            disk: 0,
            verify: false,
            flush_every: u64::MAX,
            poll: false,
            driver: Driver::Ring,
            seed: 1,
            timeout: 60 * SECOND,
        }
    }

    pub(crate) fn parse(mut args: Args<'_>) -> Result<Self, Failure> {
        let mut options = Self::new();
        while let Some(argument) = args.next() {
            let name = argument.text().ok_or(Failure::Usage("an argument is no text"))?;
            if name == "--verify" {
                options.verify = true;
                continue;
            }
            let value = args.next().and_then(|value| value.text());
            options.set(&name, &value.ok_or(Failure::Usage("an option is unknown, or lacks its value"))?)?;
        }
        options.complete()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let number = |range: core::ops::RangeInclusive<u64>| {
            size(value)
                .filter(|number| range.contains(number))
                .ok_or(Failure::Usage("a number is none, or out of its range"))
        };
        match name {
            "--mode" => (self.name, self.mix, self.random) = mode(value)?,
            "--depth" => self.depth = number(1..=DEPTH_MAX)? as u16,
            "--block-size" => self.block = number(SECTOR..=BLOCK_MAX)? as u32,
            "--duration" => self.until = Until::Time(number(1..=1_000_000)? * SECOND),
            "--total" => self.until = Until::Bytes(number(1..=u64::MAX)?),
            "--span" => self.span = number(1..=u64::MAX)?,
            "--queues" => self.queues = number(1..=DEPTH_MAX)? as u16,
            "--disk" => self.disk = number(0..=64)? as usize,
            "--flush-every" => self.flush_every = number(0..=u64::MAX - 1)?,
            "--wait" => self.poll = choice(value, "interrupt", "poll")?,
            "--driver" if choice(value, "ring", "crate")? => self.driver = Driver::Crate,
            "--driver" => self.driver = Driver::Ring,
            "--seed" => self.seed = number(0..=u64::MAX)?,
            "--timeout" => self.timeout = number(1..=1_000_000)? * SECOND,
            _ => return Err(Failure::Usage("an option is unknown")),
        }
        Ok(())
    }

    /// Fills in what depends on other options.
    fn complete(mut self) -> Result<Self, Failure> {
        if !u64::from(self.block).is_multiple_of(SECTOR) {
            return Err(Failure::Usage("--block-size is no multiple of 512"));
        }
        if self.queues > self.depth {
            return Err(Failure::Usage("--queues exceeds --depth"));
        }
        if self.until == Until::Bytes(0) {
            self.until = if self.verify { Until::Bytes(64 << 20) } else { Until::Time(5 * SECOND) };
        }
        if self.flush_every == u64::MAX {
            self.flush_every = if self.verify { 256 } else { 0 };
        }
        Ok(self)
    }
}

fn mode(value: &str) -> Result<(&'static str, Mix, bool), Failure> {
    Ok(match value {
        "read" => ("read", Mix::Read, false),
        "write" => ("write", Mix::Write, false),
        "mixed" => ("mixed", Mix::Both, false),
        "randread" => ("randread", Mix::Read, true),
        "randwrite" => ("randwrite", Mix::Write, true),
        "randrw" => ("randrw", Mix::Both, true),
        _ => return Err(Failure::Usage("--mode is not one of the six")),
    })
}

/// Whether `value` is the second of two words.
fn choice(value: &str, first: &str, second: &str) -> Result<bool, Failure> {
    if value == first || value == second {
        Ok(value == second)
    } else {
        Err(Failure::Usage("an option's value is not one of its two words"))
    }
}
