//! What a queue asks before it spends anything: the place of a VM's I/O limits.
//!
//! ```text
//!  queue ─► device ─► VM ──► tenant ─► host ──► charged to all of them at once, as of the instant at which
//!           └─ Level ─┘ Member └─ Shared ─┘      the last of them had the tokens
//! ```
//! A device and a VM are limited on their shard, where requests wait in the order of asking ([`Level`]). Tenants
//! and the host are limited across shards ([`Shared`]), and there each VM has its first request of each lane
//! (reads; writes and all else) in the queue, in fair order ([`Fair`]).
//!
//! Owns the question (`admit`) and its answer. Never does I/O, and takes nothing for a request that did not
//! wait to the end: a queue peeks a request, awaits [`Limiter::admit`], and only then consumes it. What a request costs
//! may show only when it is done ([`Limiter::admit_and`]).

mod fair;
mod gate;
mod grants;
mod level;
mod limits;
mod meter;
mod seed;
mod shared;
mod stats;
mod tree;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::clock::MonoTime;
use crate::timer::Timer;
use level::Place;
use shared::Application;

pub use fair::{DEFAULT_WEIGHT, Fair, WEIGHTS};
pub use gate::Gate;
pub use level::Level;
pub use limits::{Limits, LimitsState, PerMeter, PerUnit};
pub use meter::{LimitError, MAX_REFILL_TIME, Meter, MeterState, Taken, TokenBucket};
pub use seed::LimiterSeed;
pub use shared::{Member, Shared};
pub use stats::LimiterStats;

/// How far back a request may be charged that follows one which was admitted late: what a shard that was kept from
/// running makes up for.
const CATCH_UP: Duration = Duration::from_millis(10);

/// What kind of work a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CostKind {
    /// Data comes from the host: a disk read, a frame that is received.
    Read,
    /// Data goes to the host: a disk write, a frame that is sent.
    Write,
    /// No data to speak of: flush, discard, identification. Counts as a write of no bytes.
    Other,
}

/// What one request costs: one operation, and so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// What kind of operation it is.
    pub kind: CostKind,
    /// Bytes of data, 0 for [`CostKind::Other`].
    pub bytes: u64,
}

impl Cost {
    /// The cost of reading `bytes`.
    pub const fn read(bytes: u64) -> Self {
        Self { kind: CostKind::Read, bytes }
    }

    /// The cost of writing `bytes`.
    pub const fn write(bytes: u64) -> Self {
        Self { kind: CostKind::Write, bytes }
    }

    /// The cost of an operation without data.
    pub const fn other() -> Self {
        Self { kind: CostKind::Other, bytes: 0 }
    }
}

/// The limits that hold for one device. Clones are the same limits; `!Send` (see [`LimiterSeed`]).
#[derive(Debug, Clone, Default)]
pub struct Limiter(Rule);

#[derive(Debug, Clone, Default)]
enum Rule {
    #[default]
    Unlimited,
    Gated(Gate),
    Levels(Rc<Levels>),
}

/// The levels that a request passes.
#[derive(Debug)]
struct Levels {
    timer: Timer,
    /// From the device outwards; the last is the entry of `member`.
    local: Vec<Level>,
    member: Option<Member>,
    late: Cell<Late>,
}

/// How late the last request was admitted.
#[derive(Debug, Clone, Copy, Default)]
struct Late {
    charged: MonoTime,
    admitted: MonoTime,
}

impl Limiter {
    /// Admits everything at once.
    pub const fn unlimited() -> Self {
        Self(Rule::Unlimited)
    }

    /// Admits what `gate` lets through, in the order of asking. For tests of whoever asks.
    pub fn gated(gate: Gate) -> Self {
        Self(Rule::Gated(gate))
    }

    /// Admits what all of `levels` have tokens for. They are in the order in which a request waits at them: the
    /// device's first. Levels may be shared with other limiters of the shard; `timer` is the shard's.
    pub fn levels(timer: &Timer, levels: Vec<Level>) -> Self {
        Self::with(timer, levels, None)
    }

    /// As [`Limiter::levels`], and beyond those what the tenant and the host of `member` have tokens for.
    pub fn within(timer: &Timer, mut levels: Vec<Level>, member: &Member) -> Self {
        levels.push(member.entry().clone());
        Self::with(timer, levels, Some(member.clone()))
    }

    fn with(timer: &Timer, local: Vec<Level>, member: Option<Member>) -> Self {
        Self(Rule::Levels(Rc::new(Levels { timer: timer.clone(), local, member, late: Cell::default() })))
    }

    /// Waits until a request of this cost may be done, and charges it.
    ///
    /// Requests of a kind are admitted in the order of asking, and so are all of them where reads and writes share
    /// a limit. Cancel-safe: dropped while it waits, nothing is charged.
    pub async fn admit(&self, cost: Cost) {
        match &self.0 {
            Rule::Unlimited => {}
            Rule::Gated(gate) => gate.pass(cost).await,
            Rule::Levels(levels) => levels.admit(cost).await,
        }
    }

    /// Charges a request of this cost if it may be done at once; else nothing is charged, and it has no place among those
    /// that wait.
    pub fn try_admit(&self, cost: Cost) -> bool {
        match &self.0 {
            Rule::Unlimited => true,
            Rule::Gated(gate) => gate.try_pass(cost),
            Rule::Levels(levels) => levels.try_admit(cost),
        }
    }

    /// Waits until a request may be done whose size shows only when it is done: until there is an operation, and nothing
    /// is owed in bytes. Then does it by `act`, at once, and charges the bytes that it gives; the balance may become
    /// negative by them. If it gives `None` there was nothing to do, and nothing is charged.
    ///
    /// In the order of asking, and cancel-safe, as [`Limiter::admit`].
    pub async fn admit_and<T>(&self, kind: CostKind, act: impl FnOnce() -> (T, Option<u64>)) -> T {
        match &self.0 {
            Rule::Unlimited => act().0,
            Rule::Gated(gate) => gate.pass_and(kind, act).await,
            Rule::Levels(levels) => levels.admit_and(kind, act).await,
        }
    }
}

/// Whether the size of a request that waits is known.
#[derive(Debug, Clone, Copy)]
enum Size {
    Known,
    /// It shows when the request is done.
    Open,
}

/// What a request was admitted with. Nothing was charged at the levels of its shard; above them, what its
/// `application` was granted, which goes back if it is dropped.
struct Admission<'a> {
    at: MonoTime,
    application: Option<Application<'a>>,
}

impl Levels {
    async fn admit(&self, cost: Cost) {
        if self.is_open() {
            return;
        }
        let now = MonoTime::now();
        let asked = self.asked(now);
        if !self.admit_at_once(cost, asked, now) {
            self.wait(cost, Size::Known, asked, |admission| self.charge(admission, cost)).await;
        }
    }

    fn try_admit(&self, cost: Cost) -> bool {
        if self.is_open() {
            return true;
        }
        let now = MonoTime::now();
        self.admit_at_once(cost, self.asked(now), now)
    }

    async fn admit_and<T>(&self, kind: CostKind, act: impl FnOnce() -> (T, Option<u64>)) -> T {
        if self.is_open() {
            return act().0;
        }
        let (least, now) = (Cost { kind, bytes: 0 }, MonoTime::now());
        let asked = self.asked(now);
        let act = |admission: Admission<'_>| {
            let (done, bytes) = act();
            if let Some(bytes) = bytes {
                self.charge(admission, Cost { kind, bytes });
            }
            done
        };
        match self.admission(least, asked, now) {
            Some(admission) => act(admission),
            None => self.wait(least, Size::Open, asked, act).await,
        }
    }

    /// Whether nothing limits anything, and nobody waits.
    fn is_open(&self) -> bool {
        self.member.is_none() && self.local.iter().all(Level::is_open)
    }

    /// When a request would have been asked for, had the shard admitted the one before in time. Without this, tokens
    /// that a small bucket has no room for are lost while a shard is kept from running.
    fn asked(&self, now: MonoTime) -> MonoTime {
        let Late { charged, admitted } = self.late.get();
        let late = admitted.since(charged).min(CATCH_UP);
        MonoTime::from_nanos(now.nanos_since(MonoTime::default() + late))
    }

    /// Whether a request need not wait at the levels of its shard.
    fn is_due(&self, cost: Cost, now: MonoTime) -> bool {
        self.local.iter().all(|level| level.is_free(cost.lane()) && level.due(cost).at <= now)
    }

    /// Admits a request that need not wait and whose size shows only when it is done; it is left to be charged.
    fn admission(&self, least: Cost, asked: MonoTime, now: MonoTime) -> Option<Admission<'_>> {
        if !self.is_due(least, now) {
            return None;
        }
        let due = self.due(least);
        let Some(member) = &self.member else {
            return Some(Admission { at: instant(due, asked, now), application: None });
        };
        let (application, at) = member.open_at_once(least.kind, due, asked, now)?;
        Some(Admission { at, application: Some(application) })
    }

    fn admit_at_once(&self, cost: Cost, asked: MonoTime, now: MonoTime) -> bool {
        if !self.is_due(cost, now) {
            return false;
        }
        let due = self.due(cost);
        let at = match &self.member {
            None => Some(instant(due, asked, now)),
            Some(member) => member.admit_at_once(cost, due, asked, now),
        };
        if let Some(at) = at {
            self.commit(cost, at, now);
        }
        at.is_some()
    }

    /// Waits at one level after the other, keeping its place at each as long as those before have tokens for it, and
    /// then does `act`.
    async fn wait<T>(
        &self,
        cost: Cost,
        size: Size,
        asked: MonoTime,
        act: impl FnOnce(Admission<'_>) -> T,
    ) -> T {
        let mut places = Vec::with_capacity(self.local.len());
        loop {
            for (index, level) in self.local.iter().enumerate() {
                if places.len() <= index {
                    places.push(level.enter(cost));
                }
                if let Some(place) = places.get_mut(index) {
                    place.ready(&self.timer).await;
                }
            }
            // A limit may have been changed while the request waited at the next one.
            let due = self.due(cost).max(asked);
            if due > MonoTime::now() {
                self.go_back(&mut places, cost);
                continue;
            }
            let Some(member) = &self.member else {
                return act(Admission { at: due, application: None });
            };
            let application = match size {
                Size::Known => member.apply(cost, due),
                Size::Open => member.open(cost.kind, due),
            };
            let granted = application.granted(&self.timer).await;
            let due = self.due(cost).max(granted);
            if due <= MonoTime::now() {
                return act(Admission { at: due, application: Some(application) });
            }
            // Or then; what it was granted goes back.
            drop(application);
            self.go_back(&mut places, cost);
        }
    }

    /// Gives up the places beyond the first level that has no tokens (any more): there it would hold up others.
    fn go_back(&self, places: &mut Vec<Place>, cost: Cost) {
        let now = MonoTime::now();
        if let Some(short) = self.local.iter().position(|level| level.due(cost).at > now) {
            places.truncate(short + 1);
        }
    }

    /// Charges what an admitted request costs after all.
    fn charge(&self, admission: Admission<'_>, cost: Cost) {
        let (Admission { at, application }, now) = (admission, MonoTime::now());
        if let Some(application) = application {
            application.confirm(cost, now);
        }
        self.commit(cost, at, now);
    }

    fn due(&self, cost: Cost) -> MonoTime {
        self.local.iter().map(|level| level.due(cost).at).max().unwrap_or_default()
    }

    fn commit(&self, cost: Cost, at: MonoTime, now: MonoTime) {
        self.late.set(Late { charged: at, admitted: now });
        self.local.iter().for_each(|level| level.commit(cost, at));
    }
}

/// As of when a request is charged that need not wait. One that would not have had to wait when it counts as asked
/// for is not held back, and has nothing to make up for.
fn instant(due: MonoTime, asked: MonoTime, now: MonoTime) -> MonoTime {
    if due > asked { due } else { now }
}

#[cfg(test)]
#[path = "limiter_test.rs"]
mod tests;

#[cfg(test)]
#[path = "afterwards_test.rs"]
mod afterwards_tests;
