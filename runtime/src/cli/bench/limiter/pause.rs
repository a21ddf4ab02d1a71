//! For how long this machine keeps threads from computing that do nothing else: no limit of CPU time can be more exact
//! on it, since whoever stops a VM has to run.

use std::thread;
use std::time::{Duration, Instant};

use super::super::progress;
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;

/// A window, of which the longest pause counts: a period of the shortest limits.
const WINDOW: Duration = Duration::from_millis(20);

/// Measures `windows` windows, with as many threads as the largest VMs have vCPUs, if there are CPUs for them.
pub(super) fn measure(threads: usize, windows: u32, report: &mut Report) {
    progress("pauses of threads that compute");
    let begin = Instant::now();
    let each: Vec<Vec<Duration>> = thread::scope(|scope| {
        let spawned: Vec<_> = (0..threads).map(|_| scope.spawn(|| longest_pauses(begin, windows))).collect();
        spawned.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let pauses = longest_of_any(&each);
    let p99 = pauses.p99().into_iter().collect::<Samples>();
    let (group, name) = ("CPU, threads of this machine that only compute", "longest pause in 20 ms");
    report.add(Figure::new("limiter.cpu.pause", group, name, Unit::Seconds, &pauses));
    report.add(Figure::new("limiter.cpu.pause.p99", group, format!("{name}, p99"), Unit::Seconds, &p99));
}

/// The longest pause of the calling thread in each window.
fn longest_pauses(begin: Instant, windows: u32) -> Vec<Duration> {
    let mut last = Instant::now();
    let window = |index: u32| {
        let end = begin + WINDOW * (index + 1);
        let mut longest = Duration::ZERO;
        while last < end {
            let now = Instant::now();
            longest = longest.max(now - last);
            last = now;
        }
        longest
    };
    (0..windows).map(window).collect()
}

/// Of each window, the longest pause of any thread.
fn longest_of_any(each: &[Vec<Duration>]) -> Samples {
    let windows = each.iter().map(Vec::len).min().unwrap_or(0);
    let longest = |index| each.iter().filter_map(|pauses: &Vec<Duration>| pauses.get(index)).max();
    (0..windows).filter_map(longest).map(Duration::as_secs_f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_of_any_thread_counts() {
        let millis = |values: [u64; 3]| values.map(Duration::from_millis).to_vec();
        let pauses = longest_of_any(&[millis([1, 7, 2]), millis([3, 4, 2])]).summary().unwrap();
        assert_eq!((pauses.samples, pauses.min, pauses.median, pauses.max), (3, 0.002, 0.003, 0.007));
    }

    #[test]
    fn every_window_has_a_pause_that_is_no_longer_than_all_the_time() {
        let begin = Instant::now();
        let pauses = longest_pauses(begin, 3);
        let took = begin.elapsed();
        assert_eq!(pauses.len(), 3);
        assert!(took >= WINDOW * 3 && pauses.iter().all(|pause| *pause <= took), "{pauses:?} in {took:?}");
    }
}
