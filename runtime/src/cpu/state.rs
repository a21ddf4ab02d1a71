//! The account of a VM's CPU time, with its threads and timers: what is settled when somebody looks.
//!
//! Owned by the limiter's lock. Kicks nobody.

use ringlet_metrics::VmMetrics;

use super::budget::{Budget, Max, Standing, Stat};
use super::member::{
    Member, are_exact, busiest, held_by_others, holding_too_much, set_own_timer, set_timers,
    sleeps_of_this_thread, users,
};
use super::pace::{Alarm, Claim, Look, Pace, Progress, Shares};

/// A VM that uses less than this in a period does nothing but be woken to be looked at. Nanoseconds.
const IDLE: u64 = 200_000;
/// For so long, or a quota, a VM was allowed to run before it is said which of its vCPUs do: over less, one that wakes for a
/// moment would seem to. Nanoseconds.
const ACTIVITY: u64 = 4_000_000;

/// What is known of a VM's CPU time.
pub(super) struct State {
    /// The vCPU threads that are there, by the vCPU's number.
    pub(super) members: Vec<Option<Member>>,
    /// CPU time of those that have left.
    pub(super) gone: u64,
    pub(super) enforced: Option<Enforced>,
    pub(super) weight: u32,
}

/// A limit in force.
pub(super) struct Enforced {
    pub(super) budget: Budget,
    pace: Pace,
    /// What was used at the last look, by threads and event loop together, and by the latter alone.
    used: u64,
    shard: u64,
    /// The event loop worked for the VM between the last two looks.
    shard_active: bool,
    /// When the clocks were read last, and whether nothing was left then.
    read_at: u64,
    throttled: bool,
    /// For how long it was allowed to run since it was last said which vCPUs do.
    allowed: u64,
    idle_looks: u32,
    /// What had been used when the timers were set.
    at_alarm: u64,
    alarm: Alarm,
    /// When the event loop is to look; 0: not.
    pub(super) watch_at: u64,
    /// When something was seen to have been used.
    moved_at: u64,
    /// What of the budget's account is in the metrics.
    told: Stat,
}

/// How often a vCPU's thread has gone to sleep.
#[derive(Clone, Copy)]
pub(super) struct Sleeps {
    pub(super) count: i64,
    /// The last time, it was throttled: that says nothing of what the guest does.
    pub(super) waited: bool,
}

/// CPU time that is left.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) now: u64,
    pub(super) nanos: u64,
    pub(super) period_end: u64,
}

impl State {
    /// Reads what every thread has used; returns their sum.
    pub(super) fn read(&mut self) -> u64 {
        let mut sum = self.gone;
        for member in self.members.iter_mut().flatten() {
            let used = member.clock.nanos().unwrap_or(0).max(member.used);
            member.progress = used - member.used;
            member.used = used;
            sum = sum.saturating_add(used);
        }
        sum
    }

    /// Charges what was used; `None` without a limit.
    pub(super) fn charge(&mut self, now: u64, shard: u64) -> Option<Standing> {
        self.enforced.as_ref()?;
        let used = self.read().saturating_add(shard);
        let enforced = self.enforced.as_mut()?;
        let standing = enforced.budget.charge(now, used);
        let time = now.saturating_sub(enforced.read_at);
        // Waiting for a period says nothing of what they do when they may.
        if used > enforced.used && !enforced.throttled {
            enforced.shard_active = shard > enforced.shard;
            let time = enforced.allow(time);
            self.members.iter_mut().flatten().for_each(|member| member.note_progress(time));
        }
        enforced.throttled = matches!(standing, Standing::Throttled { .. });
        enforced.read_at = now;
        if used > enforced.used {
            enforced.moved_at = now;
        }
        (enforced.used, enforced.shard) = (used, shard);
        Some(standing)
    }

    /// Called by the thread of vCPU `index`: opens and closes its exact timer, as nobody else does, since to open or close it
    /// for a thread that runs takes the kernel an interrupt of that one's CPU.
    pub(super) fn keep_own_timers(&mut self, index: usize) {
        let is_limited = self.enforced.is_some();
        if let Some(member) = self.members.get_mut(index).and_then(Option::as_mut) {
            if is_limited { member.ask_for_exact() } else { member.close_timers() }
        }
    }

    /// There is time left: sets the timers. vCPU `index` looks, having slept so often. Returns who is to be brought out.
    pub(super) fn go_on(&mut self, index: usize, sleeps: Sleeps, left: Left) -> Vec<usize> {
        let Self { members, enforced: Some(enforced), .. } = self else { return Vec::new() };
        let member = members.get_mut(index).and_then(Option::as_mut);
        let nap = member.map(|member| enforced.nap(member, sleeps, left.now)).unwrap_or_default();
        let idle = left.now.saturating_sub(enforced.alarm.set_at) >= enforced.budget.max().period
            && enforced.used - enforced.at_alarm < IDLE;
        enforced.idle_looks = if idle { enforced.idle_looks.saturating_add(1) } else { 0 };
        enforced.at_alarm = enforced.used;
        let holder = if nap.awake { index } else { busiest(members).unwrap_or(index) };
        let quiet_until = members.get(holder).and_then(Option::as_ref).map_or(0, |member| member.quiet_until);
        let look = Look { sleeps: nap.slept, ..enforced.at(left, members) };
        let Some(shares) = enforced.shares(left, members) else {
            enforced.alarm = enforced.pace.alarm(look, quiet_until);
            enforced.watch_at = enforced.alarm.watch;
            set_timers(members, enforced.alarm, holder);
            return Vec::new();
        };
        let claim = claim(members, shares, index);
        enforced.alarm = enforced.pace.alarm(Look { exact: Some(claim.nanos), ..look }, quiet_until);
        enforced.watch_at = 0;
        set_own_timer(members, enforced.alarm, index, holder);
        if claim.give_back { holding_too_much(members, shares, index) } else { Vec::new() }
    }

    /// As [`Self::go_on`], a moment later: the thread lost its CPU in between, so what was read then is no longer so. Only
    /// its exact timer is set anew.
    pub(super) fn claim_anew(&mut self, index: usize, left: Left) -> Vec<usize> {
        let Self { members, enforced: Some(enforced), .. } = self else { return Vec::new() };
        let Some(shares) = enforced.shares(left, members) else { return Vec::new() };
        let claim = claim(members, shares, index);
        if let Some(member) = members.get_mut(index).and_then(Option::as_mut) {
            member.claim(claim.nanos);
        }
        if claim.give_back { holding_too_much(members, shares, index) } else { Vec::new() }
    }

    /// The event loop looks, and there is time left: it may have to look again.
    pub(super) fn watch_on(&mut self, left: Left) {
        let Self { members, enforced: Some(enforced), .. } = self else { return };
        let still = left.now.saturating_sub(enforced.moved_at);
        let at = Pace::watch(enforced.at(left, members), still);
        enforced.watch_at = at.unwrap_or(0);
    }

    /// Nothing is left: vCPU `index`, which is not in the guest, needs no timer. The others keep theirs until they have
    /// come out, should this thread have to wait for a CPU before it tells them.
    pub(super) fn halt(&mut self, index: Option<usize>) {
        let own = index.and_then(|index| self.members.get_mut(index)).and_then(Option::as_mut);
        if let Some(member) = own {
            member.disarm();
        }
        if let Some(enforced) = &mut self.enforced {
            enforced.watch_at = 0;
        }
    }

    /// Adds to the metrics what is not there yet.
    pub(super) fn tell(&mut self, metrics: &VmMetrics) {
        let Some(enforced) = &mut self.enforced else { return };
        let (stat, told) = (enforced.budget.stat(), enforced.told);
        metrics.cpu_periods.add(stat.periods - told.periods);
        metrics.cpu_throttled_periods.add(stat.throttled_periods - told.throttled_periods);
        metrics.cpu_throttled_nanos.add(stat.throttled_nanos - told.throttled_nanos);
        metrics.cpu_overrun_nanos.add(stat.overrun_nanos - told.overrun_nanos);
        enforced.told = stat;
    }
}

/// Whether a vCPU that looks has slept since the timers were set, and whether it runs.
#[derive(Clone, Copy, Default)]
struct Nap {
    slept: bool,
    awake: bool,
}

impl Enforced {
    pub(super) fn new(max: Max, now: u64, used: u64, shard: u64) -> Self {
        Self {
            budget: Budget::new(max, now, used),
            pace: Pace { tick: tick() },
            used,
            shard,
            shard_active: false,
            idle_looks: 0,
            read_at: now,
            throttled: false,
            allowed: 0,
            at_alarm: used,
            alarm: Alarm::default(),
            watch_at: 0,
            moved_at: now,
            told: Stat::default(),
        }
    }

    /// The VM was allowed to run for so much longer. For how long since it was last said which vCPUs do, if that is long
    /// enough to say it again.
    fn allow(&mut self, time: u64) -> Option<u64> {
        self.allowed = self.allowed.saturating_add(time);
        (self.allowed >= ACTIVITY.min(self.budget.max().quota)).then(|| std::mem::take(&mut self.allowed))
    }

    /// What the vCPU that looks has done since the timers were set; it is not woken for a while if it only slept.
    fn nap(&self, member: &mut Member, sleeps: Sleeps, now: u64) -> Nap {
        let nanos = member.used - member.at_alarm.min(member.used);
        let progress = Progress { nanos, slept: sleeps.count != member.sleeps && !sleeps.waited };
        // Not since the alarm was set, which another vCPU did: since its own timer was.
        let alarm = Alarm { cpu: member.due.saturating_sub(member.at_alarm), ..self.alarm };
        // It was woken only if its timer was set, and not if it waited outside of the guest.
        if !sleeps.waited && (member.armed || progress.nanos >= alarm.cpu) {
            let period = self.budget.max().period;
            member.quiet_until = Pace::quiet_until(now, alarm, progress, period, member.quiet_until);
        }
        // Not as before: waiting for the lock is no sleep of the guest's.
        member.sleeps = sleeps_of_this_thread();
        Nap { slept: progress.slept, awake: !progress.slept || progress.nanos > 0 }
    }

    /// How what is left is divided, if all threads have exact timers.
    fn shares(&self, left: Left, members: &[Option<Member>]) -> Option<Shares> {
        let active = members.iter().flatten().map(|member| member.active);
        are_exact(members).then(|| Shares::new(left.nanos, active, self.shard_active))
    }

    fn at(&self, left: Left, members: &[Option<Member>]) -> Look {
        Look {
            now: left.now,
            left: left.nanos,
            period_end: left.period_end,
            period: self.budget.max().period,
            users: users(members, self.shard_active),
            idle_looks: self.idle_looks,
            sleeps: false,
            exact: None,
        }
    }
}

/// What vCPU `index` takes that looks.
fn claim(members: &[Option<Member>], shares: Shares, index: usize) -> Claim {
    let active = members.get(index).and_then(Option::as_ref).is_some_and(|member| member.active);
    shares.claim(active, held_by_others(members, index))
}

/// Nanoseconds between the scheduler's ticks, which are also those of the coarse clocks (clock_getres(2)).
fn tick() -> u64 {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(tick.tv_nsec).unwrap_or(0).clamp(1_000_000, 10_000_000)
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
