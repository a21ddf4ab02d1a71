//! What the guest `blkbench` is told to do, and what it says of that. The host loop of `ringlet bench block` understands
//! and says the same.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::super::CliResult;

/// The word before the result.
const PREFIX: &str = "blkbench-result ";

/// What is done to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(super) enum Mode {
    /// One block after the other
    Read,
    Write,
    /// Blocks anywhere
    RandRead,
    RandWrite,
}

impl Mode {
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Write | Self::RandWrite)
    }

    pub(super) fn is_random(self) -> bool {
        matches!(self, Self::RandRead | Self::RandWrite)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::RandRead => "randread",
            Self::RandWrite => "randwrite",
        })
    }
}

/// An access pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) mode: Mode,
    /// Requests at once, 1 to 128.
    pub(super) depth: u16,
    /// Bytes of each.
    pub(super) block_size: u32,
}

impl Pattern {
    /// The arguments that ask for `requests` of them.
    pub(super) fn arguments(self, requests: u64) -> [String; 8] {
        let total = requests.max(1).saturating_mul(self.block_size.into());
        [
            "--mode".to_owned(),
            self.mode.to_string(),
            "--depth".to_owned(),
            self.depth.to_string(),
            "--block-size".to_owned(),
            self.block_size.to_string(),
            "--total".to_owned(),
            total.to_string(),
        ]
    }
}

/// The part of the result that is used here; more fields may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlockResult {
    pub(super) ok: bool,
    /// Nanoseconds from the first request until the last was answered.
    pub(super) ns: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    /// Latencies.
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
}

impl BlockResult {
    /// Finds the result in what was printed.
    ///
    /// # Errors
    /// There is none, or it says that something went wrong; the message has the last line.
    pub(super) fn find(printed: &str) -> CliResult<Self> {
        let line = printed.lines().rev().find_map(|line| line.strip_prefix(PREFIX));
        let last = || printed.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        let Some(line) = line else {
            return Err(format!("there is no result; the last that was said: {:?}", last()).into());
        };
        let result: Self = serde_json::from_str(line)?;
        if !result.ok || result.requests() == 0 || result.ns == 0 {
            return Err(format!("it did not go well: {:?}", last()).into());
        }
        Ok(result)
    }

    /// Reads and writes.
    pub(super) fn requests(&self) -> u64 {
        self.reads + self.writes
    }

    pub(super) fn iops(&self) -> f64 {
        self.requests() as f64 / Duration::from_nanos(self.ns).as_secs_f64()
    }
}

impl fmt::Display for BlockResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{json}")
    }
}

#[cfg(test)]
#[path = "blkbench_test.rs"]
mod tests;
