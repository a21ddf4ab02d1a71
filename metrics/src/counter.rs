//! Numbers that are written on hot paths and read by a scrape.
//!
//! Owns: [`Counter`], [`Gauge`], [`Histogram`] and [`PerLabel`], an array of them over a closed label set.
//! Every write is one or two relaxed atomic adds: no lock, no allocation, no clock.
//! Never: knows names, labels outside closed sets, or the `prometheus` crate. Reading changes nothing.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::labels::Label;

/// A count that only grows. 2⁶⁴ is out of reach (584 years of nanoseconds), so wrapping is not handled.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at 0.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`, in the unit of the counter.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Adds a time to a counter whose unit is the nanosecond.
    #[inline]
    pub fn add_duration(&self, time: Duration) {
        self.add(nanos(time));
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A value that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// A gauge at 0.
    pub const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`, which may be negative.
    #[inline]
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of a histogram's buckets, in nanoseconds, ascending, at most [`Bounds::MAX`] of them.
/// The bucket above the last bound (`+Inf`) is implied.
#[derive(Debug)]
pub struct Bounds(&'static [u64]);

impl Bounds {
    /// Most bounds that a histogram may have.
    pub const MAX: usize = 24;

    /// Checks the bounds when the program is built: use it in a `const` or `static` only.
    ///
    /// # Panics
    /// If the bounds do not ascend, or are more than [`Bounds::MAX`]; in a constant that is a build error.
    pub const fn new(nanos: &'static [u64]) -> Self {
        assert!(nanos.len() <= Self::MAX, "too many bounds");
        let mut rest = nanos;
        while let [first, tail @ ..] = rest {
            if let [second, ..] = tail {
                assert!(*first < *second, "bounds must ascend");
            }
            rest = tail;
        }
        Self(nanos)
    }

    /// The bounds in nanoseconds.
    pub const fn as_nanos(&self) -> &'static [u64] {
        self.0
    }
}

/// Bounds for the start of a VM: 10 µs to 10 s, in steps of 1, 2, 5.
pub static BOOT_BOUNDS: Bounds = Bounds::new(&[
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
]);

/// Bounds for waiting inside an event loop: 1 µs to 1 s, in steps of 1, 4 (roughly ×3).
pub static DELAY_BOUNDS: Bounds = Bounds::new(&[
    1_000,
    4_000,
    10_000,
    40_000,
    100_000,
    400_000,
    1_000_000,
    4_000_000,
    10_000_000,
    40_000_000,
    100_000_000,
    400_000_000,
    1_000_000_000,
]);

/// A distribution of times over fixed buckets, exposed in seconds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static Bounds,
    /// Observations per bucket, not cumulative; the one after the last bound takes the rest.
    buckets: [AtomicU64; Bounds::MAX + 1],
    sum_nanos: AtomicU64,
}

/// What a [`Histogram`] held when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramSnapshot {
    /// `(upper bound in nanoseconds, observations at or below it)`, ascending in both.
    pub buckets: Vec<(u64, u64)>,
    /// All observations; never less than the last bucket's.
    pub count: u64,
    /// Sum of the observed times in nanoseconds. Read apart from the counts, so an observation in flight
    /// may be in one and not yet in the other.
    pub sum_nanos: u64,
}

impl Histogram {
    /// An empty histogram. Allocates nothing.
    pub const fn new(bounds: &'static Bounds) -> Self {
        Self { bounds, buckets: [const { AtomicU64::new(0) }; Bounds::MAX + 1], sum_nanos: AtomicU64::new(0) }
    }

    /// Counts one observation: two relaxed adds.
    #[inline]
    pub fn observe(&self, time: Duration) {
        let time = nanos(time);
        let index = self.bounds.0.partition_point(|bound| *bound < time);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Relaxed);
        }
        self.sum_nanos.fetch_add(time, Relaxed);
    }

    /// Reads the histogram; every bucket is read once, so the result is always cumulative and consistent
    /// with its own `count`.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let sum_nanos = self.sum_nanos.load(Relaxed);
        let mut counts = self.buckets.iter().map(|bucket| bucket.load(Relaxed));
        let mut count = 0;
        let buckets = (self.bounds.0.iter())
            .zip(counts.by_ref())
            .map(|(bound, n)| {
                count += n;
                (*bound, count)
            })
            .collect();
        // `zip` asks the bounds first, so the overflow bucket is still there.
        let count = count + counts.sum::<u64>();
        HistogramSnapshot { buckets, count, sum_nanos }
    }
}

/// One `T` for every value of the closed label set `K`.
pub struct PerLabel<K: Label, T: Send + Sync>(K::Cells<T>);

/// Counters over a closed label set.
pub type Counters<K> = PerLabel<K, Counter>;
/// Gauges over a closed label set.
pub type Gauges<K> = PerLabel<K, Gauge>;
/// Histograms over a closed label set.
pub type Histograms<K> = PerLabel<K, Histogram>;

impl<K: Label, T: Send + Sync> PerLabel<K, T> {
    /// Cells made by `make`, one a value.
    pub fn with(mut make: impl FnMut() -> T) -> Self {
        Self(K::cells(|_| make()))
    }

    /// Every label value with its cell, in order.
    pub fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        K::ALL.iter().copied().zip(self.0.as_ref())
    }

    /// The cell of `key`; `None` only if the [`Label`] implementation is wrong about its index.
    fn cell(&self, key: K) -> Option<&T> {
        self.0.as_ref().get(key.index())
    }
}

impl<K: Label> Counters<K> {
    /// All counters at 0.
    pub fn new() -> Self {
        Self::with(Counter::new)
    }

    /// Adds one to the counter of `key`.
    #[inline]
    pub fn inc(&self, key: K) {
        self.add(key, 1);
    }

    /// Adds `n` to the counter of `key`.
    #[inline]
    pub fn add(&self, key: K, n: u64) {
        if let Some(counter) = self.cell(key) {
            counter.add(n);
        }
    }

    /// The count of `key`.
    pub fn get(&self, key: K) -> u64 {
        self.cell(key).map_or(0, Counter::get)
    }

    /// Sum over all values.
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, counter)| counter.get()).sum()
    }
}

impl<K: Label> Gauges<K> {
    /// All gauges at 0.
    pub fn new() -> Self {
        Self::with(Gauge::new)
    }

    /// Adds one to the gauge of `key`.
    #[inline]
    pub fn inc(&self, key: K) {
        self.add(key, 1);
    }

    /// Takes one away from the gauge of `key`.
    #[inline]
    pub fn dec(&self, key: K) {
        self.add(key, -1);
    }

    /// Adds `n` to the gauge of `key`.
    #[inline]
    pub fn add(&self, key: K, n: i64) {
        if let Some(gauge) = self.cell(key) {
            gauge.add(n);
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: K) -> i64 {
        self.cell(key).map_or(0, Gauge::get)
    }
}

impl<K: Label> Histograms<K> {
    /// Empty histograms, all with the same bounds.
    pub fn new(bounds: &'static Bounds) -> Self {
        Self::with(|| Histogram::new(bounds))
    }

    /// Counts one observation of `key`.
    #[inline]
    pub fn observe(&self, key: K, time: Duration) {
        if let Some(histogram) = self.cell(key) {
            histogram.observe(time);
        }
    }

    /// Reads the histogram of `key`.
    pub fn snapshot(&self, key: K) -> Option<HistogramSnapshot> {
        self.cell(key).map(Histogram::snapshot)
    }
}

impl<K: Label> Default for Counters<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Label> Default for Gauges<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Label + std::fmt::Debug, T: Send + Sync + std::fmt::Debug> std::fmt::Debug for PerLabel<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Whole nanoseconds of a time, saturating after 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "counter_test.rs"]
mod tests;
