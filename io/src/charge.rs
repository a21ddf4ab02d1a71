//! What the loop's thread did for whom, in CPU time.
//!
//! Time is read from the monotonic clock, which takes no system call, and counts as CPU time unless so much of it went
//! by that the thread may have been kept from its CPU. Then its CPU clock decides, which is a system call (0.2 µs to
//! 0.6 µs) and has to be read before as well. So it is read where something took long the last time, where much was
//! submitted, and else at random: what is measured of some parks stands for all of them.
//!
//! Owns what was submitted since the last park, because a park is when the kernel copies what is in its page cache.
//! Never decides what happens to a VM that used too much.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use rustix::time::{ClockId, clock_gettime};

use crate::clock::MonoTime;
use crate::owner::Owner;

/// Nanoseconds of real time that count as CPU time without a look at that.
pub(crate) const LONG: u64 = 100_000;
/// A task whose poll took long is measured from then on, until the next of so many short polls on average.
const SUSPECTED: u64 = 16;
/// Of the parks in which the thread may have slept, those that submit this much are measured, and of others as many as
/// submit this much together on average: each then counts as that many.
const SAMPLE: u64 = 1 << 20;
/// Of the others, those that submit this much: copying it takes far longer than measuring, and maybe [`LONG`].
const MUCH: u64 = 256 << 10;
/// What an operation weighs beside its bytes.
const OPERATION: u64 = 4 << 10;

/// CPU time that the calling thread has used, in nanoseconds.
pub(crate) fn thread_nanos() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    u64::try_from(now.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// CPU time of a poll that took `real` nanoseconds, if the thread had used `before` when it began.
pub(crate) fn cpu_time(real: u64, before: Option<u64>) -> u64 {
    match before {
        _ if real <= LONG => real,
        Some(before) => real.min(thread_nanos().saturating_sub(before)),
        None => LONG,
    }
}

/// Operations that the next park submits, by who pays for them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Of few owners mostly; several entries of one are several.
    entries: RefCell<Vec<(Option<Owner>, u64)>>,
    total: Cell<u64>,
}

impl Ledger {
    /// Takes note of an operation on `bytes` of the page cache; `None`: the shard's own.
    pub(crate) fn note(&self, owner: Option<&Owner>, bytes: u64) {
        let weight = bytes.saturating_add(OPERATION);
        self.total.set(self.total.get().saturating_add(weight));
        let mut entries = self.entries.borrow_mut();
        match entries.last_mut() {
            Some((last, sum)) if same(last.as_ref(), owner) => *sum = sum.saturating_add(weight),
            _ => entries.push((owner.cloned(), weight)),
        }
    }

    /// Divides what a park took, by weight.
    fn divide(&self, turn: u64, took: Took) {
        let total = self.total.take();
        for (owner, weight) in self.entries.borrow_mut().drain(..) {
            if let Some(owner) = owner {
                owner.charge(turn, part_of(took.real, weight, total), part_of(took.cpu, weight, total));
            }
        }
    }
}

fn same(one: Option<&Owner>, other: Option<&Owner>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is(other),
        (None, None) => true,
        _ => false,
    }
}

/// Nanoseconds of a park.
#[derive(Debug, Clone, Copy, Default)]
struct Took {
    /// That others had to wait for it.
    real: u64,
    /// That are paid for.
    cpu: u64,
}

/// A park that has begun.
#[derive(Debug, Clone, Copy)]
enum Park {
    /// The thread may sleep: measured if something is in it, from this CPU time on. Counts `SAMPLE / weight` times.
    Idle(Option<(u64, u64)>),
    /// There is work left, so the thread does not sleep, and others wait. With the CPU time if that is measured.
    Busy(MonoTime, Option<u64>),
}

/// The loop's account.
#[derive(Debug)]
pub(crate) struct Account {
    ledger: Rc<Ledger>,
    park: Cell<Option<Park>>,
    random: Cell<u64>,
}

impl Account {
    pub(crate) fn new(ledger: Rc<Ledger>) -> Self {
        Self { ledger, park: Cell::new(None), random: Cell::new(MonoTime::now().as_nanos() | 1) }
    }

    /// The thread is about to park; `busy`: and has to come back at once.
    pub(crate) fn begin_park(&self, busy: bool) {
        let weight = self.ledger.total.get();
        self.park.set(match weight {
            0 => None,
            _ if busy => Some(Park::Busy(MonoTime::now(), (weight >= MUCH).then(thread_nanos))),
            _ if self.random() % SAMPLE < weight => {
                Some(Park::Idle(Some((thread_nanos(), weight.min(SAMPLE)))))
            }
            _ => Some(Park::Idle(None)),
        });
    }

    /// The thread is back, and `turn` begins: charges what was done in the park. Gives what it took.
    pub(crate) fn end_park(&self, now: MonoTime, turn: u64) -> u64 {
        let took = match self.park.take() {
            None => return 0,
            Some(Park::Idle(None)) => Took::default(),
            Some(Park::Idle(Some((before, weight)))) => {
                let used = thread_nanos().saturating_sub(before);
                Took { real: 0, cpu: part_of(used, SAMPLE, weight) }
            }
            Some(Park::Busy(begun, before)) => {
                let real = now.nanos_since(begun);
                Took { real, cpu: cpu_time(real, before) }
            }
        };
        self.ledger.divide(turn, took);
        took.cpu
    }

    /// Whether a task is measured that was, after a poll that took `real` nanoseconds.
    pub(crate) fn suspects(&self, suspected: bool, real: u64) -> bool {
        real > LONG || suspected && !self.random().is_multiple_of(SUSPECTED)
    }

    /// A number at nobody's choice (xorshift64).
    fn random(&self) -> u64 {
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        self.random.set(random);
        random
    }
}

/// `nanos`, `times` over `of`.
fn part_of(nanos: u64, times: u64, of: u64) -> u64 {
    u64::try_from(u128::from(nanos) * u128::from(times) / u128::from(of.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "charge_test.rs"]
mod tests;
