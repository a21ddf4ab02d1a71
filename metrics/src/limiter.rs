//! What limits admitted and held back, as their owner tells it.
//!
//! Owns the form of the numbers. Never: counts, reads a clock, or knows how a limit works.

use std::fmt;

/// Where the numbers of one level of limits (a device's, a VM's) are read.
pub trait LimiterSource: fmt::Debug + Send + Sync {
    /// The numbers of this moment. Called by a scrape: must not block.
    fn read(&self) -> LimiterReading;
}

/// The numbers of one level of limits at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimiterReading {
    /// Requests admitted.
    pub operations: u64,
    /// Bytes of the requests admitted.
    pub bytes: u64,
    /// Requests that had to wait.
    pub throttled: u64,
    /// Nanoseconds that requests waited, one after the other or side by side.
    pub throttled_nanos: u64,
    /// Requests that wait.
    pub waiting: i64,
    /// Its token buckets, if it limits anything.
    pub tokens: Vec<LimiterTokens>,
}

/// One token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimiterTokens {
    /// What it counts: `read_operations`, `read_bytes`, `write_operations`, `write_bytes`, `operations`, `bytes`.
    pub meter: &'static str,
    /// Tokens left, those of its burst included; less than 0 if they are owed.
    pub left: i64,
    /// Tokens of the full bucket without a burst.
    pub size: u64,
    /// Nanoseconds in which an empty bucket fills.
    pub refill_nanos: u64,
}
