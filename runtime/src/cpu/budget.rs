//! How much CPU time a VM may use, and has: `cpu.max` as arithmetic.
//!
//! Pure: what was used is an argument, and so is the time; both are nanoseconds since some beginning of their own. A
//! quota is granted for each period. What was used beyond it is taken off the periods after; what was not used lapses
//! with its period. To stop takes some CPU time by itself: how much is learned from the throttlings before, and the VM
//! is told to stop so much earlier; if that was too early, the rest is not lost. Never waits, reads no clock, and knows
//! neither threads nor VMs.

/// `cpu.max` in nanoseconds. Both are at least one millisecond (the configuration sees to it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Max {
    pub(crate) quota: u64,
    pub(crate) period: u64,
}

/// CPU time that is not worth entering a guest for, and counts as none: about what leaving and entering it costs. It is
/// not lost, since it is added to the next period's.
const GRAIN: u64 = 50_000;
/// The most that stopping is expected to take.
const MAX_LATENESS: u64 = 500_000;

/// What a VM may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It may use this much before the present period ends, or it is told to stop.
    Left { nanos: u64, period_end: u64 },
    /// It may use nothing until then.
    Throttled { until: u64 },
}

/// What has happened since the budget was made, in the words of cgroup v2's `cpu.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Periods that have passed, but those between two looks between which nothing was used.
    pub(crate) periods: u64,
    /// Periods in which the VM was throttled.
    pub(crate) throttled_periods: u64,
    /// Time for which it was.
    pub(crate) throttled_nanos: u64,
    /// What was used beyond the quota, and taken off periods after it.
    pub(crate) overrun_nanos: u64,
}

/// A moment at which it was known how much had been used.
#[derive(Debug, Clone, Copy)]
struct Sample {
    now: u64,
    used: u64,
}

/// What was used too much, or not, when a VM had stopped.
#[derive(Debug, Clone, Copy)]
struct Stop {
    late: u64,
    early: u64,
}

/// A VM's account of CPU time.
#[derive(Debug)]
pub(crate) struct Budget {
    max: Max,
    /// When the present period began.
    start: u64,
    /// What may have been used when the present period ends.
    granted: u64,
    seen: Sample,
    throttled: bool,
    /// How the present throttling came about, once that is known.
    stop: Option<Stop>,
    /// What is expected to be used after the VM was told to stop.
    lateness: u64,
    stat: Stat,
}

impl Budget {
    /// A budget whose first period begins at `now`, of a VM that has used `used` before.
    pub(crate) fn new(max: Max, now: u64, used: u64) -> Self {
        Self {
            max,
            start: now,
            granted: used.saturating_add(max.quota),
            seen: Sample { now, used },
            throttled: false,
            stop: None,
            lateness: 0,
            stat: Stat::default(),
        }
    }

    /// Takes note that `used` has been used until `now`, and says what the VM may do. A clock that goes back stands
    /// still.
    pub(crate) fn charge(&mut self, now: u64, used: u64) -> Standing {
        let now = now.max(self.seen.now);
        let used = used.max(self.seen.used);
        if self.throttled {
            self.stat.throttled_nanos = self.stat.throttled_nanos.saturating_add(now - self.seen.now);
        }
        let passed = now.saturating_sub(self.start) / self.max.period;
        if passed > 0 {
            self.begin_period(passed, now, used);
        }
        self.seen = Sample { now, used };
        self.stand(used)
    }

    /// Changes the limit: a new period begins at `now`. What was used beyond the old quota is still owed.
    pub(crate) fn set_max(&mut self, max: Max, now: u64, used: u64) -> Standing {
        self.charge(now, used);
        let Sample { now, used } = self.seen;
        let owed = used.saturating_sub(self.granted);
        self.count_overrun(used);
        self.max = max;
        self.lateness = self.lateness.min(max.quota / 8);
        self.start = now;
        self.granted = used.saturating_add(max.quota).saturating_sub(owed);
        self.throttled = false;
        self.stand(used)
    }

    /// What may still be used before as much as a whole quota is owed.
    pub(crate) fn room(&self) -> u64 {
        self.granted.saturating_add(self.max.quota).saturating_sub(self.seen.used)
    }

    pub(crate) fn max(&self) -> Max {
        self.max
    }

    pub(crate) fn stat(&self) -> Stat {
        self.stat
    }

    /// `passed` periods have ended since the present one began.
    fn begin_period(&mut self, passed: u64, now: u64, used: u64) {
        let start = self.start.saturating_add(passed.saturating_mul(self.max.period));
        if self.throttled {
            // Who looks now was woken for it, and that is of the new period: what all used since it began, if the others
            // did nothing yet.
            self.count_overrun(used.saturating_sub(now - start).max(self.seen.used));
            // The first of them is counted, and in the last one it may go on.
            let more = passed.min(self.periods_to_wait(used).saturating_sub(1));
            self.stat.throttled_periods = self.stat.throttled_periods.saturating_add(more);
        }
        if self.throttled || used > self.seen.used {
            self.stat.periods = self.stat.periods.saturating_add(passed);
        }
        let used = self.used_at(start, Sample { now, used });
        // It was stopped before it could use the last of it, or not woken for so little.
        let kept = if self.throttled { self.least() } else { 0 };
        let lapsed = used.saturating_add(kept).saturating_add(self.max.quota);
        let granted = self.granted.saturating_add(passed.saturating_mul(self.max.quota));
        self.granted = granted.min(lapsed);
        self.start = start;
    }

    /// The VM had used `used` when it had stopped. Counts, once for each throttling, by how much it was late.
    fn count_overrun(&mut self, used: u64) {
        if self.throttled && self.stop.is_none() {
            let (late, early) = (used.saturating_sub(self.granted), self.granted.saturating_sub(used));
            self.stop = Some(Stop { late, early });
            self.stat.overrun_nanos = self.stat.overrun_nanos.saturating_add(late);
        }
    }

    /// Expects the VM to be as late as it was, and mostly as the latest were, so that few are later.
    fn expect(&mut self, Stop { late, early }: Stop) {
        let lateness = self.lateness.saturating_add(late.min(MAX_LATENESS) / 4).saturating_sub(early / 16);
        self.lateness = lateness.min(MAX_LATENESS).min(self.max.quota / 8);
    }

    /// What had been used at `at`, between the last look and this one: nobody looked, so as if it was used evenly.
    fn used_at(&self, at: u64, present: Sample) -> u64 {
        let Sample { now, used } = self.seen;
        let (time, more) = (present.now - now, present.used - used);
        if time == 0 || at <= now {
            return used;
        }
        let part = u128::from(more) * u128::from(at - now) / u128::from(time);
        used.saturating_add(u64::try_from(part).unwrap_or(more)).min(present.used)
    }

    fn stand(&mut self, used: u64) -> Standing {
        let left = self.granted.saturating_sub(used);
        if left > self.least() {
            self.throttled = false;
            if let Some(stop) = self.stop.take() {
                self.expect(stop);
            }
            let nanos = left.saturating_sub(self.lateness).max(self.grain());
            return Standing::Left { nanos, period_end: self.start.saturating_add(self.max.period) };
        }
        if !self.throttled {
            self.throttled = true;
            self.stop = None;
            self.stat.throttled_periods = self.stat.throttled_periods.saturating_add(1);
        }
        let wait = self.periods_to_wait(used).saturating_mul(self.max.period);
        Standing::Throttled { until: self.start.saturating_add(wait) }
    }

    /// After how many further periods there is something to use: at least one.
    fn periods_to_wait(&self, used: u64) -> u64 {
        let missing = used.saturating_add(self.least()).saturating_sub(self.granted);
        missing / self.max.quota + 1
    }

    /// With no more than this left, a VM is told to stop.
    fn least(&self) -> u64 {
        self.lateness.saturating_add(self.grain())
    }

    fn grain(&self) -> u64 {
        GRAIN.min(self.max.quota / 16)
    }
}

#[cfg(test)]
#[path = "budget_test.rs"]
mod tests;
