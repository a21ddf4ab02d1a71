//! Who goes next where several want the same: start-time fair queuing by weight.
//!
//! Each flow has a start time on a clock of its own making, which a request moves on by its length divided by
//! the weight. The flow that is furthest behind goes next. Of two flows that always wait, neither gets further
//! ahead of its share than one request of each (Goyal, Vin, Cheng: Start-time Fair Queueing, 1996).
//!
//! A flow may wait in each of two queues (requests to read, and others), and has one start time in both: so whoever
//! looks for those who wait in one need not pass those who wait in the other.
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

/// Queues that flows wait in.
pub(super) const QUEUES: usize = 2;

/// Flows and the order in which they go. A flow carries an item that its owner knows it by.
#[derive(Debug, Clone)]
pub struct Fair<T> {
    flows: Slab<Flow<T>>,
    /// Who waits in each queue, by start time and then by arrival.
    order: [Vec<Turn>; QUEUES],
    /// Start times of flows that left, as far as they are ahead of the clock, and their weights. Whoever joins takes one
    /// over: else the next request would be had sooner by leaving and joining than by waiting.
    left: Vec<(u128, u32)>,
    /// The start time of whoever went last.
    clock: u128,
    arrivals: u64,
}

#[derive(Debug, Clone)]
struct Flow<T> {
    weight: u32,
    /// When its next request starts, unless it comes later.
    start: u128,
    /// When it began to wait, if it does.
    arrival: u64,
    /// In which queues it waits.
    waits: [bool; QUEUES],
    item: T,
}

/// How far somebody has looked through the queues.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place([usize; QUEUES]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    start: u128,
    arrival: u64,
    flow: usize,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self {
            flows: Slab::new(),
            order: [const { Vec::new() }; QUEUES],
            left: Vec::new(),
            clock: 0,
            arrivals: 0,
        }
    }
}

impl<T> Fair<T> {
    /// Adds a flow that does not wait; gives its number. `weight` is brought into [`WEIGHTS`]. It is owed nothing.
    pub fn join(&mut self, weight: u32, item: T) -> usize {
        let weight = weight.clamp(*WEIGHTS.start(), *WEIGHTS.end());
        let start = self.clock.saturating_add(self.take_over(weight));
        let flow = self.flows.insert(Flow { weight, start, arrival: 0, waits: [false; QUEUES], item });
        for order in &mut self.order {
            order.reserve(self.flows.len().saturating_sub(order.len()));
        }
        self.left.reserve(self.flows.len());
        flow
    }

    /// Removes a flow.
    pub fn leave(&mut self, flow: usize) {
        (0..QUEUES).for_each(|queue| self.depart(flow, queue));
        self.left.retain(|(start, _)| *start > self.clock);
        if let Some(Flow { start, weight, .. }) =
            self.flows.try_remove(flow).filter(|it| it.start > self.clock)
        {
            self.left.push((start, weight));
        }
    }

    /// By how much one that joins is ahead of the clock: as much, by its weight, as one of those that left.
    fn take_over(&mut self, weight: u32) -> u128 {
        let ahead = |&(start, weight): &(u128, u32)| {
            start.saturating_sub(self.clock).saturating_mul(u128::from(weight))
        };
        let most = self.left.iter().map(ahead).enumerate().max_by_key(|(_, ahead)| *ahead);
        let Some((index, ahead)) = most else { return 0 };
        self.left.swap_remove(index);
        ahead.div_ceil(u128::from(weight))
    }

    /// Changes a flow's weight, from its next request on.
    pub fn weigh(&mut self, flow: usize, weight: u32) {
        if let Some(flow) = self.flows.get_mut(flow) {
            flow.weight = weight.clamp(*WEIGHTS.start(), *WEIGHTS.end());
        }
    }

    /// A flow waits in this queue from now on.
    pub fn arrive(&mut self, flow: usize, queue: usize) {
        let Some(it) = self.flows.get_mut(flow) else { return };
        if it.waits == [false; QUEUES] {
            it.start = it.start.max(self.clock.saturating_sub(share(CREDIT, it.weight)));
            self.arrivals += 1;
            it.arrival = self.arrivals;
        }
        let turn = it.turn(flow);
        if let (Some(waits), Some(order)) = (it.waits.get_mut(queue), self.order.get_mut(queue))
            && !std::mem::replace(waits, true)
        {
            insert(order, turn);
        }
    }

    /// A flow no longer waits in this queue, and has had nothing.
    pub fn depart(&mut self, flow: usize, queue: usize) {
        let Some(it) = self.flows.get_mut(flow) else { return };
        let turn = it.turn(flow);
        if let (Some(waits), Some(order)) = (it.waits.get_mut(queue), self.order.get_mut(queue))
            && std::mem::take(waits)
        {
            remove(order, turn);
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

    /// Who goes next of those who wait in queues that are `open`, after whom `place` has passed; and in which of these
    /// it waits. What is not open any more must not be opened again for the same place.
    pub fn next(&self, place: &mut Place, open: [bool; QUEUES]) -> Option<(&T, [bool; QUEUES])> {
        let mut turns = [None; QUEUES];
        for (((turn, order), at), _) in
            turns.iter_mut().zip(&self.order).zip(place.0).zip(open).filter(|(_, open)| *open)
        {
            *turn = order.get(at).copied();
        }
        let first = turns.into_iter().flatten().min()?;
        let waits = turns.map(|turn| turn == Some(first));
        for (at, _) in place.0.iter_mut().zip(waits).filter(|(_, waits)| *waits) {
            *at += 1;
        }
        self.flows.get(first.flow).map(|flow| (&flow.item, waits))
    }

    /// As [`Fair::depart`], of the flow that `place` has passed last.
    pub fn depart_at(&mut self, place: &mut Place, flow: usize, queue: usize) {
        self.depart(flow, queue);
        if let Some(at) = place.0.get_mut(queue) {
            *at = at.saturating_sub(1);
        }
    }

    /// Whether nobody waits in this queue.
    pub fn is_idle(&self, queue: usize) -> bool {
        self.order.get(queue).is_none_or(Vec::is_empty)
    }

    fn move_to(&mut self, flow: usize, start: u128) {
        let Some(it) = self.flows.get_mut(flow) else { return };
        let old = it.turn(flow);
        it.start = start;
        let new = it.turn(flow);
        for (order, _) in self.order.iter_mut().zip(it.waits).filter(|(_, waits)| *waits) {
            remove(order, old);
            insert(order, new);
        }
    }
}

impl<T> Flow<T> {
    fn turn(&self, flow: usize) -> Turn {
        Turn { start: self.start, arrival: self.arrival, flow }
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
