//! A limit that a test opens by hand.
//!
//! Owns the order of those who ask. Knows no time.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};

use super::{Cost, CostKind};

/// A gate that a test opens; shut at first. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<GateInner>);

struct GateInner {
    /// Requests that may pass; closed when the gate is open for good.
    places: Semaphore,
    passed: Mutex<Vec<Cost>>,
}

impl Gate {
    /// A gate that lets nothing through.
    pub fn new() -> Self {
        Self(Arc::new(GateInner { places: Semaphore::new(0), passed: Mutex::default() }))
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.0.places.close();
    }

    /// Lets `requests` more through.
    pub fn let_through(&self, requests: usize) {
        self.0.places.add_permits(requests);
    }

    /// How many requests were admitted.
    pub fn admissions(&self) -> usize {
        self.costs().len()
    }

    /// What was admitted, in order.
    pub fn costs(&self) -> Vec<Cost> {
        self.0.passed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn pass(&self, cost: Cost) {
        self.pass_and(cost.kind, || ((), Some(cost.bytes))).await;
    }

    /// Lets a request through if it may pass at once.
    pub(super) fn try_pass(&self, cost: Cost) -> bool {
        match self.0.places.try_acquire() {
            Ok(place) => place.forget(),
            // Open for all.
            Err(TryAcquireError::Closed) => {}
            Err(TryAcquireError::NoPermits) => return false,
        }
        self.0.passed.lock().unwrap_or_else(PoisonError::into_inner).push(cost);
        true
    }

    /// Lets a request through that gives its bytes, or `None`: then it was none.
    pub(super) async fn pass_and<T>(&self, kind: CostKind, act: impl FnOnce() -> (T, Option<u64>)) -> T {
        // Closed means open for all.
        let place = self.0.places.acquire().await;
        let (done, bytes) = act();
        if let Some(bytes) = bytes {
            place.into_iter().for_each(SemaphorePermit::forget);
            self.0.passed.lock().unwrap_or_else(PoisonError::into_inner).push(Cost { kind, bytes });
        }
        done
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("admissions", &self.admissions()).finish_non_exhaustive()
    }
}
