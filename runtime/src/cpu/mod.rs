//! CPU limits of a VM: `cpu.max`, enforced without privilege, and `cpu.weight`.
//!
//! All vCPUs of a VM share one [`Budget`], and the time that the event loop spends on the VM's devices is charged to it
//! too. What was used is read from the threads' CPU clocks, whoever looks reads all. A vCPU looks when one of its timers
//! ([`pace`]) brings it out of the guest; one that finds nothing left brings out the others, and each waits on its own
//! thread, as a vCPU that can be paused and stopped. A VM without a limit pays a load of an atomic for each exit.
//!
//! Locks: what is held here is never held while a vCPU is kicked or looked at.

mod budget;
mod change;
mod member;
mod pace;
mod weight;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use ringlet_io::{Bound, Hold, MonoTime};
use ringlet_metrics::VmMetrics;
use tokio::sync::Notify;

use crate::config::{CpuLimits, CpuMax};
use crate::error::Result;
use crate::vcpu::VcpuControl;
use crate::vcpu::control::Flow;
use budget::{Budget, Max, Standing, Stat};
use member::{Member, busiest, own_nice, set_nice, set_timers, sleeps_of_this_thread, users};
use pace::{Alarm, Look, Pace, Progress};
pub use weight::DEFAULT_CPU_WEIGHT;

/// A moment that has passed: whoever is to enter the guest looks first.
const LOOK_AGAIN: u64 = 1;

/// A VM that uses less than this in a period does nothing but be woken to be looked at. Nanoseconds.
const IDLE: u64 = 200_000;

/// When the event loop looks again, or tries to change a limit again, if a vCPU looked at the same moment.
pub(crate) const LOCKED: Duration = Duration::from_micros(200);

/// The CPU limits of one VM.
pub(crate) struct CpuLimiter {
    /// Moments are nanoseconds since this.
    origin: Instant,
    /// The same on the event loop's clock.
    mono: MonoTime,
    /// Until when the VM is throttled; 0 if it is not, [`LOOK_AGAIN`] if nobody has looked yet.
    until: AtomicU64,
    /// When the event loop is to look; 0: not at all.
    watch: AtomicU64,
    state: Mutex<State>,
    vcpus: Box<[Arc<VcpuControl>]>,
    /// How far the event loop may go for the VM until somebody looks again.
    hold: Hold,
    /// Rung when the event loop is to look.
    bell: Arc<Notify>,
    metrics: Arc<VmMetrics>,
}

struct State {
    /// The vCPU threads that are there, by the vCPU's number.
    members: Vec<Option<Member>>,
    /// CPU time of those that have left.
    gone: u64,
    enforced: Option<Enforced>,
    weight: u32,
}

/// A limit in force.
struct Enforced {
    budget: Budget,
    pace: Pace,
    /// What was used at the last look, by threads and event loop together, and by the latter alone.
    used: u64,
    shard: u64,
    /// The event loop worked for the VM between the last two looks.
    shard_active: bool,
    /// When the clocks were read last, and whether nothing was left then.
    read_at: u64,
    throttled: bool,
    idle_looks: u32,
    /// What had been used when the timers were set.
    at_alarm: u64,
    alarm: Alarm,
    /// When the event loop is to look; 0: not.
    watch_at: u64,
    /// When something was seen to have been used.
    moved_at: u64,
    /// What of the budget's account is in the metrics.
    told: Stat,
}

impl CpuLimiter {
    /// The limiter of a VM with these vCPUs, whose threads have not joined yet.
    pub(crate) fn new(
        vcpus: Vec<Arc<VcpuControl>>,
        bell: Arc<Notify>,
        metrics: Arc<VmMetrics>,
        limits: CpuLimits,
    ) -> Self {
        let state = State {
            members: vcpus.iter().map(|_| None).collect(),
            gone: 0,
            enforced: limits.max.map(|max| Enforced::new(max.into(), 0, 0, 0)),
            weight: limits.weight(),
        };
        Self {
            origin: Instant::now(),
            mono: MonoTime::now(),
            until: AtomicU64::new(0),
            watch: AtomicU64::new(0),
            state: Mutex::new(state),
            vcpus: vcpus.into(),
            hold: Hold::default(),
            bell,
            metrics,
        }
    }

    /// The calling thread runs vCPU `index` from now on.
    pub(crate) fn join(&self, index: u32) -> Result<()> {
        let mut member = Member::new()?;
        let mut state = self.lock();
        if state.weight != DEFAULT_CPU_WEIGHT {
            member.nice = own_nice(member.thread)?;
            set_nice(member.thread, member.nice, state.weight)?;
        }
        if state.enforced.is_some() {
            member.make_timers()?;
        }
        if let Some(place) = usize::try_from(index).ok().and_then(|index| state.members.get_mut(index)) {
            *place = Some(member);
        }
        Ok(())
    }

    /// The calling thread, that of vCPU `index`, is about to end.
    pub(crate) fn leave(&self, index: u32) {
        let mut state = self.lock();
        let place = usize::try_from(index).ok().and_then(|index| state.members.get_mut(index));
        if let Some(member) = place.and_then(Option::take) {
            let used = member.clock.nanos().unwrap_or(member.used);
            state.gone = state.gone.saturating_add(used);
        }
    }

    /// Whether the VM may use no CPU time now. May say so a moment too long: [`Self::obtain`] knows.
    pub(crate) fn is_throttled(&self) -> bool {
        self.until.load(Ordering::SeqCst) != 0
    }

    /// Called by vCPU `index`'s own thread, outside of the guest: returns when it may enter it, with its timers set, or
    /// when it is to do something else.
    pub(crate) fn obtain(&self, index: u32) -> Flow {
        let (Ok(place), index) = (usize::try_from(index), index) else { return Flow::Run };
        let mut waited = false;
        while self.look(place, waited) {
            let Some(vcpu) = self.vcpus.get(place) else { return Flow::Run };
            tracing::trace!(vcpu = index, "throttled");
            if vcpu.throttle(|| self.throttled_until()) == Flow::Stop {
                return Flow::Stop;
            }
            waited = true;
        }
        Flow::Run
    }

    /// Reads all clocks and settles the account. False if vCPU `index` may go on: then the timers are set. `waited`: it
    /// was throttled until now.
    fn look(&self, index: usize, waited: bool) -> bool {
        let sleeps = Sleeps { count: sleeps_of_this_thread(), waited };
        let before = self.watch.load(Ordering::SeqCst);
        let throttled = self.settle(self.lock(), Some(index), |state, left| state.go_on(index, sleeps, left));
        let watch = self.watch.load(Ordering::SeqCst);
        if watch != 0 && watch != before {
            self.bell.notify_one();
        }
        throttled
    }

    /// When the VM's event loop is to call [`Self::inspect`], if at all. The bell is rung when that changes.
    pub(crate) fn watch_at(&self) -> Option<Instant> {
        let at = self.watch.load(Ordering::SeqCst);
        (at != 0).then(|| self.origin.checked_add(Duration::from_nanos(at))).flatten()
    }

    /// Looks without disturbing a vCPU, for one that sleeps and may wake with little left. Called by the event loop,
    /// which never waits here.
    pub(crate) fn inspect(&self) {
        match self.try_lock() {
            Some(state) => drop(self.settle(state, None, State::watch_on)),
            // A vCPU looks just now, and says what comes next.
            None => self.watch.store(nanos(self.origin.elapsed() + LOCKED), Ordering::SeqCst),
        }
    }

    /// Charges what was used; `go_on` follows if there is time left. Otherwise whoever runs, but vCPU `but`, is brought
    /// out. Whether the VM is throttled.
    fn settle(
        &self,
        mut state: MutexGuard<'_, State>,
        but: Option<usize>,
        go_on: impl FnOnce(&mut State, Left),
    ) -> bool {
        let now = self.now();
        let shard = self.shard_nanos();
        let standing = state.charge(now, shard);
        state.tell(&self.metrics);
        self.hold.set(self.bound(&state, shard, standing));
        let Some(Standing::Throttled { until }) = standing else {
            self.until.store(0, Ordering::SeqCst);
            if let Some(Standing::Left { nanos, period_end }) = standing {
                go_on(&mut state, Left { now, nanos, period_end });
            }
            let watch = state.enforced.as_ref().map_or(0, |enforced| enforced.watch_at);
            self.watch.store(watch, Ordering::SeqCst);
            return false;
        };
        let before = self.until.swap(until.max(LOOK_AGAIN), Ordering::SeqCst);
        self.watch.store(0, Ordering::SeqCst);
        state.halt(but);
        drop(state);
        if before <= LOOK_AGAIN {
            let others = self.vcpus.iter().enumerate().filter(|(other, _)| Some(*other) != but);
            others.for_each(|(_, vcpu)| vcpu.nudge());
        }
        true
    }

    /// What the event loop may use for the VM before somebody looks again: what is left, and as much as a quota of debt.
    fn bound(&self, state: &State, shard: u64, standing: Option<Standing>) -> Option<Bound> {
        let budget = &state.enforced.as_ref()?.budget;
        let (Standing::Left { period_end: at, .. } | Standing::Throttled { until: at }) = standing?;
        let Max { quota, period } = budget.max();
        Some(Bound {
            nanos: shard.saturating_add(budget.room()),
            renewed_at: self.mono + Duration::from_nanos(at),
            quota: Duration::from_nanos(quota),
            period: Duration::from_nanos(period),
        })
    }

    /// What the event loop looks at before it begins something for the VM.
    pub(crate) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// The moment until which a vCPU has to wait; `None` if it may look again.
    fn throttled_until(&self) -> Option<Instant> {
        let until = self.until.load(Ordering::SeqCst);
        let at = self.origin.checked_add(Duration::from_nanos(until))?;
        (until != 0 && at > Instant::now()).then_some(at)
    }

    fn now(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    /// What the event loop has spent on the VM.
    fn shard_nanos(&self) -> u64 {
        self.metrics.shard_busy_nanos.get()
    }

    /// Not on the event loop, which would wait for a thread that may have no CPU.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How often a vCPU's thread has gone to sleep.
#[derive(Clone, Copy)]
struct Sleeps {
    count: i64,
    /// The last time, it was throttled: that says nothing of what the guest does.
    waited: bool,
}

/// CPU time that is left.
#[derive(Clone, Copy)]
struct Left {
    now: u64,
    nanos: u64,
    period_end: u64,
}

impl State {
    /// Reads what every thread has used; returns their sum.
    fn read(&mut self) -> u64 {
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
    fn charge(&mut self, now: u64, shard: u64) -> Option<Standing> {
        self.enforced.as_ref()?;
        let used = self.read().saturating_add(shard);
        let enforced = self.enforced.as_mut()?;
        let standing = enforced.budget.charge(now, used);
        let time = now.saturating_sub(enforced.read_at);
        // Waiting for a period says nothing of what they do when they may.
        if used > enforced.used && !enforced.throttled {
            enforced.shard_active = shard > enforced.shard;
            self.members.iter_mut().flatten().for_each(|member| member.active = member.progress >= time / 4);
        }
        enforced.throttled = matches!(standing, Standing::Throttled { .. });
        enforced.read_at = now;
        if used > enforced.used {
            enforced.moved_at = now;
        }
        (enforced.used, enforced.shard) = (used, shard);
        Some(standing)
    }

    /// There is time left: sets the timers. vCPU `index` looks, having slept so often.
    fn go_on(&mut self, index: usize, sleeps: Sleeps, left: Left) {
        let Self { members, enforced: Some(enforced), .. } = self else { return };
        let (period, alarm) = (enforced.budget.max().period, enforced.alarm);
        let (mut awake, mut slept) = (false, false);
        if let Some(member) = members.get_mut(index).and_then(Option::as_mut) {
            let nanos = member.used - member.at_alarm.min(member.used);
            let progress = Progress { nanos, slept: sleeps.count != member.sleeps && !sleeps.waited };
            // It was woken only if its timer was set, and not if it waited outside of the guest.
            if !sleeps.waited && (member.armed || progress.nanos >= alarm.cpu) {
                member.quiet_until = Pace::quiet_until(left.now, alarm, progress, period, member.quiet_until);
            }
            // Not as before: waiting for the lock is no sleep of the guest's.
            member.sleeps = sleeps_of_this_thread();
            slept = progress.slept;
            awake = !progress.slept || progress.nanos > 0;
        }
        let idle =
            left.now.saturating_sub(alarm.set_at) >= period && enforced.used - enforced.at_alarm < IDLE;
        enforced.idle_looks = if idle { enforced.idle_looks.saturating_add(1) } else { 0 };
        enforced.at_alarm = enforced.used;
        let holder = if awake { index } else { busiest(members).unwrap_or(index) };
        let quiet_until = members.get(holder).and_then(Option::as_ref).map_or(0, |member| member.quiet_until);
        enforced.alarm = enforced.pace.alarm(enforced.at(left, members, slept), quiet_until);
        enforced.watch_at = enforced.alarm.watch;
        set_timers(members, left.now, enforced.alarm, holder);
    }

    /// The event loop looks, and there is time left: it may have to look again.
    fn watch_on(&mut self, left: Left) {
        let Self { members, enforced: Some(enforced), .. } = self else { return };
        let still = left.now.saturating_sub(enforced.moved_at);
        let at = Pace::watch(enforced.at(left, members, false), still);
        enforced.watch_at = at.unwrap_or(0);
    }

    /// Nothing is left: vCPU `index`, which is not in the guest, needs no timer. The others keep theirs until they have
    /// come out, should this thread have to wait for a CPU before it tells them.
    fn halt(&mut self, index: Option<usize>) {
        let own = index.and_then(|index| self.members.get_mut(index)).and_then(Option::as_mut);
        if let Some(member) = own {
            member.disarm();
        }
        if let Some(enforced) = &mut self.enforced {
            enforced.watch_at = 0;
        }
    }

    /// Adds to the metrics what is not there yet.
    fn tell(&mut self, metrics: &VmMetrics) {
        let Some(enforced) = &mut self.enforced else { return };
        let (stat, told) = (enforced.budget.stat(), enforced.told);
        metrics.cpu_periods.add(stat.periods - told.periods);
        metrics.cpu_throttled_periods.add(stat.throttled_periods - told.throttled_periods);
        metrics.cpu_throttled_nanos.add(stat.throttled_nanos - told.throttled_nanos);
        metrics.cpu_overrun_nanos.add(stat.overrun_nanos - told.overrun_nanos);
        enforced.told = stat;
    }
}

impl From<CpuMax> for Max {
    fn from(max: CpuMax) -> Self {
        Self {
            quota: max.quota_us.saturating_mul(1000).max(1),
            period: max.period_us.saturating_mul(1000).max(1),
        }
    }
}

impl Enforced {
    fn new(max: Max, now: u64, used: u64, shard: u64) -> Self {
        Self {
            budget: Budget::new(max, now, used),
            pace: Pace { tick: tick() },
            used,
            shard,
            shard_active: false,
            idle_looks: 0,
            read_at: now,
            throttled: false,
            at_alarm: used,
            alarm: Alarm::default(),
            watch_at: 0,
            moved_at: now,
            told: Stat::default(),
        }
    }

    fn at(&self, left: Left, members: &[Option<Member>], sleeps: bool) -> Look {
        let Left { now, nanos, period_end } = left;
        let (users, idle_looks) = (users(members, self.shard_active), self.idle_looks);
        Look { now, left: nanos, period_end, period: self.budget.max().period, users, idle_looks, sleeps }
    }
}

/// Nanoseconds between the scheduler's ticks, which are also those of the coarse clocks (clock_getres(2)).
fn tick() -> u64 {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(tick.tv_nsec).unwrap_or(0).clamp(1_000_000, 10_000_000)
}

/// Whether this process may give threads this weight: an error now rather than of a vCPU that has started.
pub(crate) fn check_weight(limits: &CpuLimits) -> Result<()> {
    if limits.weight() <= DEFAULT_CPU_WEIGHT {
        return Ok(());
    }
    let thread = rustix::thread::gettid();
    let own = own_nice(thread)?;
    set_nice(thread, own, limits.weight())?;
    // Back up is always allowed.
    set_nice(thread, own, DEFAULT_CPU_WEIGHT)
}

#[cfg(test)]
#[path = "cpu_test.rs"]
mod tests;
