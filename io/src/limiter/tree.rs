//! The levels above VMs, as arithmetic: a host, the tenants below it, and the VMs that want something.
//!
//! Owns what there is and who wants it; the order in which they get it is in `grants.rs`. A request is granted by
//! all levels at once or by none, and what it does not take of that goes back. Pure: time is an argument, and
//! nothing waits or wakes here; whom to wake is told to whoever has the lock, to be done without it.

use std::sync::Arc;
use std::task::Waker;

use slab::Slab;

use super::fair::Fair;
use super::limits::{Lane, Limits, Meters, Receipt};
use super::meter::LimitError;
use super::stats::LimiterStats;
use super::{Cost, CostKind};
use crate::clock::MonoTime;

/// Levels from the lowest to the root: tenant and host.
pub(super) const DEPTH: usize = 2;
/// The node that has none above it.
pub(super) const ROOT: usize = 0;

pub(super) struct Tree {
    pub(super) nodes: Slab<Node>,
    pub(super) members: Slab<Member>,
    pub(super) woken: Vec<Waker>,
    /// Levels that wait for tokens of their own, and until when: the first is the last.
    pub(super) parked: Vec<(MonoTime, usize)>,
    /// How often anybody in a queue was looked at.
    #[cfg(test)]
    pub(super) looks: usize,
}

/// A level.
pub(super) struct Node {
    /// The level above, and the flow that this one is there.
    pub(super) above: Option<(usize, usize)>,
    pub(super) depth: usize,
    pub(super) meters: Meters,
    pub(super) fair: Fair<Below>,
    pub(super) stats: Arc<LimiterStats>,
    /// Nobody looks at it before then, unless something changes.
    pub(super) parked: Option<MonoTime>,
}

#[derive(Clone, Copy)]
pub(super) enum Below {
    Node(usize),
    Member(usize),
}

/// A VM, with at most one request in each lane.
pub(super) struct Member {
    pub(super) node: usize,
    pub(super) flow: usize,
    pub(super) heads: [Option<Head>; 2],
    /// Bytes of its last request of each lane whose size showed when it was done.
    last: [u64; 2],
}

pub(super) struct Head {
    /// What must be there.
    pub(super) cost: Cost,
    /// What it is charged with when it is granted: its cost, or what that will probably be.
    pub(super) charge: Cost,
    /// It is not charged as of an earlier instant.
    pub(super) asked: MonoTime,
    /// Since when it waits, if it does.
    pub(super) since: Option<MonoTime>,
    /// It was told to look again then.
    pub(super) alarm: Option<MonoTime>,
    pub(super) waker: Option<Waker>,
    pub(super) grant: Option<Grant>,
}

/// What was charged for a request that has not taken it yet.
pub(super) struct Grant {
    pub(super) at: MonoTime,
    /// From the lowest level up.
    pub(super) paid: [Option<(Receipt, u128)>; DEPTH],
}

/// What a request that waits is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It may go; it is charged as of that instant.
    Granted(MonoTime),
    /// It is not its turn, or there are no tokens. If there is an instant, it must look again then: everybody
    /// behind relies on that. It is woken if anything changes.
    Wait(Option<MonoTime>),
}

impl Tree {
    pub(super) fn new(limits: &Limits, now: MonoTime) -> Result<Self, LimitError> {
        let mut tree = Self {
            nodes: Slab::new(),
            members: Slab::new(),
            woken: Vec::new(),
            parked: Vec::new(),
            #[cfg(test)]
            looks: 0,
        };
        let meters = Meters::new(limits, now)?;
        tree.nodes.insert(Node::new(None, 0, meters));
        Ok(tree)
    }

    /// Adds a level below another.
    pub(super) fn add(
        &mut self,
        above: usize,
        weight: u32,
        limits: &Limits,
        now: MonoTime,
    ) -> Result<usize, LimitError> {
        let meters = Meters::new(limits, now)?;
        let entry = self.nodes.vacant_key();
        let parent = self.nodes.get_mut(above).ok_or(LimitError::Depth)?;
        let depth = parent.depth + 1;
        if depth >= DEPTH {
            return Err(LimitError::Depth);
        }
        let flow = parent.fair.join(weight, Below::Node(entry));
        self.nodes.insert(Node::new(Some((above, flow)), depth, meters));
        self.parked.reserve(self.nodes.len().saturating_sub(self.parked.len()));
        Ok(entry)
    }

    /// Removes a level that has no members (any more).
    pub(super) fn remove(&mut self, node: usize) {
        self.forget_parked(node);
        if let Some(Node { above: Some((above, flow)), .. }) = self.nodes.try_remove(node)
            && let Some(above) = self.nodes.get_mut(above)
        {
            above.fair.leave(flow);
        }
    }

    pub(super) fn stats(&self, node: usize) -> Arc<LimiterStats> {
        self.nodes.get(node).map(|node| Arc::clone(&node.stats)).unwrap_or_default()
    }

    /// Whether a level is as if it had been made at `now`.
    pub(super) fn is_as_new(&self, node: usize, now: MonoTime) -> bool {
        self.nodes.get(node).is_none_or(|node| node.meters.are_as_new(now))
    }

    pub(super) fn limits(&self, node: usize) -> Limits {
        self.nodes.get(node).map(|node| node.meters.limits()).unwrap_or_default()
    }

    pub(super) fn change(&mut self, node: usize, change: &Limits, now: MonoTime) -> Result<(), LimitError> {
        if let Some(node) = self.nodes.get_mut(node) {
            node.meters.change(change, now)?;
            node.stats.changed(&node.meters);
        }
        self.unpark(node);
        self.dispatch(now);
        Ok(())
    }

    /// Changes the weight that a level has at the one above.
    pub(super) fn weigh_node(&mut self, node: usize, weight: u32) {
        if let Some((above, flow)) = self.nodes.get(node).and_then(|node| node.above)
            && let Some(above) = self.nodes.get_mut(above)
        {
            above.fair.weigh(flow, weight);
        }
    }

    pub(super) fn join(&mut self, node: usize, weight: u32) -> usize {
        let entry = self.members.vacant_key();
        let flow = self.nodes.get_mut(node).map(|node| node.fair.join(weight, Below::Member(entry)));
        self.members.insert(Member {
            node,
            flow: flow.unwrap_or(usize::MAX),
            heads: [None, None],
            last: [0; 2],
        });
        // As many as there can be requests: nothing is allocated when they are woken.
        self.woken.reserve((self.members.len() * 2).saturating_sub(self.woken.len()));
        entry
    }

    pub(super) fn weigh(&mut self, member: usize, weight: u32) {
        if let Some(Member { node, flow, .. }) = self.members.get(member)
            && let Some(node) = self.nodes.get_mut(*node)
        {
            node.fair.weigh(*flow, weight);
        }
    }

    /// Removes a member whose requests are gone.
    pub(super) fn leave(&mut self, member: usize) {
        if let Some(Member { node, flow, .. }) = self.members.try_remove(member)
            && let Some(node) = self.nodes.get_mut(node)
        {
            node.fair.leave(flow);
        }
    }

    /// Puts a request in the queue. There is none of its lane.
    pub(super) fn enter(&mut self, member: usize, cost: Cost, asked: MonoTime) {
        let Some(it) = self.members.get_mut(member) else { return };
        let (node, flow) = (it.node, it.flow);
        if let Some(head) = it.heads.get_mut(cost.lane() as usize) {
            let (since, alarm, waker, grant) = (None, None, None, None);
            *head = Some(Head { cost, charge: cost, asked, since, alarm, waker, grant });
        }
        let mut place = Some((node, flow));
        while let Some((node, flow)) = place {
            let Some(node) = self.nodes.get_mut(node) else { return };
            node.fair.arrive(flow, cost.lane() as usize);
            place = node.above;
        }
    }

    /// As [`Tree::enter`], of a request whose size shows only when it is done. Until then it is charged with that of the
    /// one before: else all that wait would be granted theirs at once, whatever their weights.
    pub(super) fn enter_open(&mut self, member: usize, kind: CostKind, asked: MonoTime) {
        let cost = Cost { kind, bytes: 0 };
        self.enter(member, cost, asked);
        let last = self.members.get(member).and_then(|member| member.last.get(cost.lane() as usize));
        let bytes = last.copied().unwrap_or(0);
        if let Some(head) = self.head(member, cost.lane()) {
            head.charge.bytes = bytes;
        }
    }

    /// Looks for a request how it stands, and remembers whom to wake for it.
    pub(super) fn poll(&mut self, member: usize, lane: Lane, now: MonoTime, waker: &Waker) -> Answer {
        if let Some(head) = self.head(member, lane) {
            if head.stands(now, waker) {
                return Answer::Wait(head.alarm);
            }
            (head.alarm, head.waker) = (None, None);
        }
        self.look_again(member, now);
        let Some(head) = self.head(member, lane) else { return Answer::Wait(None) };
        if let Some(grant) = &head.grant {
            return Answer::Granted(grant.at);
        }
        head.waker = Some(waker.clone());
        let (alarm, first) = (head.alarm, head.since.is_none());
        head.since.get_or_insert(now);
        if first && let Some(stats) = self.stats_of(member) {
            stats.waiting.inc();
            stats.throttled.inc();
        }
        Answer::Wait(alarm)
    }

    /// When the levels can take a request.
    pub(super) fn due(&self, member: usize, cost: Cost) -> MonoTime {
        let (mut due, mut place) = (MonoTime::default(), self.members.get(member).map(|member| member.node));
        while let Some(node) = place.and_then(|node| self.nodes.get(node)) {
            due = due.max(node.meters.due(cost).at);
            place = node.above.map(|(above, _)| above);
        }
        due
    }

    /// Puts a request in the queue and takes it out again, with what it needs if that is there; then it gives
    /// the instant of the charge.
    pub(super) fn try_admit(
        &mut self,
        member: usize,
        cost: Cost,
        asked: MonoTime,
        now: MonoTime,
    ) -> Option<MonoTime> {
        self.enter(member, cost, asked);
        let granted = self.granted(member, cost.lane(), now);
        if granted.is_some() {
            self.confirm(member, cost, now);
        }
        granted
    }

    /// As [`Tree::try_admit`] of a request whose size shows only when it is done: if it is granted it keeps its place
    /// until it is confirmed or withdrawn.
    pub(super) fn try_open(
        &mut self,
        member: usize,
        kind: CostKind,
        asked: MonoTime,
        now: MonoTime,
    ) -> Option<MonoTime> {
        self.enter_open(member, kind, asked);
        self.granted(member, Cost { kind, bytes: 0 }.lane(), now)
    }

    /// As of when a request is granted at once; else it is gone again.
    fn granted(&mut self, member: usize, lane: Lane, now: MonoTime) -> Option<MonoTime> {
        self.dispatch(now);
        let granted = self.head(member, lane).and_then(|head| head.grant.as_ref()).map(|grant| grant.at);
        if granted.is_none() {
            self.withdraw(member, lane, now);
        }
        granted
    }

    /// A request that was granted takes what it costs, be it other than what it was charged with.
    pub(super) fn confirm(&mut self, member: usize, cost: Cost, now: MonoTime) {
        let Some(head) = self.take(member, cost.lane(), now) else { return };
        if let Some(grant) = head.grant.filter(|_| head.charge != cost) {
            self.exchange(member, grant, cost);
            self.look_again(member, now);
        }
        let Some(it) = self.members.get_mut(member) else { return };
        if let Some(last) = it.last.get_mut(cost.lane() as usize).filter(|_| head.cost != cost) {
            *last = cost.bytes;
        }
        let mut place = Some(it.node);
        while let Some(node) = place.and_then(|node| self.nodes.get(node)) {
            node.stats.admitted(cost, &node.meters);
            place = node.above.map(|(above, _)| above);
        }
    }

    /// A request goes away, and has taken nothing.
    pub(super) fn withdraw(&mut self, member: usize, lane: Lane, now: MonoTime) {
        let Some(head) = self.take(member, lane, now) else { return };
        let Some(it) = self.members.get(member) else { return };
        let mut place = Some((it.node, it.flow));
        // One that neither took anything nor kept the time was in nobody's way.
        let changes = head.grant.is_some() || head.alarm.is_some();
        if let Some(grant) = head.grant {
            for paid in grant.paid {
                let Some(((index, flow), (receipt, length))) = place.zip(paid) else { break };
                let Some(node) = self.nodes.get_mut(index) else { break };
                node.meters.give_back(receipt);
                node.fair.undo(flow, length);
                place = node.above;
            }
        } else {
            self.settle(member, lane);
        }
        if changes {
            self.look_again(member, now);
        }
    }

    /// Grants what can be granted now that something may have changed for a member's level.
    fn look_again(&mut self, member: usize, now: MonoTime) {
        if let Some(it) = self.members.get(member) {
            self.unpark(it.node);
        }
        self.dispatch(now);
    }

    /// Whom to wake, one after the other.
    pub(super) fn next_woken(&mut self) -> Option<Waker> {
        self.woken.pop()
    }

    pub(super) fn head(&mut self, member: usize, lane: Lane) -> Option<&mut Head> {
        self.members.get_mut(member)?.heads.get_mut(lane as usize)?.as_mut()
    }

    fn stats_of(&self, member: usize) -> Option<&LimiterStats> {
        let node = self.members.get(member)?.node;
        self.nodes.get(node).map(|node| &*node.stats)
    }

    fn take(&mut self, member: usize, lane: Lane, now: MonoTime) -> Option<Head> {
        let head = self.members.get_mut(member)?.heads.get_mut(lane as usize)?.take()?;
        if let (Some(since), Some(stats)) = (head.since, self.stats_of(member)) {
            stats.waiting.dec();
            stats.throttled_nanos.add(now.nanos_since(since));
        }
        Some(head)
    }
}

impl Head {
    /// Whether it still is as it was told: whoever changed that would have taken its waker.
    fn stands(&self, now: MonoTime, waker: &Waker) -> bool {
        let is_known = self.waker.as_ref().is_some_and(|known| known.will_wake(waker));
        is_known && self.grant.is_none() && self.alarm.is_none_or(|alarm| now < alarm)
    }
}

impl Node {
    fn new(above: Option<(usize, usize)>, depth: usize, meters: Meters) -> Self {
        let stats = Arc::new(LimiterStats::default());
        stats.changed(&meters);
        Self { above, depth, meters, fair: Fair::default(), stats, parked: None }
    }
}

#[cfg(test)]
#[path = "tree_test.rs"]
mod tests;
