//! What connections of VMs may take of the descriptors that a process can have (`RLIMIT_NOFILE`), all VMs together.
//!
//! Owns the sum, and its limit; lock-free. [`Descriptors`] is the pool, [`DescriptorShare`] what one VM takes. Its first
//! [`OWN_DESCRIPTORS`] for connections, and its first for greetings, are its own, which nobody else can take; further ones
//! come out of the pool. Of that a VM gets one only as long as more are free than it has (the dynamic threshold of
//! Choudhury and Hahne, 1998): alone it gets half, two get a third each, and whoever comes last still gets some. So a VM that
//! takes as many as it gets is in nobody's way, and leaves enough for making VMs and opening disks. Never opens or closes what
//! it counts, and never waits.

use std::fmt;
use std::sync::Arc;
#[cfg(not(all(test, ringlet_loom)))]
use std::sync::atomic::{AtomicU64, Ordering};

use ringlet_metrics::{DescriptorReading, DescriptorSource};
use rustix::process::{Resource, getrlimit};

#[cfg(all(test, ringlet_loom))]
use loom::sync::atomic::{AtomicU64, Ordering};

/// Descriptors of connections that each VM may have whatever others have, and as many of greetings: they are counted among
/// those that a VM takes.
pub const OWN_DESCRIPTORS: u64 = 4;

/// The pool of all VMs. Clones are the same pool.
#[derive(Clone)]
pub struct Descriptors(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    max: Option<u64>,
    /// Never less than what the shares have beyond their own.
    used: AtomicU64,
}

/// What one VM takes of a pool. Clones are the same share; any thread may take and give back.
#[derive(Debug, Clone)]
pub struct DescriptorShare(Arc<Share>);

#[derive(Debug)]
struct Share {
    pool: Descriptors,
    connections: Places,
    greetings: Places,
}

/// How many places a VM has for one use. Which of them are its own is not said of any one: it is always as many as can be.
#[derive(Debug)]
struct Places(AtomicU64);

/// What a place is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Connection,
    /// Somebody who has connected and not said where to. May be anybody, so that it takes nothing of what connections have
    /// for themselves, and leaves them half of the pool.
    Greeting,
}

/// The place of one open descriptor; it is given back when it is dropped.
#[derive(Debug)]
#[must_use = "it is given back at once"]
pub struct Descriptor {
    share: Arc<Share>,
    is_for: Use,
}

impl Descriptors {
    /// A pool of at most `max` descriptors; without a number, of half of those that the process may have open at the time
    /// (`RLIMIT_NOFILE`): the other half is for everything else.
    pub fn new(max: Option<u64>) -> Self {
        Self(Arc::new(Pool { max, used: AtomicU64::new(0) }))
    }

    /// The share of another VM.
    pub fn share(&self) -> DescriptorShare {
        let places = || Places(AtomicU64::new(0));
        DescriptorShare(Arc::new(Share { pool: self.clone(), connections: places(), greetings: places() }))
    }

    /// How many there are at most.
    pub fn max(&self) -> u64 {
        self.0.max()
    }

    /// How many are taken, but for those that are VMs' own.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Where the numbers are read.
    pub fn source(&self) -> Arc<dyn DescriptorSource> {
        Arc::clone(&self.0) as Arc<dyn DescriptorSource>
    }

    /// Takes one for a share that has `taken` so many, if it may. The sum is never above the limit, not even for a moment.
    fn take(&self, taken: impl Fn() -> u64, is_for: Use) -> bool {
        let max = self.max();
        let left = if is_for == Use::Greeting { max / 2 } else { 0 };
        let one_more = |used: u64| {
            let free = max.saturating_sub(used);
            (taken() < free && left < free).then_some(used + 1)
        };
        self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    fn give_back(&self) {
        let before = self.0.used.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "one was given back that was not taken");
    }
}

impl Pool {
    fn max(&self) -> u64 {
        // Whoever raises the limit does not have to do it first.
        let half = || getrlimit(Resource::Nofile).current.map_or(u64::MAX, |limit| limit / 2);
        self.max.unwrap_or_else(half)
    }
}

impl DescriptorSource for Pool {
    fn read(&self) -> DescriptorReading {
        DescriptorReading { used: self.used.load(Ordering::Relaxed), max: Some(self.max()) }
    }
}

impl DescriptorShare {
    /// A share that only counts.
    pub fn unlimited() -> Self {
        Descriptors::new(Some(u64::MAX)).share()
    }

    /// A place for one more descriptor of a connection, if there is one: one of the VM's own, else one of the pool.
    pub fn try_take(&self) -> Option<Descriptor> {
        self.try_take_for(Use::Connection)
    }

    /// A place for somebody who has connected and not said where to, if there is one: it is none of those that connections
    /// have for themselves, and connections have half of the pool without greetings.
    pub fn try_take_for_greeting(&self) -> Option<Descriptor> {
        self.try_take_for(Use::Greeting)
    }

    fn try_take_for(&self, is_for: Use) -> Option<Descriptor> {
        let Self(share) = self;
        let places = share.places(is_for);
        if !places.take_own() {
            share.pool.take(|| share.pooled(), is_for).then_some(())?;
            if places.add() {
                share.pool.give_back();
            }
        }
        Some(Descriptor { share: Arc::clone(share), is_for })
    }

    /// How many it has: its own, and those of the pool.
    pub fn used(&self) -> u64 {
        self.0.used()
    }

    /// Where the numbers are read.
    pub fn source(&self) -> Arc<dyn DescriptorSource> {
        Arc::clone(&self.0) as Arc<dyn DescriptorSource>
    }

    /// The pool.
    pub fn pool(&self) -> &Descriptors {
        &self.0.pool
    }
}

impl Share {
    fn places(&self, is_for: Use) -> &Places {
        match is_for {
            Use::Connection => &self.connections,
            Use::Greeting => &self.greetings,
        }
    }

    fn used(&self) -> u64 {
        self.connections.count() + self.greetings.count()
    }

    /// How many it has of the pool.
    fn pooled(&self) -> u64 {
        let pooled = |places: &Places| places.count().saturating_sub(OWN_DESCRIPTORS);
        pooled(&self.connections) + pooled(&self.greetings)
    }
}

impl DescriptorSource for Share {
    fn read(&self) -> DescriptorReading {
        DescriptorReading { used: self.used(), max: None }
    }
}

impl Places {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes one that is the VM's own, if there is one left.
    fn take_own(&self) -> bool {
        let one_more = |count: u64| (count < OWN_DESCRIPTORS).then_some(count + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// Adds one, for which there is one of the pool; true if that is not needed, because it is the VM's own after all.
    fn add(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) < OWN_DESCRIPTORS
    }

    /// Takes off one if it is of the pool, which is the caller's then.
    fn give_up_pooled(&self) -> bool {
        let one_less = |count: u64| (count > OWN_DESCRIPTORS).then(|| count - 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
    }

    /// Takes off one; true if there is one of the pool to be given back.
    fn remove(&self) -> bool {
        let before = self.0.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "one was given back that was not taken");
        before > OWN_DESCRIPTORS
    }
}

impl Descriptor {
    /// Has the place be a connection's: one of the VM's own if there is one left, else the one of the pool that it is, else
    /// another one of the pool.
    ///
    /// # Errors
    /// There is none for a connection: it is what it was.
    pub fn into_connection(mut self) -> Result<Self, Self> {
        let share = Arc::clone(&self.share);
        let Share { pool, connections, greetings } = &*share;
        if self.is_for == Use::Connection {
            return Ok(self);
        }
        // All of a VM's places for one use are alike, so that any of the pool is this one.
        if connections.count() >= OWN_DESCRIPTORS && greetings.give_up_pooled() {
            if connections.add() {
                pool.give_back();
            }
            self.is_for = Use::Connection;
            return Ok(self);
        }
        DescriptorShare(share).try_take().ok_or(self)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let Self { share, is_for } = self;
        if share.places(*is_for).remove() {
            share.pool.give_back();
        }
    }
}

impl fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
#[path = "descriptors_test.rs"]
mod tests;

#[cfg(all(test, ringlet_loom))]
#[path = "descriptors_loom_test.rs"]
mod loom_tests;
