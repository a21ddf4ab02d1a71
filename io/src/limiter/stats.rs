//! What one level admitted and held back, for whoever reports it.
//!
//! Owns the numbers. Written by whoever admits, read by any thread, without a lock; reading changes nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ringlet_metrics::{Counter, Gauge, LimiterReading, LimiterSource, LimiterTokens};

use super::Cost;
use super::limits::{Meters, PerMeter, SLOTS};
use crate::clock::MonoTime;

/// The numbers of one level of limits, of the requests that came while anything limited them, here or elsewhere.
#[derive(Debug, Default)]
pub struct LimiterStats {
    /// Requests admitted.
    pub operations: Counter,
    /// Bytes of the requests admitted.
    pub bytes: Counter,
    /// Requests that had to wait here.
    pub throttled: Counter,
    /// Nanoseconds that requests waited here, one after the other or side by side; a wait is added at its end.
    pub throttled_nanos: Counter,
    /// Requests that wait here at this moment.
    pub waiting: Gauge,
    tokens: [TokenGauge; SLOTS],
}

/// What a reader needs to know how many tokens there are.
#[derive(Debug, Default)]
struct TokenGauge {
    size: AtomicU64,
    /// In ns; 0: no limit.
    refill: AtomicU64,
    full_at: AtomicU64,
    burst: AtomicU64,
}

impl LimiterStats {
    /// Tokens that each meter has left at `now`, rounded down, with those of its burst; less than 0 if they are
    /// owed. While a limit is being changed the figure may be of neither the old one nor the new.
    pub fn tokens(&self, now: MonoTime) -> PerMeter<i64> {
        PerMeter::from_slots(std::array::from_fn(|index| self.tokens.get(index)?.left(now)))
    }

    /// Counts a request, and takes note of what it left.
    pub(crate) fn admitted(&self, cost: Cost, meters: &Meters) {
        self.operations.inc();
        self.bytes.add(cost.bytes);
        self.left(meters);
    }

    /// Takes note of new limits.
    pub(crate) fn changed(&self, meters: &Meters) {
        for (gauge, bucket) in self.tokens.iter().zip(meters.limits().into_slots()) {
            let bucket = bucket.unwrap_or_default();
            gauge.size.store(bucket.size, Relaxed);
            // At most 2^62.
            let refill = u64::try_from(bucket.refill_time.as_nanos()).unwrap_or(u64::MAX);
            gauge.refill.store(refill, Relaxed);
        }
        self.left(meters);
    }

    fn left(&self, meters: &Meters) {
        for (gauge, left) in self.tokens.iter().zip(meters.each(|meter| (meter.full_at(), meter.burst()))) {
            let Some((full_at, burst)) = left else { continue };
            gauge.full_at.store(full_at.as_nanos(), Relaxed);
            gauge.burst.store(burst, Relaxed);
        }
    }
}

/// Names of the meters in the order of their slots.
const NAMES: [&str; SLOTS] =
    ["read_operations", "read_bytes", "write_operations", "write_bytes", "operations", "bytes"];

impl LimiterSource for LimiterStats {
    fn read(&self) -> LimiterReading {
        let now = MonoTime::now();
        let tokens = NAMES.into_iter().zip(&self.tokens).filter_map(|(meter, gauge)| {
            let left = gauge.left(now)?;
            let (size, refill_nanos) = (gauge.size.load(Relaxed), gauge.refill.load(Relaxed));
            Some(LimiterTokens { meter, left, size, refill_nanos })
        });
        LimiterReading {
            operations: self.operations.get(),
            bytes: self.bytes.get(),
            throttled: self.throttled.get(),
            throttled_nanos: self.throttled_nanos.get(),
            waiting: self.waiting.get(),
            tokens: tokens.collect(),
        }
    }
}

impl TokenGauge {
    fn left(&self, now: MonoTime) -> Option<i64> {
        let refill = u128::from(self.refill.load(Relaxed));
        let size = self.size.load(Relaxed);
        let nanos = u128::from(MonoTime::from_nanos(self.full_at.load(Relaxed)).nanos_since(now));
        let missing = (nanos * u128::from(size)).div_ceil(if refill == 0 { return None } else { refill });
        let whole = i128::from(size) + i128::from(self.burst.load(Relaxed));
        let left = whole.saturating_sub_unsigned(missing);
        Some(i64::try_from(left).unwrap_or(if left < 0 { i64::MIN } else { i64::MAX }))
    }
}
