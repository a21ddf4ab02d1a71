//! Putting a device together: registers for the vCPUs, a worker for the shard.
//!
//! Owns what is checked before a VM has the device. Runs where the VM is assembled; nothing of it blocks but the
//! creation of eventfds.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringlet_io::{Doorbell, GuestRam, LimiterSeed, Owner, ShardContext};
use ringlet_metrics::{DeviceMetrics, GuestLog};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::config::ConfigSpace;
use super::device::{Identity, VirtioDevice};
use super::handle::{Command, WorkerHandle};
use super::interrupt::{QueueInterrupt, Signals};
use super::link::Link;
use super::mmio::{MmioTransport, Shared};
use super::registers::Registers;
use super::rules::impossible;
use super::spec::{MAX_QUEUE_SIZE, MAX_QUEUES, status};
use super::state::VirtioState;
use super::worker::{Setup, spawn};
use crate::ioapic::LineOut;
use crate::state::{StateError, check_version};

/// How long requests that are in flight may take to complete when a queue is stopped.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Makes the device, on its shard; its operations are the owner's.
pub type MakeDevice = Box<dyn FnOnce(&ShardContext, &Owner) -> io::Result<Box<dyn VirtioDevice>> + Send>;

/// Everything that a virtio device is made of.
pub struct VirtioSpec {
    /// Who the device is. The device's own [`VirtioDevice::identity`] must be the same.
    pub identity: Identity,
    /// Its configuration space, a clone of which the device has.
    pub config: ConfigSpace,
    /// Makes the device.
    pub device: MakeDevice,
    /// Its interrupt line.
    pub line: LineOut,
    /// The VM's memory.
    pub ram: GuestRam,
    /// What its queues ask.
    pub limiter: LimiterSeed,
    /// Its numbers.
    pub metrics: Arc<DeviceMetrics>,
    /// Where the driver's mistakes are told.
    pub log: Arc<GuestLog>,
    /// Lets vCPUs that wait for their shard look again whether the wait is over. Called on the shard; must not
    /// wait.
    pub wake: Box<dyn Fn() + Send + Sync>,
    /// [`DRAIN_DEADLINE`], or another.
    pub drain_deadline: Duration,
}

/// Why a device cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// Its description is impossible. A mistake of ours.
    #[error("{device}: {reason}")]
    Identity {
        /// The device.
        device: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// There is no eventfd for a doorbell.
    #[error("{device}: no doorbell: {source}")]
    Doorbell {
        /// The device.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl VirtioSpec {
    /// Makes the registers, to be put on the bus, and what the worker starts from.
    ///
    /// # Errors
    /// The identity is impossible, or eventfds are lacking.
    pub fn assemble(self) -> Result<(Arc<MmioTransport>, WorkerSeed), AssembleError> {
        check(&self.identity)?;
        let device = &self.identity.id;
        let bell =
            || Doorbell::new().map_err(|source| AssembleError::Doorbell { device: device.clone(), source });
        let doorbells = self.identity.queue_sizes.iter().map(|_| bell()).collect::<Result<Vec<_>, _>>()?;
        let signals = Signals::new(self.line, bell()?, Arc::clone(&self.metrics));
        self.config.connect(QueueInterrupt::new(&signals));
        let shared = Arc::new(Shared {
            registers: Mutex::new(Registers::new(self.identity.queue_sizes.len())),
            identity: self.identity,
            config: self.config,
            signals,
            link: Link::new(self.wake),
            ram: self.ram,
            metrics: self.metrics,
        });
        let (sender, commands) = unbounded_channel();
        let senders = doorbells.iter().map(Doorbell::sender).collect();
        let transport = MmioTransport::new(Arc::clone(&shared), senders, sender.clone());
        let (limiter, log, drain_deadline) = (self.limiter, self.log, self.drain_deadline);
        let setup = Setup { shared, doorbells, commands, limiter, log, drain_deadline, restored: None };
        Ok((Arc::new(transport), WorkerSeed { setup, device: self.device, sender }))
    }
}

impl fmt::Debug for VirtioSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioSpec").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A worker that has not started. `Send`: it goes to the shard.
pub struct WorkerSeed {
    setup: Setup,
    device: MakeDevice,
    sender: UnboundedSender<Command>,
}

impl WorkerSeed {
    /// Takes a saved state, before the VM runs. The worker then starts suspended.
    ///
    /// # Errors
    /// The state is of another device or version, or holds what no driver could have brought about. What is the
    /// device's own is checked when the worker starts.
    pub fn restore(&mut self, state: VirtioState) -> Result<(), StateError> {
        check_version("virtio", state.version, VirtioState::VERSION)?;
        let shared = &self.setup.shared;
        if state.device_type != shared.identity.device_type {
            return Err(impossible("device_type", state.device_type.into()));
        }
        let registers = Registers::restore(&state.transport, &shared.identity, &shared.ram)?;
        if state.queues.len() != registers.slots.len() {
            return Err(impossible("queue states", state.queues.len() as u64));
        }
        let live = u32::from(state.transport.status) & status::DRIVER_OK != 0;
        for (queue, slot) in state.queues.iter().zip(&registers.slots) {
            if queue.is_some() != (live && slot.layout.is_some()) {
                return Err(impossible("queue state", u64::from(queue.is_some())));
            }
        }
        shared.signals.restore(state.transport.status.into(), state.transport.interrupt_status.into());
        *shared.registers() = registers;
        self.setup.restored = Some(state);
        Ok(())
    }

    /// Starts the worker; `owner` pays for the device's time. If the device cannot be made, or refuses its saved
    /// state, [`WorkerHandle::ended`] says so.
    pub fn run(self, cx: &ShardContext, owner: &Owner) -> WorkerHandle {
        spawn(cx, owner, self.device, self.setup, self.sender)
    }
}

impl fmt::Debug for WorkerSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerSeed").field("identity", &self.setup.shared.identity).finish_non_exhaustive()
    }
}

fn check(identity: &Identity) -> Result<(), AssembleError> {
    let sizes = &identity.queue_sizes;
    let reason = if sizes.is_empty() || sizes.len() > usize::from(MAX_QUEUES) {
        "it has no queues, or too many"
    } else if sizes.iter().any(|size| !size.is_power_of_two() || *size > MAX_QUEUE_SIZE) {
        "a queue's size is no power of two, or too large"
    } else {
        return Ok(());
    };
    Err(AssembleError::Identity { device: identity.id.clone(), reason })
}
