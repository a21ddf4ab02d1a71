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
//! wait to the end: a queue peeks a request, awaits [`Limiter::admit`], and only then consumes it.

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
}

impl Levels {
    async fn admit(&self, cost: Cost) {
        if self.member.is_none() && self.local.iter().all(Level::is_open) {
            return;
        }
        let now = MonoTime::now();
        let asked = self.asked(now);
        if !self.admit_at_once(cost, asked, now) {
            self.wait(cost, asked).await;
        }
    }

    /// When a request would have been asked for, had the shard admitted the one before in time. Without this, tokens
    /// that a small bucket has no room for are lost while a shard is kept from running.
    fn asked(&self, now: MonoTime) -> MonoTime {
        let Late { charged, admitted } = self.late.get();
        let late = admitted.since(charged).min(CATCH_UP);
        MonoTime::from_nanos(now.nanos_since(MonoTime::default() + late))
    }

    fn admit_at_once(&self, cost: Cost, asked: MonoTime, now: MonoTime) -> bool {
        if !self.local.iter().all(|level| level.is_free(cost.lane()) && level.due(cost).at <= now) {
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

    /// Waits at one level after the other, keeping its place at each.
    async fn wait(&self, cost: Cost, asked: MonoTime) {
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
            let (due, now) = (self.due(cost).max(asked), MonoTime::now());
            if due > now {
                continue;
            }
            let Some(member) = &self.member else { return self.commit(cost, due, now) };
            let application = member.apply(cost, due);
            let granted = application.granted(&self.timer).await;
            let (due, now) = (self.due(cost).max(granted), MonoTime::now());
            if due <= now {
                application.confirm(now);
                return self.commit(cost, due, now);
            }
            // Or then; what it was granted goes back.
        }
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
