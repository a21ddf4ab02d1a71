//! Busy polling: the loop looks for work for a moment before it sleeps.
//!
//! To be put to sleep and woken again takes a thread longer than many a request takes the loop. Where the next one
//! comes soon, the loop looks for it instead, as QEMU's event loops (`poll-max-ns`) and KVM's halted vCPUs
//! (`halt_poll_ns`) do. It does so only while that pays: as long as nearly all work comes soon, and not from a disk, nobody
//! else wants the CPU, and no VM whose CPU time is limited would get the loop's for nothing.
//!
//! Owns the judgement, and when the loop last looked. Pure: every time is an argument.

use std::time::Duration;

use crate::clock::MonoTime;

/// How long the loop looks at most, unless [`ShardConfig`](crate::ShardConfig) says otherwise: about what it takes to sleep
/// and to be woken.
pub const BUSY_POLL: Duration = Duration::from_micros(50);

/// Of one who sleeps, work comes soon if it comes within this many times what he would have looked for: some of it is the
/// way from sleep to work.
const ASLEEP: u32 = 2;
/// Who looks, and comes to look again only after this, did not have a CPU meanwhile: others want it.
const LOST: Duration = Duration::from_micros(100);
/// For how long it is not looked then.
const REST: Duration = Duration::from_millis(20);

/// What is had for work that came soon, at most.
const MOST: u8 = 64;
/// With so much, it is looked.
const ENOUGH: u8 = 16;
/// What is lost for work that did not: so it is looked only as long as at most one of nine do not.
const LATE: u8 = 8;

/// A turn of the loop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) began: MonoTime,
    pub(crate) ended: MonoTime,
    /// A task was polled.
    pub(crate) worked: bool,
    /// There is something to do in the next one.
    pub(crate) leaves_work: bool,
    /// Operations on files are under way: a disk takes its time, and who looks at it gets nothing sooner.
    pub(crate) awaits_files: bool,
    /// The CPU time of those who were polled is not limited.
    pub(crate) is_free: bool,
}

/// When to look for work, and for how long.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    longest: Duration,
    /// The more work came soon lately, the more.
    score: u8,
    /// Since when there is nothing to do.
    idle_since: Option<MonoTime>,
    /// The last look, while it is looked.
    looked: Option<MonoTime>,
    /// It was looked for what comes next, in vain.
    in_vain: bool,
    /// Others want the CPU until then.
    rests_until: MonoTime,
}

impl BusyPoll {
    /// Looks for `longest` at most; never, if that is nothing.
    pub(crate) fn new(longest: Duration) -> Self {
        let (score, rests_until) = (0, MonoTime::default());
        Self { longest, score, idle_since: None, looked: None, in_vain: false, rests_until }
    }

    /// For how long it was looked up to this turn, since the last. Time without a CPU is not looking.
    pub(crate) fn looked_for(&self, turn: &Turn) -> Duration {
        self.looked.map_or(Duration::ZERO, |looked| turn.began.since(looked).min(LOST))
    }

    /// Whether the loop looks for work behind this turn, instead of sleeping.
    pub(crate) fn looks(&mut self, turn: &Turn) -> bool {
        if self.longest.is_zero() {
            return false;
        }
        if self.looked.is_some_and(|looked| turn.began.since(looked) > LOST) {
            self.rests_until = turn.ended + REST;
            self.looked = None;
        }
        let again = if turn.worked { self.begins(turn) } else { self.goes_on(turn) };
        self.looked = again.then_some(turn.ended);
        again
    }

    /// The loop had something to do.
    fn begins(&mut self, turn: &Turn) -> bool {
        if let Some(since) = self.idle_since {
            self.judge(turn.began.since(since));
        }
        let waits = !turn.leaves_work && !turn.awaits_files && turn.is_free;
        self.idle_since = waits.then_some(turn.ended);
        self.in_vain = false;
        waits && self.score >= ENOUGH && turn.ended >= self.rests_until
    }

    /// There was nothing to do.
    fn goes_on(&mut self, turn: &Turn) -> bool {
        if self.looked.is_none() {
            return false;
        }
        let again = self.idle_since.is_some_and(|since| turn.ended.since(since) < self.longest);
        self.in_vain = !again;
        again && !turn.leaves_work
    }

    /// Takes note of how long there was nothing to do.
    fn judge(&mut self, idle: Duration) {
        let soon = if self.looked.is_some() { self.longest + LOST } else { self.longest * ASLEEP };
        self.score = if idle <= soon && !self.in_vain {
            MOST.min(self.score + 1)
        } else {
            self.score.saturating_sub(LATE)
        };
    }
}

#[cfg(test)]
#[path = "busy_poll_test.rs"]
mod tests;
