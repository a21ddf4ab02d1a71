//! What a virtio device is to the core.
//!
//! Owns the trait and what a queue is started with. A device lives on its VM's shard and is `!Send`; its
//! [`DeviceWorker`](super::WorkerSeed) calls it, never a vCPU. It never sees a register, an eventfd or a ring
//! index.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ringlet_io::{Budget, DoorbellListener, GuestRam, Limiter, Owner, ShardContext};
use ringlet_metrics::{DeviceMetrics, GuestLog, guest_error};

use super::config::ConfigSpace;
use super::interrupt::QueueInterrupt;
use super::queue::{Queue, QueueError};
use super::spec::feature;
use super::state::{DeviceState, QueueState};
use super::window::Window;
use crate::error::GuestError;
use crate::state::StateError;

/// A future that stays on its thread.
pub type LocalBoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// What a device tells its driver about itself, fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Identifier within the VM, for logs, such as `disk0`.
    pub id: String,
    /// Type of the device ([`device_type`](super::spec::device_type)).
    pub device_type: u32,
    /// The device's own feature bits; those of the core are added.
    pub features: u64,
    /// The longest size of each queue: powers of two, at most [`MAX_QUEUE_SIZE`](super::spec::MAX_QUEUE_SIZE).
    pub queue_sizes: Vec<u16>,
}

impl Identity {
    /// Everything that the driver is offered.
    pub fn offered(&self) -> u64 {
        (self.features | feature::CORE) & !feature::ACCESS_PLATFORM
    }
}

/// What the host tells a device. Plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostEvent {
    /// The backend may have another size: look at it.
    BackendChanged,
    /// The terminal of a console has this size.
    Resized {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// The link of a network interface is up.
    LinkUp,
    /// The link of a network interface is down: its packets are dropped.
    LinkDown,
}

/// Everything that the task of a queue may touch.
#[derive(Debug)]
pub struct QueueParts {
    /// The shard.
    pub cx: ShardContext,
    /// Number of the queue.
    pub index: u16,
    /// The queue, at its start: [`Queue::resume`] takes it to where a saved one stood.
    pub queue: Queue,
    /// Rung by the driver.
    pub doorbell: DoorbellListener,
    /// Rings the driver.
    pub interrupt: QueueInterrupt,
    /// The VM's memory.
    pub ram: GuestRam,
    /// Asked before a chain is consumed.
    pub limiter: Limiter,
    /// Where what is in flight has its place.
    pub(super) window: Window,
    /// Asked before a chain is looked at, so that a VM has its share of a turn and no more.
    pub budget: Budget,
    /// Who pays for the task's time.
    pub owner: Owner,
    /// The device's numbers.
    pub metrics: Arc<DeviceMetrics>,
    /// Where the driver's mistakes are told.
    pub log: Arc<GuestLog>,
}

impl QueueParts {
    /// A queue is broken: counts and logs why, and tells the driver. Called once for a queue, which is then
    /// parked until it is stopped.
    pub fn report_broken(&self, error: &QueueError) {
        report_broken(&self.log, &self.metrics, &self.interrupt, self.index, error);
    }
}

/// See [`QueueParts::report_broken`].
pub(crate) fn report_broken(
    log: &GuestLog,
    metrics: &DeviceMetrics,
    interrupt: &QueueInterrupt,
    index: u16,
    error: &QueueError,
) {
    metrics.broken_queues.inc();
    guest_error!(log, error.kind(), "{}: queue {index} is broken: {error}", metrics.id());
    interrupt.needs_reset();
}

/// A virtio device. All calls come from its worker, one at a time.
pub trait VirtioDevice {
    /// Type, features and queues.
    fn identity(&self) -> &Identity;

    /// The configuration space, which the device updates when something changes.
    fn config(&self) -> &ConfigSpace;

    /// The driver accepted these features, all of which were offered (FEATURES_OK, section 3.1.1); no queue is
    /// running. Also called before [`VirtioDevice::restore`].
    ///
    /// # Errors
    /// A combination that makes no sense: the driver does not get FEATURES_OK.
    fn negotiate(&mut self, features: u64) -> Result<(), GuestError> {
        let _ = features;
        Ok(())
    }

    /// The driver writes to the configuration space; `offset` and length (1, 2 or 4 bytes) lie in it. Comes at any
    /// time, also before [`VirtioDevice::negotiate`].
    ///
    /// # Errors
    /// The field cannot be written, which is so unless the device says otherwise.
    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<(), GuestError> {
        let _ = data;
        Err(GuestError::ReadOnly { offset })
    }

    /// Starts a queue that is not running: from its beginning, or from a saved `state`; then the queue looks at
    /// its ring at once and raises one interrupt that may be spurious, since nobody knows which were lost.
    fn start_queue(&mut self, index: u16, parts: QueueParts, state: Option<QueueState>);

    /// Stops a queue: no further chain is consumed; what is in flight is completed, and the driver is told. `None`
    /// if it was not running. Dropping the future cancels what is in flight, which is the last resort.
    fn stop_queue(&mut self, index: u16) -> LocalBoxFuture<Option<QueueState>>;

    /// The driver resets the device; no queue is running.
    fn reset(&mut self);

    /// What is the device's own to save; no queue is running.
    fn save(&self) -> DeviceState;

    /// Takes a saved state back; no queue is running.
    ///
    /// # Errors
    /// If it is of another device, or holds what the device could never have held.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;

    /// The host has something to tell.
    fn notice(&mut self, event: HostEvent) {
        let _ = event;
    }
}
