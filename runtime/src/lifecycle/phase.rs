//! Where a VM is in its life.

use std::fmt;

use ringlet_metrics::VmState;

use super::Reply;
use crate::devices::{Fault, Pending};
use crate::outcome::Outcome;

/// Where a VM is in its life, with whoever waits for the next step.
pub(super) enum Phase {
    Created,
    Running,
    /// The vCPUs are on their way to rest.
    Pausing(Vec<Reply>),
    /// The vCPUs are at rest, the devices on their way there.
    Suspending(Vec<Reply>, Pending),
    Paused,
    Stopping(Cause),
}

/// Why a VM ends.
#[derive(Debug)]
pub(super) enum Cause {
    Guest(Outcome),
    Device(Fault),
    Host,
    TimeLimit,
}

impl Phase {
    pub(super) fn state(&self) -> VmState {
        match self {
            Self::Created => VmState::Created,
            Self::Running | Self::Pausing(_) | Self::Suspending(..) => VmState::Running,
            Self::Paused => VmState::Paused,
            Self::Stopping(_) => VmState::Stopping,
        }
    }

    /// The state as the end of a sentence.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Created => "has not been started",
            Self::Running => "is running",
            Self::Pausing(_) | Self::Suspending(..) => "is being paused",
            Self::Paused => "is paused",
            Self::Stopping(_) => "is ending",
        }
    }

    /// Waits until the devices are at rest; for ever, if nobody has asked them to be.
    pub(super) async fn devices_at_rest(&mut self) -> Result<(), Fault> {
        match self {
            Self::Suspending(_, devices) => devices.await,
            _ => std::future::pending().await,
        }
    }
}

impl fmt::Debug for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}
