//! The worker of a device: the one task on the shard that calls it.
//!
//! Owns the device, its doorbells and the order of things: commands of the driver and of the host are done one
//! after another, as they were sent. A command of the driver is answered when everything that it entails is done;
//! a reset, when no host write to guest memory can follow. Never serves a request: that is what the device's queues
//! are for.
//!
//! While the device is suspended the driver's commands wait for the resume. If vCPUs are paused before the device
//! is suspended, none are left over: they were sent before.
//!
//! A drain that takes longer than its deadline ends in cancellation and in [`WorkerError::Unrecoverable`]: then
//! something may write guest memory for ever, which is why no waiting vCPU is answered. That memory stays for as long as
//! an operation of the kernel has a lease of it.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ringlet_io::{Budget, Doorbell, Limiter, LimiterSeed, Owner, ShardContext};
use ringlet_metrics::{GuestLog, guest_error};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::device::{QueueParts, VirtioDevice};
use super::handle::{Command, HostCommand, WorkerError, WorkerHandle};
use super::interrupt::QueueInterrupt;
use super::link::Ticket;
use super::mmio::Shared;
use super::queue::Queue;
use super::registers::{GuestCommand, Registers};
use super::spec::{register, status};
use super::state::{QueueState, VirtioState};
use super::window::Window;
use crate::bus::Value;
use crate::error::GuestError;
use crate::state::StateError;

/// When to look again for registers that a vCPU has, which takes it less than a microsecond if its thread has a CPU.
const REGISTERS_TAKEN: Duration = Duration::from_micros(50);

/// What a worker runs with, apart from the device.
pub(super) struct Setup {
    pub(super) shared: Arc<Shared>,
    pub(super) doorbells: Vec<Doorbell>,
    pub(super) commands: UnboundedReceiver<Command>,
    pub(super) limiter: LimiterSeed,
    pub(super) log: Arc<GuestLog>,
    pub(super) drain_deadline: Duration,
    /// Where to go on.
    pub(super) restored: Option<VirtioState>,
}

/// One queue, as the worker sees it.
struct Seat {
    doorbell: Doorbell,
    running: bool,
    /// Where it was stopped by a suspension.
    suspended: Option<QueueState>,
}

/// A device at work.
pub(super) struct Worker {
    cx: ShardContext,
    owner: Owner,
    budget: Budget,
    device: Box<dyn VirtioDevice>,
    shared: Arc<Shared>,
    seats: Vec<Seat>,
    commands: UnboundedReceiver<Command>,
    deferred: VecDeque<(GuestCommand, Arc<Ticket>)>,
    suspended: bool,
    limiter: Limiter,
    window: Window,
    log: Arc<GuestLog>,
    drain_deadline: Duration,
}

/// Starts a worker.
pub(super) fn spawn(
    cx: &ShardContext,
    owner: &Owner,
    make: impl FnOnce(&ShardContext, &Owner) -> io::Result<Box<dyn VirtioDevice>> + 'static,
    setup: Setup,
    commands: UnboundedSender<Command>,
) -> WorkerHandle {
    let device = setup.shared.identity.id.clone();
    let (name, context, payer) = (device.clone(), cx.clone(), owner.clone());
    let task = cx.spawn(owner, async move {
        let made = make(&context, &payer).map_err(|source| WorkerError::Device { device: name, source })?;
        Worker::new(&context, &payer, made, setup)?.run().await
    });
    WorkerHandle::new(device, commands, task)
}

impl Worker {
    fn new(
        cx: &ShardContext,
        owner: &Owner,
        mut device: Box<dyn VirtioDevice>,
        setup: Setup,
    ) -> Result<Self, WorkerError> {
        let Setup { shared, doorbells, commands, limiter, log, drain_deadline, restored } = setup;
        let seat = |doorbell| Seat { doorbell, running: false, suspended: None };
        let mut seats: Vec<Seat> = doorbells.into_iter().map(seat).collect();
        let suspended = restored.is_some();
        if let Some(state) = restored {
            if u32::from(state.transport.status) & status::FEATURES_OK != 0 {
                let features = state.transport.driver_features;
                let refused =
                    |_| StateError::Field { device: "virtio", field: "driver_features", value: features };
                device.negotiate(features).map_err(refused)?;
            }
            device.restore(&state.device)?;
            for (seat, state) in seats.iter_mut().zip(state.queues) {
                seat.suspended = state;
            }
        }
        let (cx, owner) = (cx.clone(), owner.clone());
        let (budget, deferred) = (cx.budget(&owner), VecDeque::new());
        let limiter = limiter.plant(&cx, &owner).map_err(|error| WorkerError::Device {
            device: device.identity().id.clone(),
            source: io::Error::other(error),
        })?;
        Ok(Self {
            cx,
            owner,
            budget,
            device,
            shared,
            seats,
            commands,
            deferred,
            suspended,
            limiter,
            window: Window::new(),
            log,
            drain_deadline,
        })
    }

    async fn run(mut self) -> Result<(), WorkerError> {
        while let Some(command) = self.commands.recv().await {
            match command {
                Command::Guest { command, ticket } if self.suspended => {
                    self.deferred.push_back((command, ticket))
                }
                Command::Guest { command, ticket } => self.guest(command, &ticket).await?,
                Command::Host(HostCommand::Stop(answer)) => {
                    self.stop(0..self.count()).await?;
                    self.shared.link.leave();
                    let _ = answer.send(());
                    return Ok(());
                }
                Command::Host(command) => self.host(command).await?,
            }
        }
        // Neither a transport nor a handle is left, so no vCPU either.
        self.stop(0..self.count()).await.map(drop)
    }

    async fn host(&mut self, command: HostCommand) -> Result<(), WorkerError> {
        match command {
            HostCommand::Suspend(answer) => {
                self.suspend().await?;
                let _ = answer.send(());
            }
            HostCommand::Resume(answer) => {
                self.resume().await?;
                let _ = answer.send(());
            }
            HostCommand::Save(answer) => {
                let _ = answer.send(self.save().await);
            }
            HostCommand::Notice(event) => self.device.notice(event),
            // Handled by `run`, which it ends.
            HostCommand::Stop(_) => {}
        }
        Ok(())
    }

    async fn suspend(&mut self) -> Result<(), WorkerError> {
        for (index, state) in self.stop(0..self.count()).await? {
            if let Some(seat) = self.seats.get_mut(usize::from(index)) {
                seat.suspended = Some(state);
            }
        }
        self.suspended = true;
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), WorkerError> {
        self.suspended = false;
        for index in 0..self.count() {
            let seat = self.seats.get_mut(usize::from(index));
            if let Some(state) = seat.and_then(|seat| seat.suspended.take()) {
                self.start(index, Some(state)).await?;
            }
        }
        while let Some((command, ticket)) = self.deferred.pop_front() {
            self.guest(command, &ticket).await?;
        }
        Ok(())
    }

    async fn save(&self) -> Result<VirtioState, WorkerError> {
        let device = self.shared.identity.id.clone();
        if !self.suspended {
            return Err(WorkerError::NotSuspended { device });
        }
        let registers = self.registers().await;
        if registers.pending.is_some() {
            return Err(WorkerError::Busy { device });
        }
        let low = |bits: u32| bits.to_le_bytes()[0];
        let signals = &self.shared.signals;
        Ok(VirtioState {
            version: VirtioState::VERSION,
            device_type: self.shared.identity.device_type,
            transport: registers.save(low(signals.status()), low(signals.isr())),
            queues: self.seats.iter().map(|seat| seat.suspended).collect(),
            device: self.device.save(),
        })
    }

    /// Does what a driver's write entails, and answers. How often a driver may ask is decided where its vCPU waits.
    async fn guest(&mut self, command: GuestCommand, ticket: &Ticket) -> Result<(), WorkerError> {
        self.budget.spend().await;
        match command {
            GuestCommand::Reset => self.reset().await?,
            GuestCommand::Negotiate { features, bits } => match self.device.negotiate(features) {
                Ok(()) => self.shared.signals.add_status(bits),
                Err(error) => self.refuse(&error),
            },
            GuestCommand::Start { bits } => {
                self.shared.signals.add_status(bits);
                for index in self.ready().await {
                    self.start(index, None).await?;
                }
            }
            GuestCommand::StartQueue(index) => self.start(index, None).await?,
            GuestCommand::StopQueue { index, reset } => {
                self.stop(index..index.saturating_add(1)).await?;
                self.shared.metrics.queue_resets.inc();
                self.registers().await.queue_stopped(index, reset);
            }
            GuestCommand::WriteConfig { offset, data, len } => {
                let data = data.get(..len).unwrap_or_default();
                if let Err(error) = self.device.write_config(offset, data) {
                    self.refuse_write(offset, data, error);
                }
            }
        }
        self.registers().await.pending = None;
        ticket.finish();
        self.shared.link.wake();
        Ok(())
    }

    async fn reset(&mut self) -> Result<(), WorkerError> {
        let stopped = self.stop(0..self.count()).await?.len();
        self.shared.metrics.queue_resets.add(stopped as u64);
        self.device.reset();
        for seat in &self.seats {
            self.shared.metrics.stray_notifications.add(seat.doorbell.take_rings());
        }
        self.registers().await.reset();
        self.shared.signals.reset();
        Ok(())
    }

    /// Counts and logs what the device refuses.
    fn refuse(&self, error: &GuestError) {
        let id = &self.shared.identity.id;
        guest_error!(self.log, error.kind(), "{id}: {error}");
    }

    /// As [`Self::refuse`], of a write at `offset` of the configuration space; told as the bus tells its own.
    fn refuse_write(&self, offset: u64, data: &[u8], error: GuestError) {
        let (id, width, value) = (&self.shared.identity.id, data.len(), Value(data));
        let (at, error) = (register::CONFIG.saturating_add(offset), error.behind(register::CONFIG));
        guest_error!(
            self.log,
            error.kind(),
            "{id}: write of {value} ({width} bytes) at offset {at:#x}: {error}"
        );
    }

    /// The registers, once no vCPU has them. Not to be held across an await.
    async fn registers(&self) -> MutexGuard<'_, Registers> {
        loop {
            if let Some(registers) = self.shared.try_registers() {
                return registers;
            }
            self.cx.timer().sleep(REGISTERS_TAKEN).await;
        }
    }

    fn count(&self) -> u16 {
        u16::try_from(self.seats.len()).unwrap_or(u16::MAX)
    }

    /// The queues that the driver enabled.
    async fn ready(&self) -> Vec<u16> {
        let registers = self.registers().await;
        let slots = (0u16..).zip(&registers.slots);
        slots.filter(|(_, slot)| slot.layout.is_some()).map(|(index, _)| index).collect()
    }

    async fn start(&mut self, index: u16, state: Option<QueueState>) -> Result<(), WorkerError> {
        let (layout, features) = {
            let registers = self.registers().await;
            let slot = registers.slots.get(usize::from(index));
            (slot.and_then(|slot| slot.layout), registers.driver_features)
        };
        let shared = &self.shared;
        let failed =
            |reason: String| WorkerError::Queue { device: shared.identity.id.clone(), queue: index, reason };
        let seat = self.seats.get_mut(usize::from(index)).filter(|seat| !seat.running);
        let (Some(layout), Some(seat)) = (layout, seat) else {
            return Err(failed("it is not enabled, or running already".to_owned()));
        };
        if state.is_none() {
            // Rings from before the queue was ready. It looks at its ring anyway.
            shared.metrics.stray_notifications.add(seat.doorbell.take_rings());
        }
        let queue = Queue::new(layout, features, &shared.ram).map_err(|error| failed(error.to_string()))?;
        let doorbell = seat.doorbell.share().listen(&self.cx).map_err(|error| failed(error.to_string()))?;
        let parts = QueueParts {
            cx: self.cx.clone(),
            index,
            queue,
            doorbell,
            interrupt: QueueInterrupt::new(&shared.signals),
            ram: shared.ram.clone(),
            limiter: self.limiter.clone(),
            window: self.window.clone(),
            budget: self.cx.budget(&self.owner),
            owner: self.owner.clone(),
            metrics: Arc::clone(&shared.metrics),
            log: Arc::clone(&self.log),
        };
        seat.running = true;
        self.device.start_queue(index, parts, state);
        Ok(())
    }

    /// Drains the queues that run, all at once; gives where each stopped.
    async fn stop(&mut self, queues: std::ops::Range<u16>) -> Result<Vec<(u16, QueueState)>, WorkerError> {
        let mut left = Vec::new();
        let mut draining = FuturesUnordered::new();
        for index in queues {
            let Some(seat) = self.seats.get_mut(usize::from(index)) else { continue };
            // Also what an earlier suspension left is over now.
            seat.suspended = seat.suspended.filter(|_| self.suspended);
            if std::mem::take(&mut seat.running) {
                let stopped = self.device.stop_queue(index);
                draining.push(async move { (index, stopped.await) });
                left.push(index);
            }
        }
        let _goes_on = self.owner.drain();
        let mut states = Vec::with_capacity(left.len());
        let mut deadline = pin!(self.cx.timer().sleep(self.drain_deadline));
        while !draining.is_empty() {
            tokio::select! {
                biased;
                stopped = draining.next() => match stopped {
                    Some((index, Some(state))) => {
                        left.retain(|other| *other != index);
                        states.push((index, state));
                    }
                    // The task of a queue that ran is gone: what it had in flight may still write.
                    _ => break,
                },
                () = &mut deadline => break,
            }
        }
        if left.is_empty() { Ok(states) } else { Err(self.lose(left)) }
    }

    /// Requests cannot be reclaimed. The memory that they may write stays as long as they do: an operation of the
    /// kernel owns its lease, and that owns the memory.
    fn lose(&self, queues: Vec<u16>) -> WorkerError {
        let error = WorkerError::Unrecoverable {
            device: self.shared.identity.id.clone(),
            queues,
            deadline: self.drain_deadline,
        };
        tracing::error!(%error, "a device did not drain");
        error
    }
}
