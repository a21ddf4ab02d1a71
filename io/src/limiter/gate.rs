//! A limit that a test opens by hand.
//!
//! Owns the order of those who ask. Knows no time.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use super::Cost;

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
        // Closed means open for all.
        if let Ok(place) = self.0.places.acquire().await {
            place.forget();
        }
        self.0.passed.lock().unwrap_or_else(PoisonError::into_inner).push(cost);
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
