//! Who goes next where several want the same: start-time fair queuing by weight.
//!
//! Each flow has a start time on a clock of its own making, which a request moves on by its length divided by
//! the weight. The flow that is furthest behind goes next. Of two flows that always wait, neither gets further
//! ahead of its share than one request of each (Goyal, Vin, Cheng: Start-time Fair Queueing, 1996).
//!
//! Pure: knows no limits and no real time. Allocates only when a flow joins.

use std::ops::RangeInclusive;

use slab::Slab;

/// Weights that a flow may have, as those of cgroup v2.
pub const WEIGHTS: RangeInclusive<u32> = 1..=10_000;
/// The weight of a flow that has no particular one, as in cgroup v2.
pub const DEFAULT_WEIGHT: u32 = 100;

/// What a flow that comes back is owed at most: 10 ms of everything there is, as a length. Without it whoever
/// needs a moment to ask again would lose that moment's turns; with more, the idle could save up.
const CREDIT: u128 = 10_000_000 << 20;
/// Fractions of a length that are kept when it is divided by a weight.
const FRACTION: u128 = 1 << 14;

/// Flows and the order in which they go. A flow carries an item that its owner knows it by.
#[derive(Debug, Clone)]
pub struct Fair<T> {
    flows: Slab<Flow<T>>,
    /// Who waits, by start time and then by arrival.
    order: Vec<Turn>,
    /// The start time of whoever went last.
    clock: u128,
    arrivals: u64,
}

#[derive(Debug, Clone)]
struct Flow<T> {
    weight: u32,
    /// When its next request starts, unless it comes later.
    start: u128,
    turn: Option<Turn>,
    item: T,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    start: u128,
    arrival: u64,
    flow: usize,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self { flows: Slab::new(), order: Vec::new(), clock: 0, arrivals: 0 }
    }
}

impl<T> Fair<T> {
    /// Adds a flow that does not wait; gives its number. `weight` is brought into [`WEIGHTS`].
    pub fn join(&mut self, weight: u32, item: T) -> usize {
        let weight = weight.clamp(*WEIGHTS.start(), *WEIGHTS.end());
        let flow = self.flows.insert(Flow { weight, start: 0, turn: None, item });
        self.order.reserve(self.flows.len().saturating_sub(self.order.len()));
        flow
    }

    /// Removes a flow.
    pub fn leave(&mut self, flow: usize) {
        self.depart(flow);
        let _ = self.flows.try_remove(flow);
    }

    /// Changes a flow's weight, from its next request on.
    pub fn weigh(&mut self, flow: usize, weight: u32) {
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.weight = weight.clamp(*WEIGHTS.start(), *WEIGHTS.end());
        }
    }

    /// A flow waits from now on.
    pub fn arrive(&mut self, flow: usize) {
        let Some(it) = self.flows.get_mut(flow).filter(|flow| flow.turn.is_none()) else { return };
        it.start = it.start.max(self.clock.saturating_sub(share(CREDIT, it.weight)));
        self.arrivals += 1;
        let turn = Turn { start: it.start, arrival: self.arrivals, flow };
        it.turn = Some(turn);
        insert(&mut self.order, turn);
    }

    /// A flow no longer waits, and has had nothing.
    pub fn depart(&mut self, flow: usize) {
        if let Some(turn) = self.flows.get_mut(flow).and_then(|flow| flow.turn.take()) {
            remove(&mut self.order, turn);
        }
    }

    /// A flow that waits had a request of this length (in any unit, the same for all). It goes on waiting.
    pub fn served(&mut self, flow: usize, length: u128) {
        let Some(it) = self.flows.get_mut(flow) else { return };
        self.clock = self.clock.max(it.start);
        let start = it.start.saturating_add(share(length, it.weight));
        self.move_to(flow, start);
    }

    /// A request was given up after all: the flow is where it was without it.
    pub fn undo(&mut self, flow: usize, length: u128) {
        let Some(it) = self.flows.get(flow) else { return };
        let start = it.start.saturating_sub(share(length, it.weight));
        self.move_to(flow, start);
    }

    /// Who goes `nth`, from 0.
    pub fn nth(&self, nth: usize) -> Option<&T> {
        let turn = self.order.get(nth)?;
        self.flows.get(turn.flow).map(|flow| &flow.item)
    }

    /// Whether nobody waits.
    pub fn is_idle(&self) -> bool {
        self.order.is_empty()
    }

    fn move_to(&mut self, flow: usize, start: u128) {
        let Some(it) = self.flows.get_mut(flow) else { return };
        it.start = start;
        if let Some(turn) = &mut it.turn {
            remove(&mut self.order, *turn);
            turn.start = start;
            insert(&mut self.order, *turn);
        }
    }
}

/// By how much a request of that length moves a flow on.
fn share(length: u128, weight: u32) -> u128 {
    length.saturating_mul(FRACTION).div_ceil(u128::from(weight)).max(1)
}

fn insert(order: &mut Vec<Turn>, turn: Turn) {
    let place = order.partition_point(|other| *other < turn);
    order.insert(place, turn);
}

fn remove(order: &mut Vec<Turn>, turn: Turn) {
    if let Ok(place) = order.binary_search(&turn) {
        order.remove(place);
    }
}

#[cfg(test)]
#[path = "fair_test.rs"]
mod tests;
