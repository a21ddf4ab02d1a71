use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::labels::{ExitKind, VmState};

static BOUNDS: Bounds = Bounds::new(&[10, 100, 1000]);

#[test]
fn a_bound_belongs_to_its_bucket() {
    let histogram = Histogram::new(&BOUNDS);
    for nanos in [0, 10, 11, 100, 1000, 1001] {
        histogram.observe(Duration::from_nanos(nanos));
    }
    let read = histogram.snapshot();
    assert_eq!(read.buckets, [(10, 2), (100, 4), (1000, 5)]);
    assert_eq!((read.count, read.sum_nanos), (6, 2122));
}

#[test]
fn an_absurd_time_is_counted_above_the_last_bound() {
    let histogram = Histogram::new(&BOUNDS);
    histogram.observe(Duration::MAX);
    let read = histogram.snapshot();
    assert_eq!(read.count, 1);
    assert_eq!(read.buckets.last(), Some(&(1000, 0)));
}

#[test]
fn reading_changes_nothing() {
    let histogram = Histogram::new(&BOUNDS);
    histogram.observe(Duration::from_nanos(50));
    assert_eq!(histogram.snapshot(), histogram.snapshot());
}

#[test]
fn concurrent_counts_are_all_there() {
    const THREADS: u64 = 4;
    const EACH: u64 = 10_000;
    let counters = Arc::new(Counters::<ExitKind>::new());
    let histogram = Arc::new(Histogram::new(&BOUNDS));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (counters, histogram) = (counters.clone(), histogram.clone());
            thread::spawn(move || {
                for n in 0..EACH {
                    counters.inc(ExitKind::MmioWrite);
                    histogram.observe(Duration::from_nanos(n));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(counters.get(ExitKind::MmioWrite), THREADS * EACH);
    assert_eq!(counters.total(), THREADS * EACH);
    let read = histogram.snapshot();
    assert_eq!(read.count, THREADS * EACH);
    assert_eq!(read.sum_nanos, THREADS * EACH * (EACH - 1) / 2);
}

#[test]
fn a_snapshot_under_load_is_cumulative() {
    let histogram = Arc::new(Histogram::new(&BOUNDS));
    let writer = {
        let histogram = histogram.clone();
        thread::spawn(move || (0..50_000).for_each(|n| histogram.observe(Duration::from_nanos(n % 1500))))
    };
    let mut last = 0;
    while !writer.is_finished() {
        let read = histogram.snapshot();
        assert!(read.buckets.is_sorted(), "{read:?}");
        assert!(read.count >= read.buckets.last().unwrap().1, "{read:?}");
        assert!(read.count >= last, "a histogram went back");
        last = read.count;
    }
    writer.join().unwrap();
}

#[test]
fn keys_do_not_share_a_cell() {
    let gauges = Gauges::<VmState>::new();
    gauges.inc(VmState::Created);
    gauges.inc(VmState::Running);
    gauges.inc(VmState::Running);
    gauges.dec(VmState::Created);
    let all: Vec<_> = gauges.iter().map(|(state, gauge)| (state, gauge.get())).collect();
    let expected =
        [(VmState::Created, 0), (VmState::Running, 2), (VmState::Paused, 0), (VmState::Stopping, 0)];
    assert_eq!(all, expected);
}

proptest! {
    #[test]
    fn every_observation_is_in_exactly_one_bucket(times in prop::collection::vec(0u64..2000, 0..200)) {
        let histogram = Histogram::new(&BOUNDS);
        times.iter().for_each(|time| histogram.observe(Duration::from_nanos(*time)));
        let read = histogram.snapshot();
        for (bound, count) in &read.buckets {
            prop_assert_eq!(*count, times.iter().filter(|time| *time <= bound).count() as u64);
        }
        prop_assert_eq!(read.count, times.len() as u64);
        prop_assert_eq!(read.sum_nanos, times.iter().sum::<u64>());
    }
}
