//! What a VM makes the host buffer: one account of bytes, and rooms that take from it.
//!
//! Owns the sum, its limit, and how often something was held back for it; lock-free. [`Buffers`] is the account, shared
//! by everything of a VM. A [`Room`] is one of those who take from it again and again (a queue, the copies of a disk):
//! it has one thing at a time that was reserved for it when the VM was made, and takes further ones while they
//! fit. So nobody ever waits for somebody else's bytes: who finds none left waits for what is its own. Never
//! allocates what it counts.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};

use ringlet_metrics::{BufferReading, BufferSource};

/// The account of one VM. Clones are the same account; any thread may take, give back and read.
#[derive(Clone)]
pub struct Buffers(Arc<Account>);

#[derive(Debug)]
struct Account {
    max: AtomicU64,
    used: AtomicU64,
    peak: AtomicU64,
    held_back: AtomicU64,
}

/// Bytes that were taken; they go back when it is dropped.
#[derive(Debug)]
#[must_use = "they go back at once"]
pub struct Held {
    buffers: Buffers,
    bytes: u64,
}

impl Buffers {
    /// An account from which at most `max` bytes can be taken at a time.
    pub fn new(max: u64) -> Self {
        let [used, peak, held_back] = [const { AtomicU64::new(0) }; 3];
        Self(Arc::new(Account { max: AtomicU64::new(max), used, peak, held_back }))
    }

    /// An account that only counts.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Takes `bytes`, if they fit.
    pub fn try_take(&self, bytes: u64) -> Option<Held> {
        self.take(bytes).then(|| Held { buffers: self.clone(), bytes })
    }

    /// Changes the limit. What was taken stays taken; nothing more is until it fits.
    pub fn set_max(&self, max: u64) {
        self.0.max.store(max, Ordering::Relaxed);
    }

    /// The numbers of this moment.
    pub fn reading(&self) -> BufferReading {
        self.0.read()
    }

    /// Where the numbers are read.
    pub fn source(&self) -> Arc<dyn BufferSource> {
        Arc::clone(&self.0) as Arc<dyn BufferSource>
    }

    /// The sum is never above the limit, not even for a moment: it is taken in one step or not at all.
    fn take(&self, bytes: u64) -> bool {
        let Account { max, used, peak, .. } = &*self.0;
        let max = max.load(Ordering::Relaxed);
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= max);
        let Ok(before) = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) else {
            return false;
        };
        let sum = before.saturating_add(bytes);
        if sum > peak.load(Ordering::Relaxed) {
            peak.fetch_max(sum, Ordering::Relaxed);
        }
        true
    }

    fn give_back(&self, bytes: u64) {
        let before = self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "{bytes} bytes are given back of {before}");
    }

    fn held_back(&self) {
        self.0.held_back.fetch_add(1, Ordering::Relaxed);
    }
}

impl BufferSource for Account {
    fn read(&self) -> BufferReading {
        BufferReading {
            max: self.max.load(Ordering::Relaxed),
            used: self.used.load(Ordering::Relaxed),
            peak: self.peak.load(Ordering::Relaxed),
            held_back: self.held_back.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Held {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.buffers.give_back(self.bytes);
    }
}

/// One who takes from an account again and again, on its shard. Clones are the same room.
#[derive(Clone)]
pub struct Room(Rc<Inner>);

struct Inner {
    buffers: Buffers,
    /// Something has what was reserved for the room.
    reserve_taken: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// A place in a room; it is given back when it is dropped.
#[must_use = "it is given back at once"]
pub struct Space {
    room: Rc<Inner>,
    /// Bytes of the account; `None` for what was reserved.
    bytes: Option<u64>,
}

impl Room {
    /// A room that takes from `buffers`. What is reserved for it was taken by whoever made the VM.
    pub fn new(buffers: &Buffers) -> Self {
        Self(Rc::new(Inner {
            buffers: buffers.clone(),
            reserve_taken: Cell::new(false),
            waiting: RefCell::default(),
        }))
    }

    /// A place for `bytes`: the reserved one if that is free, else one of the account, if they fit. `None` only while
    /// something of this room's has a place.
    pub fn try_enter(&self, bytes: u64) -> Option<Space> {
        let room = &self.0;
        let bytes = match room.reserve_taken.replace(true) {
            false => None,
            true => room.buffers.take(bytes).then_some(Some(bytes))?,
        };
        Some(Space { room: Rc::clone(room), bytes })
    }

    /// As [`Self::try_enter`], and waits until a place of this room's is given back where there is none. Cancel-safe.
    pub async fn enter(&self, bytes: u64) -> Space {
        let mut told = false;
        poll_fn(|cx| match self.try_enter(bytes) {
            Some(space) => Poll::Ready(space),
            None => {
                if !std::mem::replace(&mut told, true) {
                    self.0.buffers.held_back();
                }
                let mut waiting = self.0.waiting.borrow_mut();
                if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        match self.bytes {
            Some(bytes) => self.room.buffers.give_back(bytes),
            None => self.room.reserve_taken.set(false),
        }
        if !self.room.waiting.borrow().is_empty() {
            self.room.wake();
        }
    }
}

impl Inner {
    /// Lets those who wait look again. Seldom: those who are held back.
    #[cold]
    fn wake(&self) {
        // Taken out first: a waker may do anything.
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("reserve_taken", &self.0.reserve_taken.get()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "buffers_test.rs"]
mod tests;
