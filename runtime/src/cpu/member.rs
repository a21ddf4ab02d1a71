//! The vCPU threads of a limited VM: their clocks, timers and niceness.

use std::io;

use rustix::process::{Pid, getpriority_process, setpriority_process};

use super::pace::Alarm;
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
    /// What it had used when the timers were set.
    pub(super) at_alarm: u64,
    /// Its timer of real time is set.
    pub(super) armed: bool,
    /// It ran for a quarter of the time or more between the last two looks at a VM that might run.
    pub(super) active: bool,
    /// How often it had slept, when it last looked itself.
    pub(super) sleeps: i64,
    pub(super) quiet_until: u64,
}

pub(super) struct Timers {
    pub(super) cpu: ThreadTimer,
    pub(super) real: ThreadTimer,
}

impl Member {
    /// No timer is to fire.
    pub(super) fn disarm(&mut self) {
        if let Some(timers) = &self.timers {
            timers.cpu.set(0);
            timers.real.set(0);
        }
        self.armed = false;
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
            armed: false,
            active: true,
            sleeps: 0,
            quiet_until: 0,
        })
    }

    pub(super) fn make_timers(&mut self) -> Result<()> {
        if self.timers.is_none() {
            let make = || -> io::Result<Timers> {
                let (cpu, real) = (ThreadTimer::cpu(&self.clock)?, ThreadTimer::real(&self.clock)?);
                Ok(Timers { cpu, real })
            };
            self.timers = Some(make().map_err(Error::io(
                "making a timer for cpu.max (if there are too many, raise RLIMIT_SIGPENDING, `ulimit -i`)",
            ))?);
        }
        Ok(())
    }
}

/// Sets the timers of all threads: that of real time for vCPU `holder`, and for all that ran if the end is near.
pub(super) fn set_timers(members: &mut [Option<Member>], now: u64, alarm: Alarm, holder: usize) {
    let after = alarm.wake.saturating_sub(now).max(1);
    for (place, member) in members.iter_mut().enumerate() {
        let Some(member) = member else { continue };
        let Some(timers) = &member.timers else { continue };
        timers.cpu.set(alarm.cpu);
        let arm = place == holder || alarm.near && member.active && member.quiet_until <= alarm.wake;
        if arm || member.armed {
            timers.real.set(if arm { after } else { 0 });
        }
        (member.armed, member.at_alarm) = (arm, member.used);
    }
}

/// The vCPU that used the most since the last look, if any did.
pub(super) fn busiest(members: &[Option<Member>]) -> Option<usize> {
    let present = members.iter().enumerate().filter_map(|(place, member)| Some((place, member.as_ref()?)));
    present
        .filter(|(_, member)| member.progress > 0)
        .max_by_key(|(_, member)| member.progress)
        .map(|(at, _)| at)
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
