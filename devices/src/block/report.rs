//! What is counted and told of block requests.
//!
//! Owns the limits of log lines about the host's failures, which a guest can cause by asking again; its own
//! mistakes go to the guest-error log, which has its limits. Never decides anything.

use ringlet_metrics::{DeviceMetrics, GuestErrorKind, GuestLog, RequestKind, RequestStatus, guest_error};
use tracing::Level;

use super::error::{BlockError, Status};
use crate::log_limit::LogLimit;

/// The limits of log lines. They belong to the device: a queue that is reset gets no new ones.
#[derive(Debug, Default)]
pub(super) struct LogLimits {
    errors: LogLimit,
    others: LogLimit,
}

impl LogLimits {
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
        let limit = if level == Level::ERROR { &self.errors } else { &self.others };
        let Some(suppressed) = limit.admit() else { return };
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
