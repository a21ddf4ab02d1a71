//! One virtqueue: a split ring (virtio 1.2, section 2.7) on `virtio-queue`.
//!
//! Owns the positions in both rings, and which chains are in flight. Never waits, and never touches a buffer.
//!
//! What `virtio-queue` is used for, and what not:
//! * available index and head come from its iterator, which says when the index is impossible; its
//!   `pop_descriptor_chain` turns that into "empty" and is not used. The iterator moves the position, so
//!   [`Queue::peek`] puts it back.
//! * the chain itself is walked by [`walk`](super::walk), which says why not.
//! * the used ring is written by it: the element, then the index with release order (section 2.7.8.2). It tells of
//!   one element at a time, so of several that the driver must see at once all but the last are written here.
//! * what the driver wants to be interrupted for is read here: NO_INTERRUPT it does not know, and its EVENT_IDX
//!   arithmetic counts what it has written itself.
//! * it does not bound what is in flight: here a bitmap by head does, and a head that is in flight already breaks
//!   the queue.

use std::fmt;
use std::sync::atomic::{Ordering, fence};

use ringlet_io::GuestRam;
use ringlet_metrics::GuestErrorKind;
use virtio_queue::{Error as RingError, Queue as Ring, QueueOwnedT, QueueState as RingState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::Chain;
use super::layout::QueueLayout;
use super::spec::{AVAIL_NO_INTERRUPT, MAX_QUEUE_SIZE, feature};
use super::state::QueueState;
use super::walk::{ChainError, Walker};

/// Bytes before the entries of the available ring: flags and index (virtio 1.2, section 2.7.6).
const AVAIL_HEADER: u64 = 4;
/// Bytes of an entry of the available ring.
const AVAIL_ENTRY: u64 = 2;
/// Bytes before the elements of the used ring: flags and index (section 2.7.8).
const USED_HEADER: u64 = 4;
/// Bytes of an element of the used ring.
const USED_ELEMENT: u64 = 8;

/// Why a queue cannot go on. It is broken from then on, until it is reset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The driver's index is further ahead than the queue is long, or has gone back.
    #[error("available index {index} at position {position} of a queue of {size}")]
    AvailIndex {
        /// What the driver wrote.
        index: u16,
        /// The next position to be consumed.
        position: u16,
        /// Size of the queue.
        size: u16,
    },
    /// The driver offers a chain that it has not got back yet.
    #[error("chain {head} is offered while it is in flight")]
    DuplicateHead {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A malformed chain.
    #[error("chain {head}: {error}")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
        /// What is wrong with it.
        error: ChainError,
    },
    /// The rings cannot be used at all. A mistake of ours: where they are was checked.
    #[error("the rings cannot be reached: {0}")]
    Ring(String),
    /// A chain is consumed or completed that was not peeked or consumed. A mistake of ours.
    #[error("chain {head} is not the one to consume or complete")]
    NotCurrent {
        /// Index of its first descriptor.
        head: u16,
    },
}

impl QueueError {
    /// How it is counted.
    pub fn kind(&self) -> GuestErrorKind {
        match self {
            Self::Chain { .. } => GuestErrorKind::BadChain,
            _ => GuestErrorKind::BadRing,
        }
    }
}

impl From<RingError> for QueueError {
    fn from(error: RingError) -> Self {
        Self::Ring(error.to_string())
    }
}

/// The right to complete one chain, once.
#[must_use = "a chain that is never completed stays in flight"]
#[derive(Debug)]
pub struct Token {
    head: u16,
    writable: u32,
}

impl Token {
    /// The chain's head.
    pub fn head(&self) -> u16 {
        self.head
    }
}

/// What the driver is owed after completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// Nothing was completed since the last question.
    Nothing,
    /// Something was, but the driver asked not to be interrupted for it.
    Suppressed,
    /// An interrupt.
    Interrupt,
}

/// A virtqueue that is enabled.
pub struct Queue {
    ring: Ring,
    walker: Walker,
    ram: GuestRam,
    layout: QueueLayout,
    in_flight: InFlight,
    /// Position in the used ring at the last question what the driver is owed.
    asked: u16,
    broken: bool,
}

impl Queue {
    /// A queue at its start, after the driver enabled it.
    ///
    /// # Errors
    /// [`QueueError::Ring`], which a [`QueueLayout`] excludes.
    pub fn new(layout: QueueLayout, features: u64, ram: &GuestRam) -> Result<Self, QueueError> {
        let ring = Ring::try_from(RingState {
            max_size: MAX_QUEUE_SIZE,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: features & feature::EVENT_IDX != 0,
            size: layout.size(),
            ready: true,
            desc_table: layout.descriptors(),
            avail_ring: layout.driver(),
            used_ring: layout.device(),
        })?;
        let indirect = features & feature::INDIRECT_DESC != 0;
        let walker = Walker::new(ram, layout.descriptors(), layout.size(), indirect);
        let in_flight = InFlight::default();
        Ok(Self { ring, walker, ram: ram.clone(), layout, in_flight, asked: 0, broken: false })
    }

    /// Goes on where a queue was stopped. Any position is possible: what does not fit the rings shows at the
    /// next peek.
    pub fn resume(&mut self, state: &QueueState) {
        self.ring.set_next_avail(state.next_avail);
        self.ring.set_next_used(state.next_used);
        self.asked = state.next_used;
        self.broken = state.broken;
    }

    /// Where the queue stands. Complete only while nothing is in flight.
    pub fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.ring.next_avail(),
            next_used: self.ring.next_used(),
            broken: self.broken,
        }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.layout.size()
    }

    /// Chains that are consumed and not completed.
    pub fn in_flight(&self) -> u16 {
        self.in_flight.count
    }

    /// True once an error has latched; [`Queue::peek`] finds nothing any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The next chain that the driver offers, copied and checked; `None` if there is none. Changes nothing: the
    /// next peek gives the same chain again, until it is consumed.
    ///
    /// # Errors
    /// The driver's mistake; the queue is broken from then on.
    pub fn peek(&mut self) -> Result<Option<Chain>, QueueError> {
        self.peek_beyond(0)
    }

    /// As [`Queue::peek`], of the chain that comes after the next `count`, which were peeked: for requests that take
    /// several. A chain that is peeked twice is copied twice.
    ///
    /// # Errors
    /// The driver's mistake; the queue is broken from then on.
    pub fn peek_beyond(&mut self, count: u16) -> Result<Option<Chain>, QueueError> {
        if self.broken {
            return Ok(None);
        }
        let chain = self.peek_valid(count);
        self.broken |= chain.is_err();
        chain
    }

    /// As [`Queue::peek_beyond`], of a chain that need not be taken together with those before it: what is wrong with it is
    /// left to show when it comes next.
    pub fn glimpse(&mut self, count: u16) -> Option<Chain> {
        if self.broken { None } else { self.peek_valid(count).ok().flatten() }
    }

    fn peek_valid(&mut self, count: u16) -> Result<Option<Chain>, QueueError> {
        let next = self.ring.next_avail();
        let position = next.wrapping_add(count);
        self.ring.set_next_avail(position);
        let head = self.ring.iter(self.ram.memory());
        let head = head.map(|mut offered| offered.next().map(|chain| chain.head_index()));
        self.ring.set_next_avail(next);
        let head = match head {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(None),
            Err(RingError::InvalidAvailRingIndex) => return Err(self.bad_index(position)),
            Err(error) => return Err(error.into()),
        };
        if self.in_flight.has(head) {
            return Err(QueueError::DuplicateHead { head });
        }
        let chain = self.walker.chain(head, position);
        chain.map(Some).map_err(|error| QueueError::Chain { head, error })
    }

    fn bad_index(&self, position: u16) -> QueueError {
        let index = self.ring.avail_idx(self.ram.memory(), Ordering::Relaxed).map_or(0, |index| index.0);
        QueueError::AvailIndex { index, position, size: self.size() }
    }

    /// Takes the chain that was peeked last. From now on it is in flight.
    ///
    /// # Errors
    /// [`QueueError::NotCurrent`] if it is another one.
    pub fn consume(&mut self, chain: &Chain) -> Result<Token, QueueError> {
        let head = chain.head();
        let position = self.ring.next_avail();
        if chain.position() != position || !self.in_flight.insert(head) {
            return Err(QueueError::NotCurrent { head });
        }
        self.ring.set_next_avail(position.wrapping_add(1));
        let writable = u32::try_from(chain.writable_len()).unwrap_or(u32::MAX);
        Ok(Token { head, writable })
    }

    /// Gives a chain back to the driver, of whose writable part the first `written` bytes were written.
    ///
    /// # Errors
    /// A mistake of ours; the queue is broken from then on.
    pub fn complete(&mut self, token: Token, written: u32) -> Result<(), QueueError> {
        let Token { head, writable } = token;
        if !self.in_flight.remove(head) {
            self.broken = true;
            return Err(QueueError::NotCurrent { head });
        }
        let done = self.ring.add_used(self.ram.memory(), head, written.min(writable));
        self.broken |= done.is_err();
        done.map_err(QueueError::from)
    }

    /// Consumes the chains that come next and gives them back, each with the number of bytes written to it, so that
    /// the driver sees all of them at once or none.
    ///
    /// # Errors
    /// [`QueueError::DuplicateHead`], the driver's; else mistakes of ours. The queue is broken from then on.
    pub fn finish<'a>(
        &mut self,
        chains: impl Iterator<Item = (&'a Chain, u32)> + Clone,
    ) -> Result<(), QueueError> {
        let finished = self.take(chains.clone()).and_then(|count| self.give_back(count, chains));
        self.broken |= finished.is_err();
        finished
    }

    /// Consumes chains; gives their number.
    fn take<'a>(&mut self, chains: impl Iterator<Item = (&'a Chain, u32)>) -> Result<u16, QueueError> {
        let mut count = 0;
        for (chain, _) in chains {
            let head = chain.head();
            if chain.position() != self.ring.next_avail().wrapping_add(count) {
                return Err(QueueError::NotCurrent { head });
            }
            if !self.in_flight.insert(head) {
                return Err(QueueError::DuplicateHead { head });
            }
            count += 1;
        }
        self.ring.set_next_avail(self.ring.next_avail().wrapping_add(count));
        Ok(count)
    }

    /// Completes chains, of which there are `count`. The last is written together with the index; the others lie before
    /// it by then.
    fn give_back<'a>(
        &mut self,
        count: u16,
        chains: impl Iterator<Item = (&'a Chain, u32)>,
    ) -> Result<(), QueueError> {
        let used = self.ring.next_used();
        for (nth, (chain, written)) in (1..=count).zip(chains) {
            let (head, position) = (chain.head(), used.wrapping_add(nth - 1));
            self.in_flight.remove(head);
            let written = written.min(u32::try_from(chain.writable_len()).unwrap_or(u32::MAX));
            if nth < count {
                self.write_used(position, head, written)?;
            } else {
                self.ring.set_next_used(position);
                self.ring.add_used(self.ram.memory(), head, written)?;
            }
        }
        Ok(())
    }

    /// Writes an element of the used ring (section 2.7.8) of which the driver is not told yet.
    fn write_used(&self, position: u16, head: u16, written: u32) -> Result<(), QueueError> {
        let slot = u64::from(position % self.size());
        // The area is in RAM as a whole.
        let gpa = self.layout.device().saturating_add(USED_HEADER + slot * USED_ELEMENT);
        let element = u64::from(written) << 32 | u64::from(head);
        self.ram.write(gpa, &element.to_le_bytes()).map_err(|error| QueueError::Ring(error.to_string()))
    }

    /// What the driver is owed for everything that was completed since the last question.
    ///
    /// # Errors
    /// [`QueueError::Ring`].
    pub fn take_owed(&mut self) -> Result<Owed, QueueError> {
        let used = self.ring.next_used();
        let completed = used.wrapping_sub(std::mem::replace(&mut self.asked, used));
        if completed == 0 {
            return Ok(Owed::Nothing);
        }
        // What the driver wants is read after it can see what was completed.
        fence(Ordering::SeqCst);
        let wanted = if self.ring.event_idx_enabled() {
            // The index has passed the event since the last question (section 2.7.7.2).
            let event = self.read_driver(AVAIL_HEADER + AVAIL_ENTRY * u64::from(self.size()))?;
            used.wrapping_sub(event).wrapping_sub(1) < completed
        } else {
            self.read_driver(0)? & AVAIL_NO_INTERRUPT == 0
        };
        Ok(if wanted { Owed::Interrupt } else { Owed::Suppressed })
    }

    /// Reads a field of the driver area.
    fn read_driver(&self, offset: u64) -> Result<u16, QueueError> {
        let gpa = GuestAddress(self.layout.driver().saturating_add(offset));
        let field: Result<u16, _> = self.ram.memory().load(gpa, Ordering::Relaxed);
        field.map(u16::from_le).map_err(|error| QueueError::Ring(error.to_string()))
    }

    /// Asks the driver to notify of the next chain; true if one has arrived already, so that it must be looked at
    /// now. Only when nothing is left: a chain that waits for its admission needs no notification.
    ///
    /// # Errors
    /// [`QueueError::Ring`].
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        Ok(self.ring.enable_notification(self.ram.memory())? && !self.broken)
    }

    /// Tells the driver that it need not notify. Advice only.
    ///
    /// # Errors
    /// [`QueueError::Ring`].
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        Ok(self.ring.disable_notification(self.ram.memory())?)
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("layout", &self.layout)
            .field("state", &self.state())
            .field("in_flight", &self.in_flight.count)
            .finish_non_exhaustive()
    }
}

/// Which heads are in flight.
#[derive(Debug, Default)]
struct InFlight {
    bits: [u64; MAX_QUEUE_SIZE as usize / 64],
    count: u16,
}

impl InFlight {
    fn has(&self, head: u16) -> bool {
        self.bits.get(usize::from(head / 64)).is_some_and(|word| word >> (head % 64) & 1 == 1)
    }

    /// True if it was not there.
    fn insert(&mut self, head: u16) -> bool {
        if self.has(head) {
            return false;
        }
        let Some(word) = self.bits.get_mut(usize::from(head / 64)) else { return false };
        *word |= 1 << (head % 64);
        self.count += 1;
        true
    }

    /// True if it was there.
    fn remove(&mut self, head: u16) -> bool {
        if !self.has(head) {
            return false;
        }
        let Some(word) = self.bits.get_mut(usize::from(head / 64)) else { return false };
        *word &= !(1 << (head % 64));
        self.count -= 1;
        true
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
