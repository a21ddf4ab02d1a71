//! What connections of VMs may take of the descriptors that a process can have (`RLIMIT_NOFILE`), all VMs together.
//!
//! Owns the sum, and its limit; lock-free. [`Descriptors`] is the pool, [`DescriptorShare`] what one VM takes: the first
//! [`OWN_DESCRIPTORS`] are its own, which nobody else can take, and further ones come out of the pool as long as there
//! are any. So a VM that takes as many as it gets is in nobody's way, and leaves enough for making VMs and opening disks.
//! Never opens or closes what it counts, and never waits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, getrlimit};

/// Descriptors of connections that each VM may have whatever others have: they are counted among those that a VM takes.
pub const OWN_DESCRIPTORS: u64 = 4;

/// The pool of all VMs. Clones are the same pool.
#[derive(Clone)]
pub struct Descriptors(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    max: Option<u64>,
    used: AtomicU64,
}

/// What one VM takes of a pool. Clones are the same share; any thread may take and give back.
#[derive(Debug, Clone)]
pub struct DescriptorShare(Arc<Share>);

#[derive(Debug)]
struct Share {
    pool: Descriptors,
    own: AtomicU64,
}

/// The place of one open descriptor; it is given back when it is dropped.
#[derive(Debug)]
#[must_use = "it is given back at once"]
pub struct Descriptor {
    share: Arc<Share>,
    is_own: bool,
}

impl Descriptors {
    /// A pool of at most `max` descriptors; without a number, of half of those that the process may have open at the time
    /// (`RLIMIT_NOFILE`): the other half is for everything else.
    pub fn new(max: Option<u64>) -> Self {
        Self(Arc::new(Pool { max, used: AtomicU64::new(0) }))
    }

    /// The share of another VM.
    pub fn share(&self) -> DescriptorShare {
        DescriptorShare(Arc::new(Share { pool: self.clone(), own: AtomicU64::new(0) }))
    }

    /// How many there are at most.
    pub fn max(&self) -> u64 {
        // Whoever raises the limit does not have to do it first.
        let half = || getrlimit(Resource::Nofile).current.map_or(u64::MAX, |limit| limit / 2);
        self.0.max.unwrap_or_else(half)
    }

    /// How many are taken, but for those that are VMs' own.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }
}

impl DescriptorShare {
    /// A share that only counts.
    pub fn unlimited() -> Self {
        Descriptors::new(Some(u64::MAX)).share()
    }

    /// A place for one more descriptor, if there is one: one of the VM's own, else one of the pool.
    pub fn try_take(&self) -> Option<Descriptor> {
        let Share { pool, own } = &*self.0;
        let is_own = take_one(own, OWN_DESCRIPTORS);
        (is_own || take_one(&pool.0.used, pool.max()))
            .then(|| Descriptor { share: Arc::clone(&self.0), is_own })
    }

    /// The pool.
    pub fn pool(&self) -> &Descriptors {
        &self.0.pool
    }
}

/// The sum is never above the limit, not even for a moment.
fn take_one(used: &AtomicU64, max: u64) -> bool {
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < max).then_some(used + 1)).is_ok()
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let Share { pool, own } = &*self.share;
        let used = if self.is_own { own } else { &pool.0.used };
        let before = used.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "one was given back that was not taken");
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
