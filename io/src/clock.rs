//! The one clock of this crate: `CLOCK_MONOTONIC`, in whole nanoseconds.
//!
//! Owns nothing. Never reads wall-clock time and never goes backwards.

use std::cell::Cell;
use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point on `CLOCK_MONOTONIC`, in nanoseconds since the host booted (suspend not counted).
///
/// Unlike [`std::time::Instant`] its value can be given to the kernel and to pure arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoTime(u64);

thread_local! {
    /// What this thread read last.
    static LAST: Cell<MonoTime> = const { Cell::new(MonoTime(0)) };
}

impl MonoTime {
    /// Reads the clock (about 30 ns: the vDSO, no system call).
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        let now = Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos));
        LAST.set(now);
        now
    }

    /// The point that this thread last read, if it did after `earlier`; else the clock is read.
    pub(crate) fn read_after(earlier: Self) -> Self {
        let last = LAST.get();
        if last > earlier { last } else { Self::now() }
    }

    /// The point `nanos` nanoseconds after the clock's origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Nanoseconds from `earlier` to `self`; 0 if `earlier` is later.
    pub const fn nanos_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos_since(earlier))
    }
}

impl Add<Duration> for MonoTime {
    type Output = Self;

    /// Saturates at the end of the clock, 584 years after boot.
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}
