//! CPU limits of a VM: `cpu.max`, enforced without privilege, and `cpu.weight`.
//!
//! All vCPUs of a VM share one [`Budget`], and the time that the event loop spends on the VM's devices is charged to it
//! too. What was used is read from the threads' CPU clocks, whoever looks reads all. A vCPU looks when one of its timers
//! ([`pace`]; exact ones, [`task_clock`], where the kernel grants them) brings it out of the guest; one that finds nothing left brings out the others, and each waits on its own
//! thread, as a vCPU that can be paused and stopped. A VM without a limit pays a load of an atomic for each exit.
//!
//! Locks: what is held here is never held while a vCPU is kicked or looked at.

mod budget;
mod change;
mod member;
mod pace;
mod state;
mod task_clock;
mod weight;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use ringlet_io::{Bound, Hold, MonoTime};
use ringlet_metrics::VmMetrics;
use tokio::sync::Notify;

use crate::config::{CpuLimits, CpuMax};
use crate::error::Result;
use crate::vcpu::VcpuControl;
use crate::vcpu::control::Flow;
use budget::{Max, Standing};
use member::{Member, own_nice, set_nice, sleeps_of_this_thread};
use state::{Enforced, Left, Sleeps, State};
use task_clock::TaskClock;
pub use weight::DEFAULT_CPU_WEIGHT;

/// A moment that has passed: whoever is to enter the guest looks first.
const LOOK_AGAIN: u64 = 1;

/// Clocks that were read longer ago than this when the timers are set say nothing any more: the thread that looks has lost
/// its CPU in between, and others have gone on. Nanoseconds.
const STALE: u64 = 100_000;
/// So often it looks at most: on a slow host it may always take so long.
const LOOKS: u32 = 3;

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
    /// The vCPUs that are to look before they enter the guest, whatever they do until then: a bit each.
    look_first: AtomicU32,
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
            look_first: AtomicU32::new(0),
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

    /// Whether vCPU `index` is to look before it enters the guest.
    pub(crate) fn must_look(&self, index: u32) -> bool {
        self.is_throttled() || self.look_first.load(Ordering::SeqCst) & bit(index) != 0
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
        let own_bit = u32::try_from(index).map_or(0, bit);
        self.look_first.fetch_and(!own_bit, Ordering::SeqCst);
        let before = self.watch.load(Ordering::SeqCst);
        let mut throttled = false;
        for again in 0..LOOKS {
            let (mut read_at, mut excess) = (u64::MAX, Vec::new());
            throttled = self.settle(self.lock(), Some(index), |state, left| {
                read_at = left.now;
                excess =
                    if again == 0 { state.go_on(index, sleeps, left) } else { state.claim_anew(index, left) };
            });
            self.bring_out(&excess);
            if throttled || self.now().saturating_sub(read_at) < STALE {
                break;
            }
        }
        let watch = self.watch.load(Ordering::SeqCst);
        if watch != 0 && watch != before {
            self.bell.notify_one();
        }
        throttled
    }

    /// Has these vCPUs look before they go on.
    fn bring_out(&self, places: &[usize]) {
        for place in places {
            if let (Some(vcpu), Ok(index)) = (self.vcpus.get(*place), u32::try_from(*place)) {
                self.look_first.fetch_or(bit(index), Ordering::SeqCst);
                vcpu.nudge();
            }
        }
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
        if let Some(index) = but {
            state.keep_own_timers(index);
        }
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

impl From<CpuMax> for Max {
    fn from(max: CpuMax) -> Self {
        Self {
            quota: max.quota_us.saturating_mul(1000).max(1),
            period: max.period_us.saturating_mul(1000).max(1),
        }
    }
}

/// The bit of a vCPU.
const fn bit(index: u32) -> u32 {
    1_u32.wrapping_shl(index)
}

/// Whether threads of this process may have timers of CPU time that do not wait for the scheduler's ticks.
pub(crate) fn try_exact_timer() -> std::io::Result<()> {
    TaskClock::new(rustix::thread::gettid()).map(drop)
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
