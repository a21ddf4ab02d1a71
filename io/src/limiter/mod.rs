//! What a queue asks before it spends anything: the place of a VM's I/O limits.
//!
//! Owns the question (`admit`) and its answer. Never does I/O, and takes nothing for a request that did not
//! wait to the end: a queue peeks a request, awaits [`Limiter::admit`], and only then consumes it.

mod meter;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

pub use meter::{LimitError, MAX_REFILL_TIME, Meter, MeterState, Taken, TokenBucket};

/// What kind of work a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CostKind {
    /// Data comes from the host: a disk read, a frame that is received.
    Read,
    /// Data goes to the host: a disk write, a frame that is sent.
    Write,
    /// No data to speak of: flush, discard, identification.
    Other,
}

/// What one request costs: one operation, and so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// What kind of operation it is.
    pub kind: CostKind,
    /// Bytes of data, 0 for [`CostKind::Other`].
    pub bytes: u64,
}

impl Cost {
    /// The cost of reading `bytes`.
    pub const fn read(bytes: u64) -> Self {
        Self { kind: CostKind::Read, bytes }
    }

    /// The cost of writing `bytes`.
    pub const fn write(bytes: u64) -> Self {
        Self { kind: CostKind::Write, bytes }
    }

    /// The cost of an operation without data.
    pub const fn other() -> Self {
        Self { kind: CostKind::Other, bytes: 0 }
    }
}

/// The limits that hold for one device. Clones are the same limits.
#[derive(Debug, Clone, Default)]
pub struct Limiter(Rule);

#[derive(Debug, Clone, Default)]
enum Rule {
    #[default]
    Unlimited,
    Gated(Gate),
}

impl Limiter {
    /// Admits everything at once.
    pub const fn unlimited() -> Self {
        Self(Rule::Unlimited)
    }

    /// Admits what `gate` lets through, in the order of asking. For tests of whoever asks.
    pub fn gated(gate: Gate) -> Self {
        Self(Rule::Gated(gate))
    }

    /// Waits until a request of this cost may be done, and charges it.
    ///
    /// Cancel-safe: dropped while it waits, nothing is charged.
    pub async fn admit(&self, cost: Cost) {
        match &self.0 {
            Rule::Unlimited => {}
            Rule::Gated(gate) => gate.pass(cost).await,
        }
    }
}

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

    async fn pass(&self, cost: Cost) {
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

#[cfg(test)]
#[path = "limiter_test.rs"]
mod tests;
