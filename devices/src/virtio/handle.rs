//! The host's side of a worker: what it is asked, and what it answers.
//!
//! Owns the commands of host and driver as plain data, and the handle that sends the host's. Never does any of it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ringlet_io::Task;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::device::HostEvent;
use super::link::Ticket;
use super::registers::GuestCommand;
use super::state::VirtioState;
use crate::state::StateError;

/// Why a device's worker cannot do what it was asked, or has ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// Requests did not complete in time and were cancelled; the VM cannot go on.
    #[error("{device}: queues {queues:?} did not drain within {deadline:?}; the VM is unrecoverable")]
    Unrecoverable {
        /// The device.
        device: String,
        /// Its queues with requests in flight.
        queues: Vec<u16>,
        /// How long they had.
        deadline: Duration,
    },
    /// The device could not be made.
    #[error("{device}: {source}")]
    Device {
        /// The device.
        device: String,
        /// What the host said.
        source: io::Error,
    },
    /// A queue could not be started.
    #[error("{device}: queue {queue} cannot be started: {reason}")]
    Queue {
        /// The device.
        device: String,
        /// Its queue.
        queue: u16,
        /// What is wrong.
        reason: String,
    },
    /// The device refuses a saved state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The device is not suspended, so its state cannot be saved.
    #[error("{device} is not suspended")]
    NotSuspended {
        /// The device.
        device: String,
    },
    /// A write by the driver waits for the resume, and no state can hold it: resume, and suspend again.
    #[error("{device}: a register write is under way")]
    Busy {
        /// The device.
        device: String,
    },
    /// The worker has ended.
    #[error("{device}: the worker has ended")]
    Ended {
        /// The device.
        device: String,
    },
}

/// What a worker is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Guest { command: GuestCommand, ticket: Arc<Ticket> },
    Host(HostCommand),
}

/// What the host asks.
#[derive(Debug)]
pub(super) enum HostCommand {
    Suspend(oneshot::Sender<()>),
    Resume(oneshot::Sender<()>),
    Save(oneshot::Sender<Result<VirtioState, WorkerError>>),
    Notice(HostEvent),
    Stop(oneshot::Sender<()>),
}

/// The host's handle of a worker; lives on the shard. Dropping it lets the worker run on; its task ends
/// with the shard.
pub struct WorkerHandle {
    device: String,
    commands: UnboundedSender<Command>,
    task: Task<Result<(), WorkerError>>,
}

impl WorkerHandle {
    pub(super) fn new(
        device: String,
        commands: UnboundedSender<Command>,
        task: Task<Result<(), WorkerError>>,
    ) -> Self {
        Self { device, commands, task }
    }

    /// Stops all queues: when it returns nothing is in flight, the driver has been told of all that was completed,
    /// and nothing happens until the resume. Pause the vCPUs first. Idempotent.
    ///
    /// # Errors
    /// The worker has ended; [`WorkerHandle::ended`] says why.
    pub async fn suspend(&self) -> Result<(), WorkerError> {
        self.ask(HostCommand::Suspend).await
    }

    /// Starts the queues that the suspension stopped. Idempotent.
    ///
    /// # Errors
    /// The worker has ended.
    pub async fn resume(&self) -> Result<(), WorkerError> {
        self.ask(HostCommand::Resume).await
    }

    /// The state to save.
    ///
    /// # Errors
    /// The device is not suspended, or a register write waits for the resume, or the worker has ended.
    pub async fn save(&self) -> Result<VirtioState, WorkerError> {
        self.ask(HostCommand::Save).await?
    }

    /// Tells the device something. Returns at once.
    pub fn notice(&self, event: HostEvent) {
        // A worker that has ended does not care.
        let _ = self.commands.send(Command::Host(HostCommand::Notice(event)));
    }

    /// Drains for good and ends the worker.
    ///
    /// # Errors
    /// The drain failed, now or earlier.
    pub async fn stop(mut self) -> Result<(), WorkerError> {
        let asked = self.ask(HostCommand::Stop).await;
        match self.ended().await {
            Some(error) => Err(error),
            None => asked,
        }
    }

    /// Waits until the worker has ended, and says why if it was not asked to. Cancel-safe.
    pub async fn ended(&mut self) -> Option<WorkerError> {
        match (&mut self.task).await {
            Ok(result) => result.err(),
            Err(_) => Some(WorkerError::Ended { device: self.device.clone() }),
        }
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> HostCommand) -> Result<T, WorkerError> {
        let ended = |()| WorkerError::Ended { device: self.device.clone() };
        let (sender, answer) = oneshot::channel();
        self.commands.send(Command::Host(make(sender))).map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))
    }
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerHandle")
            .field("device", &self.device)
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}
