//! What is counted and told of block requests.
//!
//! Owns the limits of log lines about the host's failures, which a guest can cause by asking again; its own
//! mistakes go to the guest-error log, which has its limits. Never decides anything.

use std::cell::Cell;

use ringlet_io::MonoTime;
use ringlet_metrics::{
    DeviceMetrics, Gcra, GuestErrorKind, GuestLog, Rate, RequestKind, RequestStatus, Verdict, guest_error,
};
use tracing::Level;

use super::error::{BlockError, Status};

/// The limits of log lines. They belong to the device: a queue that is reset gets no new ones.
#[derive(Debug, Default)]
pub(super) struct LogLimits {
    errors: Cell<Gcra>,
    others: Cell<Gcra>,
}

impl LogLimits {
    /// How many lines were held back since the last, if one may be printed now.
    fn admit(&self, level: Level) -> Option<u64> {
        let cell = if level == Level::ERROR { &self.errors } else { &self.others };
        let mut gcra = cell.get();
        let verdict = gcra.admit(MonoTime::now().as_nanos(), Rate::LOG_LINES);
        cell.set(gcra);
        match verdict {
            Verdict::Pass { suppressed } => Some(suppressed),
            Verdict::Suppress => None,
        }
    }

    /// Tells of a request that failed.
    pub(super) fn report(
        &self,
        log: &GuestLog,
        metrics: &DeviceMetrics,
        kind: RequestKind,
        error: &BlockError,
    ) {
        let device = metrics.id();
        if error.is_guests() {
            guest_error!(log, GuestErrorKind::BadRequest, "{device}: {kind} request: {error}");
            return;
        }
        let level = error.log_level();
        let Some(suppressed) = self.admit(level) else { return };
        let vm = log.metrics().id();
        if level == Level::ERROR {
            tracing::error!(vm, device, suppressed, "{kind} request: {error}");
        } else {
            tracing::debug!(vm, device, suppressed, "{kind} request: {error}");
        }
    }
}

impl From<Status> for RequestStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Ok => Self::Ok,
            Status::IoError => Self::IoError,
            Status::Unsupported => Self::Unsupported,
        }
    }
}
