//! The six meters of one level: reads, writes and both together, each in operations and in bytes.
//!
//! Owns which of them a request is charged to, and that it is charged to all of them or none. Pure, like the
//! meters: never waits.

use super::meter::{LimitError, Meter, MeterState, Taken, TokenBucket};
use super::{Cost, CostKind};
use crate::clock::MonoTime;

/// One of something for each meter of a level; `None` where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PerMeter<T> {
    /// For reads alone.
    pub read: PerUnit<T>,
    /// For writes and for operations without data (flush, discard) alone.
    pub write: PerUnit<T>,
    /// For everything together.
    pub total: PerUnit<T>,
}

/// One of something for each unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PerUnit<T> {
    /// In operations.
    pub operations: Option<T>,
    /// In bytes of data.
    pub bytes: Option<T>,
}

/// The limits of one level. As a change of limits: what is `None` stays, and [`TokenBucket::ZERO`] goes.
pub type Limits = PerMeter<TokenBucket>;
/// Saved meters of one level.
pub type LimitsState = PerMeter<MeterState>;

pub(crate) const SLOTS: usize = 6;
/// The first of the two slots that every request is charged to.
const TOTAL: usize = 4;

impl<T> Default for PerUnit<T> {
    fn default() -> Self {
        Self { operations: None, bytes: None }
    }
}

impl<T> Default for PerMeter<T> {
    fn default() -> Self {
        Self { read: PerUnit::default(), write: PerUnit::default(), total: PerUnit::default() }
    }
}

impl<T> PerMeter<T> {
    pub(crate) fn from_slots(slots: [Option<T>; SLOTS]) -> Self {
        let [a, b, c, d, e, f] = slots;
        let unit = |operations, bytes| PerUnit { operations, bytes };
        Self { read: unit(a, b), write: unit(c, d), total: unit(e, f) }
    }

    pub(crate) fn into_slots(self) -> [Option<T>; SLOTS] {
        let Self { read, write, total } = self;
        [read.operations, read.bytes, write.operations, write.bytes, total.operations, total.bytes]
    }

    /// Whether it has nothing at all.
    pub fn is_empty(&self) -> bool {
        let Self { read, write, total } = self;
        [read, write, total].iter().all(|unit| unit.operations.is_none() && unit.bytes.is_none())
    }
}

impl Limits {
    /// The change that makes `target` of these limits and leaves alone (in particular: does not fill) what is the
    /// same in both.
    #[must_use]
    pub fn change_to(&self, target: &Self) -> Self {
        let mut change = target.into_slots();
        for (new, old) in change.iter_mut().zip(self.into_slots()) {
            *new = match (old, *new) {
                (old, new) if old == new => None,
                (_, new) => Some(new.unwrap_or(TokenBucket::ZERO)),
            };
        }
        Self::from_slots(change)
    }

    /// Looks whether there can be such limits.
    ///
    /// # Errors
    /// [`LimitError::RefillTime`].
    pub fn check(&self) -> Result<(), LimitError> {
        self.into_slots().iter().flatten().try_for_each(TokenBucket::check)
    }
}

/// Which requests wait behind each other whatever the limits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Read,
    Write,
}

impl Cost {
    pub(crate) fn lane(self) -> Lane {
        if self.kind == CostKind::Read { Lane::Read } else { Lane::Write }
    }

    /// What it takes of each meter. An operation without data asks no meter of bytes.
    fn claims(self) -> [Option<u64>; SLOTS] {
        let bytes = Some(self.bytes);
        match self.kind {
            CostKind::Read => [Some(1), bytes, None, None, Some(1), bytes],
            CostKind::Write => [None, None, Some(1), bytes, Some(1), bytes],
            CostKind::Other => [None, None, Some(1), None, Some(1), None],
        }
    }
}

/// When a request may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// When all meters can take it.
    pub(crate) at: MonoTime,
    /// When those that it shares with the other lane can.
    pub(crate) total: MonoTime,
}

/// What a request took of the meters of one level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub(crate) struct Receipt([Option<(u64, Taken)>; SLOTS]);

/// The meters of one level at work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meters {
    /// Each with the number of the change that it came with.
    slots: [Option<(u64, Meter)>; SLOTS],
    changes: u64,
}

impl Meters {
    pub(crate) fn new(limits: &Limits, now: MonoTime) -> Result<Self, LimitError> {
        Self::restore(limits, &LimitsState::default(), now)
    }

    /// Meters without a saved state start full, states without a limit are forgotten.
    pub(crate) fn restore(limits: &Limits, state: &LimitsState, now: MonoTime) -> Result<Self, LimitError> {
        let mut meters = Self::default();
        for ((slot, bucket), state) in
            meters.slots.iter_mut().zip(limits.into_slots()).zip(state.into_slots())
        {
            let made = match (bucket, state) {
                (None, _) => None,
                (Some(bucket), Some(state)) => Meter::restore(bucket, state, now)?,
                (Some(bucket), None) => Meter::new(bucket, now)?,
            };
            *slot = made.map(|meter| (0, meter));
        }
        Ok(meters)
    }

    pub(crate) fn save(&self, now: MonoTime) -> LimitsState {
        PerMeter::from_slots(self.each(|meter| meter.save(now)))
    }

    pub(crate) fn limits(&self) -> Limits {
        PerMeter::from_slots(self.each(Meter::bucket))
    }

    pub(crate) fn each<T>(&self, of: impl Fn(&Meter) -> T) -> [Option<T>; SLOTS] {
        std::array::from_fn(|index| self.meter(index).map(&of))
    }

    /// Replaces the meters that `change` names by full ones; all of them, or none if one is refused.
    pub(crate) fn change(&mut self, change: &Limits, now: MonoTime) -> Result<(), LimitError> {
        let new = Self::new(change, now)?;
        self.changes += 1;
        for ((slot, new), named) in self.slots.iter_mut().zip(new.slots).zip(change.into_slots()) {
            if named.is_some() {
                *slot = new.map(|(_, meter)| (self.changes, meter));
            }
        }
        Ok(())
    }

    /// Whether reads and writes share a meter.
    pub(crate) fn has_total(&self) -> bool {
        self.slots.iter().skip(TOTAL).any(Option::is_some)
    }

    /// Whether they are as if they had been made at `now`.
    pub(crate) fn are_as_new(&self, now: MonoTime) -> bool {
        self.each(|meter| meter.is_as_new(now)).into_iter().flatten().all(|is_new| is_new)
    }

    /// When a request may go if nobody else takes anything; long ago if it is not limited.
    pub(crate) fn due(&self, cost: Cost) -> Due {
        let mut due = Due { at: MonoTime::default(), total: MonoTime::default() };
        for (index, claim) in cost.claims().into_iter().enumerate() {
            if let (Some(n), Some(meter)) = (claim, self.meter(index)) {
                due.at = due.at.max(meter.earliest(n));
                if index >= TOTAL {
                    due.total = due.total.max(meter.earliest(n));
                }
            }
        }
        due
    }

    /// Charges a request to all of the meters that it concerns.
    pub(crate) fn take(&mut self, cost: Cost, at: MonoTime) -> Receipt {
        let mut receipt = Receipt::default();
        let slots = self.slots.iter_mut().zip(cost.claims()).zip(&mut receipt.0);
        for ((slot, claim), taken) in slots {
            if let (Some(n), Some((change, meter))) = (claim, slot) {
                *taken = Some((*change, meter.take(n, at)));
            }
        }
        receipt
    }

    /// Gives back what a request took, except to meters that were replaced since: they never gave it.
    pub(crate) fn give_back(&mut self, receipt: Receipt) {
        for (slot, taken) in self.slots.iter_mut().zip(receipt.0) {
            match (slot, taken) {
                (Some((change, meter)), Some((then, taken))) if *change == then => meter.give_back(taken),
                _ => {}
            }
        }
    }

    /// The longest time that it takes of any meter, as [`Meter::length`] has it; 0 if it is not limited.
    pub(crate) fn length(&self, cost: Cost) -> u128 {
        let of = |(index, claim): (usize, Option<u64>)| Some(self.meter(index)?.length(claim?));
        cost.claims().into_iter().enumerate().filter_map(of).max().unwrap_or(0)
    }

    fn meter(&self, index: usize) -> Option<&Meter> {
        self.slots.get(index)?.as_ref().map(|(_, meter)| meter)
    }
}

#[cfg(test)]
#[path = "limits_test.rs"]
mod tests;
