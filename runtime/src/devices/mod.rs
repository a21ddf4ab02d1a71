//! The virtio devices of one VM, as its lifecycle sees them: started, suspended, resumed and stopped together.
//!
//! Owns the handles of their workers on the shard. Never knows what a device does.

mod keeper;
pub(crate) mod throttle;

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

pub(crate) use keeper::seed;
use ringlet_devices::virtio::HostEvent;
use ringlet_io::limiter::{LimitError, Limits};
use ringlet_io::{Owner, ShardContext};

use crate::config::LimitsConfig;

/// What a device's worker does for the lifecycle. Commands are carried out in the order in which they are given,
/// whether somebody waits for them or not.
pub(crate) trait Worker {
    /// The device's name in its VM.
    fn id(&self) -> &str;
    /// The host has something to tell the device.
    fn notice(&self, event: HostEvent);
    /// Stops the device's queues and lets what is under way complete. At rest, the device touches no guest memory.
    fn suspend(&self) -> Pending;
    /// Starts the queues again where they stopped.
    fn resume(&self);
    /// As [`Self::suspend`], for good.
    fn stop(&self) -> Pending;
    /// Ready when the device cannot go on.
    fn poll_fault(&self, cx: &mut Context<'_>) -> Poll<Fault>;
}

/// The end of a command. Dropping it undoes nothing.
pub(crate) type Pending = Pin<Box<dyn Future<Output = Result<(), Fault>>>>;

/// Why a VM cannot go on: what happened, with the device's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) error: String,
}

/// What becomes a worker on its shard.
pub(crate) type WorkerSeed = Box<dyn FnOnce(&ShardContext, &Owner) -> Box<dyn Worker> + Send>;

/// The devices' state, as far as the lifecycle has heard of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    Running,
    /// At rest or on the way there.
    Suspended,
    Stopped,
}

/// The devices of one VM.
pub(crate) struct Devices {
    workers: Vec<Box<dyn Worker>>,
    /// Has their limits.
    owner: Owner,
    activity: Cell<Activity>,
}

impl Devices {
    /// Starts the workers. One that cannot start tells it by [`Self::fault`].
    pub(crate) fn start(seeds: Vec<WorkerSeed>, cx: &ShardContext, owner: &Owner) -> Self {
        let workers = seeds.into_iter().map(|seed| seed(cx, owner)).collect();
        Self { workers, owner: owner.clone(), activity: Cell::new(Activity::Running) }
    }

    /// Changes the limits of a device: what `change` does not name stays. `Ok(false)` if there is none of that name.
    pub(crate) fn limit(&self, device: &str, change: &Limits) -> Result<bool, LimitError> {
        if self.workers.iter().all(|worker| worker.id() != device) {
            return Ok(false);
        }
        throttle::change(&self.owner, device, change)
    }

    /// Gives all disks together, and all network interfaces, these limits and no others.
    pub(crate) fn limit_all(&self, limits: &LimitsConfig) -> Result<(), LimitError> {
        throttle::limit_all(&self.owner, limits)
    }

    /// Waits for a device that cannot go on; for ever, if all can.
    pub(crate) async fn fault(&self) -> Fault {
        poll_fn(|cx| {
            let mut faults = self.workers.iter().map(|worker| worker.poll_fault(cx));
            faults.find(Poll::is_ready).unwrap_or(Poll::Pending)
        })
        .await
    }

    /// Brings all devices to rest, in parallel.
    pub(crate) fn suspend(&self) -> Pending {
        debug_assert_eq!(self.activity.get(), Activity::Running, "devices are suspended twice");
        self.activity.set(Activity::Suspended);
        all(self.workers.iter().map(|worker| worker.suspend()).collect())
    }

    /// Lets all devices go on.
    pub(crate) fn resume(&self) {
        debug_assert_eq!(self.activity.get(), Activity::Suspended, "devices that run are resumed");
        self.activity.set(Activity::Running);
        self.workers.iter().for_each(|worker| worker.resume());
    }

    /// Brings all devices to their end, in parallel.
    pub(crate) fn stop(&self) -> Pending {
        debug_assert_ne!(self.activity.get(), Activity::Stopped, "devices are stopped twice");
        self.activity.set(Activity::Stopped);
        all(self.workers.iter().map(|worker| worker.stop()).collect())
    }

    /// Tells a device something; `false` if there is no such device.
    pub(crate) fn notice(&self, device: &str, event: HostEvent) -> bool {
        let worker = self.workers.iter().find(|worker| worker.id() == device);
        worker.inspect(|worker| worker.notice(event)).is_some()
    }

    pub(crate) fn activity(&self) -> Activity {
        self.activity.get()
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.workers.len();
        f.debug_struct("Devices").field("workers", &count).field("activity", &self.activity).finish()
    }
}

/// The end of commands that are under way together: the first fault, when all have ended.
fn all(pending: Vec<Pending>) -> Pending {
    Box::pin(async move {
        let mut result = Ok(());
        for each in pending {
            result = result.and(each.await);
        }
        result
    })
}
