//! Latencies, in buckets that are never more than 1/32 wide.

use alloc::boxed::Box;
use alloc::vec;

/// Buckets for each power of two.
const STEPS: u64 = 32;
const BUCKETS: usize = 64 * STEPS as usize;

/// How many requests took how long.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Box<[u32]>,
    count: u64,
    max: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; BUCKETS].into_boxed_slice(), count: 0, max: 0 }
    }

    /// Counts a request that took `nanoseconds`.
    pub(crate) fn add(&mut self, nanoseconds: u64) {
        self.buckets[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.max = self.max.max(nanoseconds);
    }

    /// The longest, in nanoseconds.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// What `percent` of the requests did not exceed, in nanoseconds: the upper end of their bucket.
    pub(crate) fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.count * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += u64::from(count);
            if seen >= wanted {
                return upper(index as u64).min(self.max);
            }
        }
        self.max
    }
}

/// Values below `STEPS` have a bucket each; above, the five bits below the highest choose.
fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let shift = value.ilog2() - STEPS.ilog2();
    (u64::from(shift + 1) * STEPS + (value >> shift) - STEPS) as usize
}

/// The largest value of bucket `index`.
fn upper(index: u64) -> u64 {
    if index < STEPS {
        return index;
    }
    let shift = index / STEPS - 1;
    ((index % STEPS + STEPS + 1) << shift) - 1
}
