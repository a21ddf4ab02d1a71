//! How fast a driver may make its device's worker work.
//!
//! Owns pure arithmetic; the clock is the caller's. A write above the rate is done late, and the vCPU that made it
//! waits: it pays with its own time.

use std::time::Duration;

use ringlet_io::MonoTime;

/// Slow writes that may come at once.
const BURST: u32 = 128;
/// Time that each of them costs in the long run: 2,000 a second.
const INTERVAL: Duration = Duration::from_micros(500);

/// The meter of one device's slow writes.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// When everything that was charged is paid.
    paid: Option<MonoTime>,
}

impl Meter {
    /// Charges one write at `now`; how long it must wait, if it must.
    pub(super) fn charge(&mut self, now: MonoTime) -> Option<Duration> {
        let paid = self.paid.map_or(now, |paid| paid.max(now)) + INTERVAL;
        self.paid = Some(paid);
        let ahead = paid.since(now);
        ahead.checked_sub(INTERVAL * BURST).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
#[path = "meter_test.rs"]
mod tests;
