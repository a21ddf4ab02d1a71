//! How often a device may tell of failures of the host, which a guest can cause by asking again.
//!
//! Owns the rate of one kind of line. The guest's own mistakes go to the guest-error log, which has its limits. Never
//! prints anything.

use std::cell::Cell;

use ringlet_io::MonoTime;
use ringlet_metrics::{Gcra, Rate, Verdict};

/// The rate of one kind of line of one device. It belongs to the device: a queue that is reset gets no new one.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Cell<Gcra>);

impl LogLimit {
    /// How many lines were held back since the last, if one may be printed now.
    pub(crate) fn admit(&self) -> Option<u64> {
        let mut gcra = self.0.get();
        let verdict = gcra.admit(MonoTime::now().as_nanos(), Rate::LOG_LINES);
        self.0.set(gcra);
        match verdict {
            Verdict::Pass { suppressed } => Some(suppressed),
            Verdict::Suppress => None,
        }
    }
}

#[cfg(test)]
#[path = "log_limit_test.rs"]
mod tests;
