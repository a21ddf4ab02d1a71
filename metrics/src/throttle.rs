//! How many log lines somebody untrusted may cause.
//!
//! Owns: [`Gcra`], the generic cell rate algorithm on log lines (pure: the time is an argument), and
//! [`ThrottledTargets`], which applies it to the log targets of crates that log on guest input and know no
//! limit of their own. Never: reads a clock, prints, or allocates after it was made.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use crate::registry::lock;

/// A rate of events: one every `interval` in the long run, up to `burst` of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time that one event costs, in nanoseconds.
    interval: u64,
    /// How far ahead of the sustained rate a run of events may get, in nanoseconds: `(burst - 1) · interval`.
    tolerance: u64,
}

impl Rate {
    /// What a guest may cause per call site and VM, and a capped log target in all: ten lines at once, then
    /// one a second.
    pub const LOG_LINES: Self = Self::new(10, Duration::from_secs(1));

    /// `burst` events at once (0 counts as 1), then one each `interval` (at least 1 ns; at most 584 years).
    pub const fn new(burst: u32, interval: Duration) -> Self {
        let nanos = interval.as_nanos();
        let interval = if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 };
        let interval = if interval == 0 { 1 } else { interval };
        Self { interval, tolerance: interval.saturating_mul(burst.saturating_sub(1) as u64) }
    }
}

/// What to do with one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass; `suppressed` events were held back since the last one that passed.
    Pass {
        /// Events held back since the last that passed.
        suppressed: u64,
    },
    /// Hold it back; it has been counted.
    Suppress,
}

/// The state of one limited stream of events: 16 bytes, pure arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gcra {
    /// Theoretical arrival time of the next event, in nanoseconds on the caller's clock.
    arrival: u64,
    /// Events held back since the last that passed.
    suppressed: u64,
}

impl Gcra {
    /// A stream that has its whole burst.
    pub const fn new() -> Self {
        Self { arrival: 0, suppressed: 0 }
    }

    /// Judges an event that happens at `now`, in nanoseconds on any monotonic clock. A `now` that goes back is
    /// judged as if it came at its time: it never yields more events than the rate.
    pub fn admit(&mut self, now: u64, rate: Rate) -> Verdict {
        if self.arrival > now.saturating_add(rate.tolerance) {
            self.suppressed = self.suppressed.saturating_add(1);
            return Verdict::Suppress;
        }
        self.arrival = self.arrival.max(now).saturating_add(rate.interval);
        Verdict::Pass { suppressed: std::mem::take(&mut self.suppressed) }
    }
}

/// Log targets whose records a guest can cause at will, each limited to [`Rate::LOG_LINES`].
///
/// A log subscriber asks [`ThrottledTargets::admit`] before it prints a record. A target is capped together
/// with the modules below it: `virtio_queue` covers `virtio_queue::chain`. Records that come through the `log`
/// crate carry their target in normalized metadata; ask with that one.
pub struct ThrottledTargets {
    rate: Rate,
    targets: Box<[(&'static str, Mutex<Gcra>)]>,
}

impl ThrottledTargets {
    /// Crates below Ringlet that log on what a guest wrote.
    pub const DEFAULT: &'static [&'static str] =
        &["virtio_queue", "vm_superio", "vm_memory", "vm_device", "kvm_ioctls", "linux_loader"];

    /// Caps `targets` at `rate` each.
    pub fn new(targets: &[&'static str], rate: Rate) -> Self {
        Self { rate, targets: targets.iter().map(|target| (*target, Mutex::default())).collect() }
    }

    /// Judges a record of `target` at `now`, the time since any fixed instant. What is not capped passes.
    pub fn admit(&self, target: &str, now: Duration) -> Verdict {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        match self.targets.iter().find(|(capped, _)| covers(capped, target)) {
            Some((_, state)) => lock(state).admit(now, self.rate),
            None => Verdict::Pass { suppressed: 0 },
        }
    }

    /// Whether records of `target` are limited at all.
    pub fn is_capped(&self, target: &str) -> bool {
        self.targets.iter().any(|(capped, _)| covers(capped, target))
    }
}

impl Default for ThrottledTargets {
    fn default() -> Self {
        Self::new(Self::DEFAULT, Rate::LOG_LINES)
    }
}

impl fmt::Debug for ThrottledTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.targets.iter().map(|(target, _)| target)).finish()
    }
}

/// Whether `target` is `capped` or a module inside it.
fn covers(capped: &str, target: &str) -> bool {
    target.strip_prefix(capped).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
#[path = "throttle_test.rs"]
mod tests;
