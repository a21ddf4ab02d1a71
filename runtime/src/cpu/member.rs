//! The vCPU threads of a limited VM: their clocks, timers and niceness.

use std::io;

use rustix::process::{Pid, getpriority_process, setpriority_process};

use super::pace::{Alarm, Shares};
use super::task_clock::TaskClock;
use super::weight;
use crate::error::{Error, Result};
use crate::kvm::sys::{ThreadClock, ThreadTimer};

/// A vCPU's thread.
pub(super) struct Member {
    pub(super) clock: ThreadClock,
    pub(super) thread: Pid,
    /// The nice value that it began with.
    pub(super) nice: i32,
    pub(super) timers: Option<Timers>,
    /// What it had used at the last look.
    pub(super) used: u64,
    /// What it used between the last two looks.
    pub(super) progress: u64,
    /// What it had used when any vCPU last set timers.
    pub(super) at_alarm: u64,
    /// What it will have used when its timer of CPU time fires; 0: that is not set.
    pub(super) due: u64,
    /// Its timer of real time is set.
    pub(super) armed: bool,
    /// Its timer of CPU time that waits for ticks is set.
    pub(super) ticking: bool,
    /// It ran for a quarter of the time or more, lately and while the VM was allowed to.
    pub(super) active: bool,
    /// What it used since that was said.
    recent: u64,
    /// How often it had slept, when it last looked itself.
    pub(super) sleeps: i64,
    pub(super) quiet_until: u64,
}

/// The timers that anybody may set, and one for the thread itself.
pub(super) struct Timers {
    /// Of CPU time, at the next of the scheduler's ticks at which the thread runs.
    cpu: ThreadTimer,
    real: ThreadTimer,
    exact: Exact,
}

/// A timer of CPU time that does not wait for ticks.
enum Exact {
    /// The thread has not asked for one yet.
    Unknown,
    Refused,
    Granted(TaskClock),
}

impl Timers {
    fn exact(&self) -> Option<&TaskClock> {
        if let Exact::Granted(timer) = &self.exact { Some(timer) } else { None }
    }
}

impl Member {
    /// No timer is to fire.
    pub(super) fn disarm(&mut self) {
        if let Some(timers) = &self.timers {
            timers.cpu.set(0);
            timers.real.set(0);
            if let Some(timer) = timers.exact() {
                timer.set(0);
            }
        }
        (self.armed, self.ticking, self.due) = (false, false, 0);
    }

    pub(super) fn close_timers(&mut self) {
        self.timers = None;
        (self.armed, self.ticking, self.due) = (false, false, 0);
    }

    /// Called by the thread itself: asks for an exact timer if there are timers at all.
    pub(super) fn ask_for_exact(&mut self) {
        let Some(timers) = &mut self.timers else { return };
        if matches!(timers.exact, Exact::Unknown) {
            timers.exact = TaskClock::new(self.thread).map_or_else(
                |error| {
                    tracing::debug!(%error, "no exact timer of CPU time; `ringlet check` tells what is missing");
                    Exact::Refused
                },
                Exact::Granted,
            );
        }
    }

    /// Called by the thread itself: sets its exact timer.
    pub(super) fn claim(&mut self, nanos: u64) {
        if let Some(timer) = self.timers.as_ref().and_then(Timers::exact) {
            timer.set(nanos);
            self.due = self.used.saturating_add(nanos);
        }
    }

    /// Adds what it used between two looks; after `time`, says whether it is active.
    pub(super) fn note_progress(&mut self, time: Option<u64>) {
        self.recent = self.recent.saturating_add(self.progress);
        if let Some(time) = time {
            self.active = std::mem::take(&mut self.recent) >= time / 4;
        }
    }

    /// What its exact timer still lets it use.
    fn holds(&self) -> u64 {
        self.due.saturating_sub(self.used)
    }

    /// The calling thread.
    pub(super) fn new() -> Result<Self> {
        let clock = ThreadClock::of_this_thread().map_err(Error::io("finding a vCPU thread's CPU clock"))?;
        let thread = rustix::thread::gettid();
        Ok(Self {
            clock,
            thread,
            nice: 0,
            timers: None,
            used: 0,
            progress: 0,
            at_alarm: 0,
            due: 0,
            armed: false,
            ticking: false,
            active: false,
            recent: 0,
            sleeps: 0,
            quiet_until: 0,
        })
    }

    pub(super) fn make_timers(&mut self) -> Result<()> {
        if self.timers.is_none() {
            let make = || -> io::Result<Timers> {
                let (cpu, real) = (ThreadTimer::cpu(&self.clock)?, ThreadTimer::real(&self.clock)?);
                Ok(Timers { cpu, real, exact: Exact::Unknown })
            };
            self.timers = Some(make().map_err(Error::io(
                "making a timer for cpu.max (if there are too many, raise RLIMIT_SIGPENDING, `ulimit -i`)",
            ))?);
        }
        Ok(())
    }
}

/// What the exact timers of all but vCPU `index` still let them use.
pub(super) fn held_by_others(members: &[Option<Member>], index: usize) -> u64 {
    let others = members.iter().enumerate().filter(|(place, _)| *place != index);
    let held = others.filter_map(|(_, member)| member.as_ref()).map(Member::holds);
    held.fold(0, u64::saturating_add)
}

/// Those whose exact timers let them use more than their share: they are to be brought out, and set them anew themselves.
/// Nobody does it for them: the kernel would busily wait for the thread's CPU, which its host may just have taken away.
pub(super) fn holding_too_much(members: &[Option<Member>], shares: Shares, index: usize) -> Vec<usize> {
    let others = members.iter().enumerate().filter(|(place, _)| *place != index);
    let excess = |member: &Member| shares.is_excess(member.active, member.holds());
    others.filter(|(_, member)| member.as_ref().is_some_and(excess)).map(|(place, _)| place).collect()
}

/// Sets the exact timer of the calling thread, that of vCPU `index`, and the timer of real time for vCPU `holder`.
pub(super) fn set_own_timer(members: &mut [Option<Member>], alarm: Alarm, index: usize, holder: usize) {
    let after = alarm.wake.saturating_sub(alarm.set_at).max(1);
    for (place, member) in members.iter_mut().enumerate() {
        let Some(member) = member else { continue };
        let Some(timers) = &member.timers else { continue };
        set_real(&timers.real, &mut member.armed, place == holder, after);
        // From before all had exact ones.
        if std::mem::take(&mut member.ticking) {
            timers.cpu.set(0);
        }
        member.at_alarm = member.used;
        if place == index {
            member.claim(alarm.cpu);
        }
    }
}

/// Sets the timers of all threads: that of real time for vCPU `holder`, and for all that ran if the end is near.
pub(super) fn set_timers(members: &mut [Option<Member>], alarm: Alarm, holder: usize) {
    let after = alarm.wake.saturating_sub(alarm.set_at).max(1);
    for (place, member) in members.iter_mut().enumerate() {
        let Some(member) = member else { continue };
        let Some(timers) = &member.timers else { continue };
        timers.cpu.set(alarm.cpu);
        member.ticking = true;
        let arm = place == holder || alarm.near && member.active && member.quiet_until <= alarm.wake;
        set_real(&timers.real, &mut member.armed, arm, after);
        (member.at_alarm, member.due) = (member.used, member.used.saturating_add(alarm.cpu));
    }
}

/// Sets a timer of real time, or takes it back if it is set.
fn set_real(timer: &ThreadTimer, armed: &mut bool, arm: bool, after: u64) {
    if arm || *armed {
        timer.set(if arm { after } else { 0 });
    }
    *armed = arm;
}

/// The vCPU that used the most since the last look, if any did.
pub(super) fn busiest(members: &[Option<Member>]) -> Option<usize> {
    let present = members.iter().enumerate().filter_map(|(place, member)| Some((place, member.as_ref()?)));
    present
        .filter(|(_, member)| member.progress > 0)
        .max_by_key(|(_, member)| member.progress)
        .map(|(at, _)| at)
}

/// Whether all threads have exact timers.
pub(super) fn are_exact(members: &[Option<Member>]) -> bool {
    let mut timers = members.iter().flatten().map(|member| member.timers.as_ref());
    timers.all(|timers| timers.is_some_and(|timers| timers.exact().is_some()))
}

/// How many may use CPU time at once: the vCPUs that ran, one more that may wake, and the event loop if it does work.
pub(super) fn users(members: &[Option<Member>], shard_active: bool) -> u64 {
    let present = members.iter().flatten().count();
    let active = members.iter().flatten().filter(|member| member.active).count();
    let threads = u64::try_from(present.min(active + 1)).unwrap_or(1);
    threads + u64::from(shard_active)
}

/// How often the calling thread has gone to sleep by itself.
pub(super) fn sleeps_of_this_thread() -> i64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

pub(super) fn own_nice(thread: Pid) -> Result<i32> {
    getpriority_process(Some(thread)).map_err(Error::io("reading a vCPU thread's nice value"))
}

pub(super) fn set_nice(thread: Pid, own: i32, weight: u32) -> Result<()> {
    let nice = weight::nice_from(own, weight);
    setpriority_process(Some(thread), nice).map_err(|error| {
        let reason = format!(
            "{weight} is nice value {nice}: {error}. To go below the present one takes CAP_SYS_NICE or RLIMIT_NICE \
             (`ulimit -e`)"
        );
        Error::config("cpu.weight", reason)
    })
}
