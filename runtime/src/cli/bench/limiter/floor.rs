//! How exactly threads without a VM keep to a quota that they share, where each looks at all their CPU clocks all the
//! time. What the machine itself does to threads (interrupts, or a host of its own that takes CPUs away, which the clocks
//! count as used) makes them late too, and who has no CPU can stop nobody: no limit of CPU time is more exact.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::super::stats::Samples;

/// A quota, the period for which it is granted, and how many threads want it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quota {
    pub(super) quota: Duration,
    pub(super) period: Duration,
    pub(super) threads: u32,
}

/// What the threads of a measurement share. Times in nanoseconds.
struct Shared {
    /// CPU time that each has used.
    used: Vec<AtomicU64>,
    /// What all together may have used.
    granted: AtomicU64,
    /// When all have stopped, and when it is known how late.
    stopped: Barrier,
}

impl Quota {
    /// By how many seconds the quota was exceeded, each of `count` times.
    pub(super) fn overruns(self, count: u32) -> Samples {
        let used: Vec<_> = (0..self.threads).map(|_| AtomicU64::new(0)).collect();
        let (granted, stopped) = (AtomicU64::new(nanos(self.quota)), Barrier::new(used.len()));
        let shared = &Shared { used, granted, stopped };
        let begin = Instant::now();
        thread::scope(|scope| {
            let work = |used| scope.spawn(move || self.work(used, count, begin, shared));
            let threads: Vec<_> = shared.used.iter().map(work).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        })
    }

    /// One of the threads. Returns the overruns of those periods in which it was the last to stop.
    fn work(self, used: &AtomicU64, count: u32, begin: Instant, shared: &Shared) -> Vec<f64> {
        let (at_first, mut overruns, mut start) = (cpu_nanos(), Vec::new(), begin);
        let (quota, mut granted) = (nanos(self.quota).max(1), nanos(self.quota));
        for _ in 0..count {
            while shared.sum() < granted {
                used.store(cpu_nanos() - at_first, Ordering::SeqCst);
            }
            if shared.stopped.wait().is_leader() {
                let overrun = shared.sum().saturating_sub(granted);
                overruns.push(Duration::from_nanos(overrun).as_secs_f64());
                // What was used too much is taken off the periods after.
                shared.granted.store(granted + quota * (overrun / quota + 1), Ordering::SeqCst);
            }
            shared.stopped.wait();
            let before = std::mem::replace(&mut granted, shared.granted.load(Ordering::SeqCst));
            let periods = u32::try_from((granted - before) / quota).unwrap_or(1);
            start = Instant::now().max(start + self.period * periods);
            thread::sleep(start.saturating_duration_since(Instant::now()));
        }
        overruns
    }
}

impl Shared {
    /// What all have used.
    fn sum(&self) -> u64 {
        self.used.iter().map(|used| used.load(Ordering::SeqCst)).sum()
    }
}

/// CPU time of the calling thread.
fn cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    nanos(Duration::try_from(time).unwrap_or_default())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_period_has_an_overrun_and_uses_what_is_left_by_the_one_before() {
        let (quota, period) = (Duration::from_millis(2), Duration::from_millis(10));
        let before = Instant::now();
        let summary = Quota { quota, period, threads: 2 }.overruns(5).summary().unwrap();
        assert_eq!(summary.samples, 5, "one of each period, whoever stopped last");
        assert!(summary.min > 0.0, "somebody sees the quota used up after it is");
        assert!(before.elapsed() >= period * 4, "periods are waited for");
    }
}
