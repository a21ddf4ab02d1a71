//! The order in which a [`Tree`] grants requests, and their charge.
//!
//! Owns the search for whoever may go next: in fair order at each level, and nobody before a request that waits for
//! the same tokens.

use super::Cost;
use super::fair::{Place, QUEUES};
use super::limits::{Due, Lane};
use super::tree::{Below, DEPTH, Grant, Head, ROOT, Tree};
use crate::clock::MonoTime;

/// Each lane has a queue.
const LANES: [Lane; QUEUES] = [Lane::Read, Lane::Write];

/// Lanes in which nobody may go because the first of them cannot.
#[derive(Clone, Copy, Default)]
struct Blocked {
    lanes: [bool; QUEUES],
    /// When the first of them can go.
    until: Option<MonoTime>,
}

impl Blocked {
    fn has(self, lane: Lane) -> bool {
        self.lanes.get(lane as usize).copied().unwrap_or(true)
    }

    fn add(&mut self, lane: Lane, due: Due, now: MonoTime) {
        let both = due.total > now;
        for (index, blocked) in self.lanes.iter_mut().enumerate() {
            *blocked |= both || index == lane as usize;
        }
        self.until = Some(self.until.map_or(due.at, |until| until.min(due.at)));
    }
}

impl Tree {
    /// Grants all that can be granted now.
    pub(super) fn dispatch(&mut self, now: MonoTime) {
        while let Some((_, node)) = self.parked.pop_if(|(until, _)| *until <= now) {
            self.unpark(node);
        }
        while let Some((member, lane)) = self.pick(ROOT, &mut [Blocked::default(); DEPTH], now) {
            self.grant(member, lane);
        }
    }

    /// The first request, in fair order, that may go. Nobody goes before a request that waits for the same
    /// tokens.
    fn pick(&mut self, node: usize, blocked: &mut [Blocked; DEPTH], now: MonoTime) -> Option<(usize, Lane)> {
        let depth = self.nodes.get(node)?.depth;
        let mut place = Place::default();
        loop {
            let open = LANES.map(|lane| !blocked.iter().take(depth + 1).any(|level| level.has(lane)));
            let (&below, waits) = self.nodes.get(node)?.fair.next(&mut place, open)?;
            #[cfg(test)]
            {
                self.looks += 1;
            }
            match below {
                Below::Node(below) => {
                    if let Some(level) = blocked.get_mut(depth + 1) {
                        *level = Blocked::default();
                    }
                    if let Some(found) = self.pick(below, blocked, now) {
                        return Some(found);
                    }
                    let short = blocked.get(depth + 1).copied().unwrap_or_default();
                    self.park(below, &mut place, short, waits);
                }
                Below::Member(member) => {
                    let lanes = self.lanes(member);
                    if let Some(lane) =
                        lanes.into_iter().find(|lane| self.may_go(member, *lane, blocked, now))
                    {
                        return Some((member, lane));
                    }
                }
            }
        }
    }

    /// Takes a level that was passed off the queues of the level above in which it waits for tokens of its own: nobody
    /// looks at it there until those are due, or something has changed.
    fn park(&mut self, node: usize, place: &mut Place, short: Blocked, waits: [bool; QUEUES]) {
        let Some(until) = short.until else { return };
        let until = self.forget_parked(node).map_or(until, |earlier| until.min(earlier));
        let Some(it) = self.nodes.get_mut(node) else { return };
        let Some((above, flow)) = it.above else { return };
        it.parked = Some(until);
        let at = self.parked.partition_point(|other| *other > (until, node));
        self.parked.insert(at, (until, node));
        let Some(above) = self.nodes.get_mut(above) else { return };
        for (lane, _) in LANES.into_iter().zip(waits).filter(|(lane, waits)| *waits && short.has(*lane)) {
            above.fair.depart_at(place, flow, lane as usize);
        }
    }

    /// Until when it would have been parked.
    pub(super) fn forget_parked(&mut self, node: usize) -> Option<MonoTime> {
        let until = self.nodes.get_mut(node)?.parked.take()?;
        if let Ok(at) = self.parked.binary_search_by(|other| (until, node).cmp(other)) {
            self.parked.remove(at);
        }
        Some(until)
    }

    /// Undoes [`Tree::park`] where somebody waits.
    pub(super) fn unpark(&mut self, node: usize) {
        self.forget_parked(node);
        let Some(it) = self.nodes.get(node) else { return };
        let Some((above, flow)) = it.above else { return };
        let waits = LANES.map(|lane| !it.fair.is_idle(lane as usize));
        let Some(above) = self.nodes.get_mut(above) else { return };
        for (lane, _) in LANES.into_iter().zip(waits).filter(|(_, waits)| *waits) {
            above.fair.arrive(flow, lane as usize);
        }
    }

    /// A member's lanes, that of the older request first.
    fn lanes(&self, member: usize) -> [Lane; 2] {
        let asked = |lane: Lane| Some(self.members.get(member)?.heads.get(lane as usize)?.as_ref()?.asked);
        match (asked(Lane::Read), asked(Lane::Write)) {
            (Some(read), Some(write)) if write < read => [Lane::Write, Lane::Read],
            _ => [Lane::Read, Lane::Write],
        }
    }

    /// Whether a request may go; otherwise it is told when to look again, and blocks those behind it.
    fn may_go(&mut self, member: usize, lane: Lane, blocked: &mut [Blocked; DEPTH], now: MonoTime) -> bool {
        let Some(it) = self.members.get(member) else { return false };
        let waiting =
            it.heads.get(lane as usize).and_then(Option::as_ref).filter(|head| head.grant.is_none());
        let Some(&Head { cost, .. }) = waiting else { return false };
        let mut place = Some(it.node);
        let depth = self.nodes.get(it.node).map_or(0, |node| node.depth);
        if blocked.iter().take(depth + 1).any(|level| level.has(lane)) {
            return false;
        }
        while let Some(node) = place.and_then(|node| self.nodes.get(node)) {
            let due = node.meters.due(cost);
            if due.at > now {
                // Above, it is not in the way of anybody before this level lets it go.
                if let Some(level) = blocked.get_mut(node.depth) {
                    level.add(lane, due, now);
                }
                self.alarm(member, lane, due.at);
                return false;
            }
            place = node.above.map(|(above, _)| above);
        }
        true
    }

    fn alarm(&mut self, member: usize, lane: Lane, at: MonoTime) {
        let Some(head) = self.head(member, lane) else { return };
        if head.alarm.is_none_or(|alarm| at < alarm) {
            head.alarm = Some(at);
            if let Some(waker) = head.waker.take() {
                self.woken.push(waker);
            }
        }
    }

    /// Charges a request to all levels.
    fn grant(&mut self, member: usize, lane: Lane) {
        let Some(Head { cost, charge, asked, .. }) = self.head(member, lane) else { return };
        let (cost, charge, mut at) = (*cost, *charge, *asked);
        let Some((node, flow)) = self.members.get(member).map(|member| (member.node, member.flow)) else {
            return;
        };
        at = at.max(self.due(member, cost));
        let mut grant = Grant { at, paid: [None; DEPTH] };
        let mut place = Some((node, flow));
        for paid in &mut grant.paid {
            let Some((index, flow)) = place else { break };
            let length = self.length(index, charge);
            let Some(node) = self.nodes.get_mut(index) else { break };
            *paid = Some((node.meters.take(charge, at), length));
            node.fair.served(flow, length);
            place = node.above;
        }
        let Some(head) = self.head(member, lane) else { return };
        head.grant = Some(grant);
        if let Some(waker) = head.waker.take() {
            self.woken.push(waker);
        }
        self.settle(member, lane);
    }

    /// Charges a request with its cost instead of what it was charged with when it was granted.
    pub(super) fn exchange(&mut self, member: usize, grant: Grant, cost: Cost) {
        let mut place = self.members.get(member).map(|member| (member.node, member.flow));
        for paid in grant.paid {
            let Some(((index, flow), (receipt, length))) = place.zip(paid) else { return };
            let real = self.length(index, cost);
            let Some(node) = self.nodes.get_mut(index) else { return };
            node.meters.give_back(receipt);
            // What it takes stays taken.
            let _ = node.meters.take(cost, grant.at);
            node.fair.undo(flow, length);
            node.fair.served(flow, real);
            place = node.above;
        }
    }

    /// What a request costs at a level: its length there, or if it is not limited there, further up.
    fn length(&self, node: usize, cost: Cost) -> u128 {
        let mut place = Some(node);
        while let Some(node) = place.and_then(|node| self.nodes.get(node)) {
            let length = node.meters.length(cost);
            if length > 0 {
                return length;
            }
            place = node.above.map(|(above, _)| above);
        }
        1
    }

    /// Takes a member that waits no longer in that lane, and levels where nobody does any longer, off its queues.
    pub(super) fn settle(&mut self, member: usize, lane: Lane) {
        let Some(it) = self.members.get(member) else { return };
        let queue = lane as usize;
        let mut place = Some((it.node, it.flow));
        while let Some((node, flow)) = place {
            let Some(node) = self.nodes.get_mut(node) else { return };
            node.fair.depart(flow, queue);
            place = node.above.filter(|_| node.fair.is_idle(queue));
        }
    }
}

#[cfg(test)]
#[path = "grants_test.rs"]
mod tests;
