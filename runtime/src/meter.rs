//! What a guest may make the host do at once, and how often after that.
//!
//! Pure arithmetic: a burst, then a rate (GCRA). Never waits: it says until when to wait, and the vCPU that caused the
//! work does.

use std::time::{Duration, Instant};

/// Work that a guest causes and pays for.
#[derive(Debug)]
pub(crate) struct Meter {
    burst: u32,
    interval: Duration,
    /// When the burst will be whole again.
    full_at: Option<Instant>,
}

impl Meter {
    /// Lets `burst` pieces of work pass at once, then one each `interval`.
    pub(crate) const fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, full_at: None }
    }

    /// Charges one piece of work at `now`; returns until when to wait if the burst is used up.
    pub(crate) fn charge(&mut self, now: Instant) -> Option<Instant> {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.interval;
        self.full_at = Some(full_at);
        full_at.checked_sub(self.interval * self.burst).filter(|&until| until > now)
    }
}

#[cfg(test)]
#[path = "meter_test.rs"]
mod tests;
