//! Changing the limits of a VM, whatever it does meanwhile. Called by its event loop, which waits for nobody.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use super::budget::Max;
use super::member::{Member, own_nice, set_nice};
use super::{CpuLimiter, DEFAULT_CPU_WEIGHT, Enforced, LOOK_AGAIN, State};
use crate::config::CpuLimits;
use crate::error::Result;

impl CpuLimiter {
    /// Changes the limits. An error changes nothing, and neither does `None`: a vCPU looks just now, and its thread may
    /// have no CPU; try again after [`LOCKED`](super::LOCKED).
    pub(crate) fn set(&self, limits: CpuLimits) -> Option<Result<()>> {
        let state = self.try_lock()?;
        Some(self.set_now(state, limits))
    }

    fn set_now(&self, mut state: MutexGuard<'_, State>, limits: CpuLimits) -> Result<()> {
        if limits.max.is_some() {
            state.make_timers()?;
        }
        state.set_weight(limits.weight())?;
        let now = self.now();
        match limits.max {
            Some(max) => state.set_max(max.into(), now, self.shard_nanos()),
            None => {
                state.tell(&self.metrics);
                state.enforced = None;
            }
        }
        // Whoever runs or waits looks again under the new limit, and whoever is parked before it enters the guest.
        self.until.store(LOOK_AGAIN, Ordering::SeqCst);
        self.look_first.store(u32::MAX, Ordering::SeqCst);
        // And until somebody has looked, the event loop goes on.
        self.hold.set(None);
        drop(state);
        self.hold.wake();
        self.vcpus.iter().for_each(|vcpu| vcpu.nudge());
        Ok(())
    }
}

impl State {
    /// Gives all threads the weight, or none.
    pub(super) fn set_weight(&mut self, weight: u32) -> Result<()> {
        if weight == self.weight {
            return Ok(());
        }
        let before = self.weight;
        if before == DEFAULT_CPU_WEIGHT {
            for member in self.members.iter_mut().flatten() {
                member.nice = own_nice(member.thread)?;
            }
        }
        for (changed, member) in self.members.iter().flatten().enumerate() {
            if let Err(error) = set_nice(member.thread, member.nice, weight) {
                // What has been lowered may be refused to be raised again; then it stays lower than it could be.
                for member in self.members.iter().flatten().take(changed) {
                    drop(set_nice(member.thread, member.nice, before));
                }
                return Err(error);
            }
        }
        self.weight = weight;
        Ok(())
    }

    fn make_timers(&mut self) -> Result<()> {
        self.members.iter_mut().flatten().try_for_each(Member::make_timers)
    }

    fn set_max(&mut self, max: Max, now: u64, shard: u64) {
        let used = self.read().saturating_add(shard);
        match &mut self.enforced {
            // The period goes on, with what is left of its quota.
            Some(enforced) if enforced.budget.max() == max => {}
            Some(enforced) => drop(enforced.budget.set_max(max, now, used)),
            none => *none = Some(Enforced::new(max, now, used, shard)),
        }
    }
}
