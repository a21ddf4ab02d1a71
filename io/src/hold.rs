//! How far the event loop may go for an owner whose CPU time is limited.
//!
//! Owns the bound, which whoever keeps the account of CPU time sets, on any thread, and which the owner's tasks look at
//! before they begin something. Between two looks at the account it grows by itself, a quota a period: a task that waits
//! for it waits for a known moment, and one that uses nothing but the event loop stays within it though nobody looks.
//! Never keeps the account: it knows nothing of what is used elsewhere.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::MonoTime;
use crate::timer::Timer;

/// Up to where the event loop may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Event-loop time of the owner, in nanoseconds from its beginning, until `renewed_at`.
    pub nanos: u64,
    /// When `quota` is added for the first time.
    pub renewed_at: MonoTime,
    /// What is added. Zero counts as a nanosecond.
    pub quota: Duration,
    /// How often. Zero counts as a nanosecond.
    pub period: Duration,
}

impl Bound {
    /// When an owner that has used `used` nanoseconds may go on.
    fn passed_at(&self, used: u64) -> Option<MonoTime> {
        let over = used.checked_sub(self.nanos)?;
        let quotas = over / nanos(self.quota).max(1);
        let wait = nanos(self.period).max(1).saturating_mul(quotas);
        Some(self.renewed_at + Duration::from_nanos(wait))
    }
}

/// The bound of one owner, if there is one. Clones are the same; `Send`.
#[derive(Debug, Clone, Default)]
pub struct Hold(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// [`Bound::renewed_at`]; 0: there is no bound.
    renewed_at: AtomicU64,
    nanos: AtomicU64,
    quota: AtomicU64,
    period: AtomicU64,
    /// Only ever touched on the owner's event loop: it has a lock inside.
    changed: Notify,
}

impl Hold {
    /// Sets or removes the bound. Whoever waits finds out when its time is over, or with [`Hold::wake`]. A reader at the
    /// same moment may see parts of the old one and of the new: it is right with the next.
    pub fn set(&self, bound: Option<Bound>) {
        if let Some(Bound { nanos: most, quota, period, .. }) = bound {
            self.0.nanos.store(most, Ordering::Relaxed);
            self.0.quota.store(nanos(quota), Ordering::Relaxed);
            self.0.period.store(nanos(period), Ordering::Relaxed);
        }
        let renewed_at = bound.map_or(0, |bound| bound.renewed_at.as_nanos().max(1));
        self.0.renewed_at.store(renewed_at, Ordering::Relaxed);
    }

    /// Lets all who wait look again. To be called on the owner's event loop, which waits for nobody.
    pub fn wake(&self) {
        self.0.changed.notify_waiters();
    }

    /// Until when an owner waits that has used `used` nanoseconds of event-loop time; `None` if it need not.
    pub fn until(&self, used: u64) -> Option<MonoTime> {
        let at = self.bound()?.passed_at(used)?;
        (at > MonoTime::now()).then_some(at)
    }

    fn bound(&self) -> Option<Bound> {
        let renewed_at = self.0.renewed_at.load(Ordering::Relaxed);
        let time = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Ordering::Relaxed));
        (renewed_at != 0).then(|| Bound {
            nanos: self.0.nanos.load(Ordering::Relaxed),
            renewed_at: MonoTime::from_nanos(renewed_at),
            quota: time(&self.0.quota),
            period: time(&self.0.period),
        })
    }

    /// The whole of what an owner without a bound pays.
    pub(crate) fn is_set(&self) -> bool {
        self.0.renewed_at.load(Ordering::Relaxed) != 0
    }

    /// Waits until an owner that has used `used()` is within its bound, or `excused`.
    pub(crate) async fn passed(&self, timer: &Timer, used: impl Fn() -> u64, excused: impl Fn() -> bool) {
        loop {
            // Listens before it looks.
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let Some(until) = self.until(used()).filter(|_| !excused()) else { return };
            either(changed, timer.sleep_until(until)).await;
        }
    }
}

/// Waits for one of both.
async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = one => {}
        () = other => {}
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "hold_test.rs"]
mod tests;
