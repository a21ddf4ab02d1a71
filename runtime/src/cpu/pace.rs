//! When to look again at what a VM has used: the two timers that a CPU limit is enforced with.
//!
//! A timer of a thread's CPU time never disturbs a vCPU that is halted. Where it is exact, it is all that is needed, and
//! real time only tells of new periods. Where it fires only at the scheduler's ticks, it may be one of them too late.
//! A timer of real time is exact, but wakes a vCPU that is halted. So the first is set a tick early,
//! and the second for the rest; if the second finds that the vCPU has slept instead, it is not set again for a period,
//! or until the first has fired; meanwhile, and wherever a vCPU sleeps now and then so that ticks may miss it, the event
//! loop looks, which disturbs no vCPU. Pure: all times are nanoseconds, and arguments.

/// A step that is not worth being divided further: what entering and leaving a guest costs.
const STEP: u64 = 50_000;
/// Beyond a tick: how late timers of CPU time are at most, and a while to use the other timer for.
const SLACK: u64 = 500_000;
/// The least that an exact timer is set to: it fires again and again until the thread has come out and set it anew, so
/// this is what that takes, on slow hosts too.
const SHORTEST: u64 = 100_000;
/// How long a VM that does nothing is left alone at most.
const LONGEST: u64 = 1_000_000_000;

/// What is known when timers are set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) now: u64,
    /// What the VM may use before `period_end`.
    pub(crate) left: u64,
    pub(crate) period_end: u64,
    pub(crate) period: u64,
    /// How many may be using it at once.
    pub(crate) users: u64,
    /// How many looks in a row have found that nothing was used.
    pub(crate) idle_looks: u32,
    /// The vCPU that looks has slept since the timers were set: it may be asleep at every tick.
    pub(crate) sleeps: bool,
    /// With timers of CPU time that do not wait for ticks: what the vCPU that looks may use before it looks again.
    pub(crate) exact: Option<u64>,
}

/// What one may use that looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) nanos: u64,
    /// The others have to give back what is more than their shares.
    pub(crate) give_back: bool,
}

/// What is left, divided among threads with exact timers, each of which sets its own. Together they are allowed what there
/// is, and a few times [`SHORTEST`] each. One that ran lately gets more than one that did not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shares {
    left: u64,
    weights: u64,
}

impl Shares {
    /// How many times as much one gets that ran.
    const ACTIVE: u64 = 8;

    /// Of vCPUs that ran or did not, and an event loop that did or did not.
    pub(crate) fn new(left: u64, vcpus: impl Iterator<Item = bool>, shard_active: bool) -> Self {
        let vcpus: u64 = vcpus.map(Self::weight).sum();
        Self { left, weights: vcpus + u64::from(shard_active) * Self::ACTIVE }
    }

    /// What one gets that ran or did not: at least what it takes to come out and look.
    pub(crate) fn of(self, active: bool) -> u64 {
        let share =
            u128::from(self.left) * u128::from(Self::weight(active)) / u128::from(self.weights.max(1));
        u64::try_from(share).unwrap_or(u64::MAX).max(SHORTEST)
    }

    /// What one takes that looks, while the timers of the others still let these use `held`. They need not give any of it
    /// back as long as something is free: to bring one out costs all of them, and it may be asleep.
    pub(crate) fn claim(self, active: bool, held: u64) -> Claim {
        let (share, free) = (self.of(active), self.left.saturating_sub(held));
        let give_back = free < 2 * SHORTEST;
        Claim { nanos: if give_back { share } else { share.min(free).max(SHORTEST) }, give_back }
    }

    /// Whether one that may still use `nanos` is to give some of it back, rather than to use it first.
    pub(crate) fn is_excess(self, active: bool, nanos: u64) -> bool {
        nanos > self.of(active).saturating_add(2 * SHORTEST)
    }

    fn weight(active: bool) -> u64 {
        if active { Self::ACTIVE } else { 1 }
    }
}

impl Look {
    /// What each may use of what is left, if all do.
    fn share(self) -> u64 {
        (self.left / self.users.max(1)).max(self.left.min(STEP))
    }
}

/// What the timers are set to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Alarm {
    /// When they were set.
    pub(crate) set_at: u64,
    /// CPU time, from now: of any vCPU, or with exact timers of the one that looks.
    pub(crate) cpu: u64,
    /// The moment at which the vCPU that holds the timer of real time looks in any case.
    pub(crate) wake: u64,
    /// The end is near, so every vCPU that ran looks at that moment: any of them may wait for a CPU then.
    pub(crate) near: bool,
    /// The moment at which the event loop looks, because no vCPU is to be woken though the end is near, or ticks find
    /// it asleep; 0: none.
    pub(crate) watch: u64,
}

/// What a vCPU did between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// CPU time that it used.
    pub(crate) nanos: u64,
    /// It has slept meanwhile; else it ran, or waited for a CPU.
    pub(crate) slept: bool,
}

/// The timers of one VM's vCPUs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Time between two of the scheduler's ticks.
    pub(crate) tick: u64,
}

impl Pace {
    /// What to set the timers to, if the vCPU that looks is not to be woken before `quiet_until`.
    pub(crate) fn alarm(self, look: Look, quiet_until: u64) -> Alarm {
        let Look { now, period_end, period, idle_looks, sleeps, exact, .. } = look;
        let alarm = |cpu, wake| Alarm { set_at: now, cpu, wake, near: false, watch: 0 };
        let (share, margin) = (look.share(), self.margin());
        let early = exact.unwrap_or_else(|| share.saturating_sub(margin).max(share / 8).max(1));
        if idle_looks > 0 {
            let pause = period.saturating_mul(1 << idle_looks.min(16)).min(LONGEST.max(period));
            return alarm(early, now.saturating_add(pause).max(quiet_until));
        }
        if exact.is_some() {
            return alarm(early, period_end.max(quiet_until));
        }
        let end = now.saturating_add(share).min(period_end);
        if share > margin.saturating_add(SLACK) {
            let wake = period_end.max(quiet_until);
            return if sleeps { Alarm { watch: end, ..alarm(share, wake) } } else { alarm(early, wake) };
        }
        if end < quiet_until {
            return Alarm { watch: end, ..alarm(share, quiet_until) };
        }
        Alarm { near: true, ..alarm(share, end) }
    }

    /// When the event loop looks again, after nothing was used for `still`. Not at all after a whole period of that: then
    /// the vCPUs' timers are enough.
    pub(crate) fn watch(look: Look, still: u64) -> Option<u64> {
        let Look { now, period_end, period, .. } = look;
        let least = if still == 0 { 2 * STEP } else { 8 * STEP };
        let at = now.saturating_add(look.share().max(least));
        (still < period).then_some(at.min(period_end.max(now.saturating_add(STEP))))
    }

    /// How much too late a timer of CPU time may fire, and some more.
    fn margin(self) -> u64 {
        self.tick.saturating_add(SLACK)
    }

    /// Until when a vCPU is not to be woken, after it was found at `now` to have made `progress` under `alarm`; `before`
    /// is what was said the last time.
    pub(crate) fn quiet_until(now: u64, alarm: Alarm, progress: Progress, period: u64, before: u64) -> u64 {
        if progress.slept && now >= alarm.wake && progress.nanos < now.saturating_sub(alarm.set_at) / 4 {
            now.saturating_add(period)
        } else if progress.nanos >= alarm.cpu {
            // It runs: the timer of its CPU time has fired, or will with the next tick.
            0
        } else {
            before
        }
    }
}

#[cfg(test)]
#[path = "pace_test.rs"]
mod tests;
