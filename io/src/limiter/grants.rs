//! The order in which a [`Tree`] grants requests, and their charge.
//!
//! Owns the search for whoever may go next: in fair order at each level, and nobody before a request that waits for
//! the same tokens.

use super::Cost;
use super::limits::{Due, Lane};
use super::tree::{Below, DEPTH, Grant, Head, ROOT, Tree};
use crate::clock::MonoTime;

/// Lanes in which nobody may go because the first of them cannot.
#[derive(Clone, Copy, Default)]
struct Blocked([bool; 2]);

impl Blocked {
    fn has(self, lane: Lane) -> bool {
        self.0.get(lane as usize).copied().unwrap_or(true)
    }

    fn add(&mut self, lane: Lane, due: Due, now: MonoTime) {
        let both = due.total > now;
        for (index, blocked) in self.0.iter_mut().enumerate() {
            *blocked |= both || index == lane as usize;
        }
    }
}

impl Tree {
    /// Grants all that can be granted now.
    pub(super) fn dispatch(&mut self, now: MonoTime) {
        while let Some((member, lane)) = self.pick(ROOT, &mut [Blocked::default(); DEPTH], now) {
            self.grant(member, lane);
        }
    }

    /// The first request, in fair order, that may go. Nobody goes before a request that waits for the same
    /// tokens.
    fn pick(&mut self, node: usize, blocked: &mut [Blocked; DEPTH], now: MonoTime) -> Option<(usize, Lane)> {
        let depth = self.nodes.get(node)?.depth;
        for nth in 0.. {
            if [Lane::Read, Lane::Write]
                .iter()
                .all(|lane| blocked.iter().take(depth + 1).any(|b| b.has(*lane)))
            {
                return None;
            }
            match *self.nodes.get(node)?.fair.nth(nth)? {
                Below::Node(below) => {
                    if let Some(level) = blocked.get_mut(depth + 1) {
                        *level = Blocked::default();
                    }
                    if let Some(found) = self.pick(below, blocked, now) {
                        return Some(found);
                    }
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
        None
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
        let Some(Head { cost, asked, .. }) = waiting else { return false };
        let (cost, mut at, mut place) = (*cost, *asked, Some(it.node));
        let depth = self.nodes.get(it.node).map_or(0, |node| node.depth);
        if blocked.iter().take(depth + 1).any(|level| level.has(lane)) {
            return false;
        }
        let mut free = true;
        while let Some(node) = place.and_then(|node| self.nodes.get(node)) {
            let due = node.meters.due(cost);
            if due.at > now && free {
                // Above, it is not in the way of anybody before this level lets it go.
                free = false;
                if let Some(level) = blocked.get_mut(node.depth) {
                    level.add(lane, due, now);
                }
            }
            at = at.max(due.at);
            place = node.above.map(|(above, _)| above);
        }
        if !free {
            self.alarm(member, lane, at);
        }
        free
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
        self.settle(member);
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

    /// Takes a member that waits no longer, and levels where nobody waits any longer, off the queues.
    pub(super) fn settle(&mut self, member: usize) {
        let Some(it) = self.members.get(member) else { return };
        let waits = |head: &Option<Head>| head.as_ref().is_some_and(|head| head.grant.is_none());
        if it.heads.iter().any(waits) {
            return;
        }
        let mut place = Some((it.node, it.flow));
        while let Some((node, flow)) = place {
            let Some(node) = self.nodes.get_mut(node) else { return };
            node.fair.depart(flow);
            place = node.above.filter(|_| node.fair.is_idle());
        }
    }
}
