//! The virtio-mmio transport as vCPUs see it (virtio 1.2, section 4.2; version 2, no legacy interface).
//!
//! Owns the register file and decides every access at once, under one mutex. What takes the shard (resets,
//! starting and stopping queues, writes to the configuration) goes to the device's worker as a command, one at a
//! time: the vCPU waits for the answer, and another vCPU that writes meanwhile waits and writes again. Reads
//! never wait; neither do notifications and acknowledgements. Never calls a device, and does nothing outside
//! while the mutex is held, lest it wakes somebody who wants the mutex. The shard never waits for it: a vCPU's thread
//! may have no CPU while it holds it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use ringlet_io::{Doorbell, DoorbellSender, GuestRam};
use ringlet_metrics::DeviceMetrics;
use tokio::sync::mpsc::UnboundedSender;

use super::config::ConfigSpace;
use super::device::Identity;
use super::handle::Command;
use super::interrupt::Signals;
use super::link::{Link, Ticket};
use super::registers::{Context, Effect, GuestCommand, Registers};
use super::rules::check_config;
use super::spec::{isr, register};
use crate::bus::{Action, BusDevice, Then, Wait};
use crate::error::GuestError;

/// What the transport and its worker share.
pub(super) struct Shared {
    pub(super) identity: Identity,
    pub(super) config: ConfigSpace,
    pub(super) signals: Arc<Signals>,
    pub(super) link: Arc<Link>,
    pub(super) ram: GuestRam,
    pub(super) metrics: Arc<DeviceMetrics>,
    pub(super) registers: Mutex<Registers>,
}

impl Shared {
    pub(super) fn registers(&self) -> MutexGuard<'_, Registers> {
        // Every change under this lock leaves the registers valid, so a panic under it does no harm.
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::registers`], for the shard: `None` while somebody else has them.
    pub(super) fn try_registers(&self) -> Option<MutexGuard<'_, Registers>> {
        match self.registers.try_lock() {
            Ok(registers) => Some(registers),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// The registers of one device, on the MMIO bus.
pub struct MmioTransport {
    shared: Arc<Shared>,
    doorbells: Vec<DoorbellSender>,
    commands: UnboundedSender<Command>,
}

impl MmioTransport {
    /// Length in bytes of the register window: 256 bytes of registers, and as many of configuration at least.
    pub const LEN: u64 = 0x200;
    /// Offset of QueueNotify: a 32-bit write of a queue's number there may be an ioeventfd of its doorbell.
    pub const QUEUE_NOTIFY: u64 = register::QUEUE_NOTIFY;

    /// Offset of InterruptACK: a 32-bit write of [`Self::USED`] there may be an ioeventfd of [`Self::acknowledgements`].
    pub const INTERRUPT_ACK: u64 = register::INTERRUPT_ACK;
    /// The bit of used buffers in the interrupt status.
    pub const USED: u32 = isr::USED;

    pub(super) fn new(
        shared: Arc<Shared>,
        doorbells: Vec<DoorbellSender>,
        commands: UnboundedSender<Command>,
    ) -> Self {
        Self { shared, doorbells, commands }
    }

    /// The doorbells of the queues, by number, to be registered as ioeventfds for the life of the VM.
    pub fn doorbells(&self) -> &[DoorbellSender] {
        &self.doorbells
    }

    /// What is rung where the driver acknowledges used buffers, to be registered as an ioeventfd for the life of the VM:
    /// an exit to user space less for each interrupt.
    pub fn acknowledgements(&self) -> &Doorbell {
        self.shared.signals.acknowledgements()
    }

    /// Who the device is.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    fn read_register(&self, offset: u64) -> Result<u32, GuestError> {
        let Shared { identity, config, signals, .. } = &*self.shared;
        match offset {
            register::STATUS => Ok(signals.status()),
            register::INTERRUPT_STATUS => Ok(signals.read_isr()),
            register::CONFIG_GENERATION => Ok(config.generation()),
            _ => self.shared.registers().read(offset, identity),
        }
    }

    /// One write: what it means is decided under the lock, and done after it is released.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<Action, GuestError> {
        let Shared { identity, signals, ram, link, config, .. } = &*self.shared;
        let mut registers = self.shared.registers();
        // What a worker that is gone has left undone is nobody's turn any more.
        let in_turn = is_immediate(offset) || link.is_gone();
        if let Some(ticket) = registers.pending.as_ref().filter(|_| !in_turn) {
            return Ok(wait(link, ticket, Then::Repeat));
        }
        let cx = Context { identity, ram, status: signals.status() };
        let effect = match offset.checked_sub(register::CONFIG) {
            Some(at) => Registers::write_config(at, data, config.len())?,
            None => registers.write(offset, word(offset, data)?, cx)?,
        };
        match effect {
            Effect::None => {}
            Effect::Slow(command) => return Ok(self.ask(registers, command)),
            // Under the lock, as the status is part of what the next write is judged by.
            Effect::AddStatus(bits) => signals.add_status(bits),
            Effect::ClearSignals => signals.reset(),
            Effect::Acknowledge(bits) => signals.acknowledge(bits),
            Effect::Ring(queue) => {
                drop(registers);
                self.ring(queue);
            }
        }
        Ok(Action::None)
    }

    /// Hands a command to the worker and lets the vCPU wait for it.
    fn ask(&self, mut registers: MutexGuard<'_, Registers>, command: GuestCommand) -> Action {
        let link = &self.shared.link;
        if link.is_gone() {
            // The VM ends. Without a worker nothing changes, and nothing writes guest memory.
            return Action::None;
        }
        let ticket = Arc::new(Ticket::default());
        registers.pending = Some(Arc::clone(&ticket));
        // Whoever the command wakes wants the registers. Nobody else hands one over while this one is pending.
        drop(registers);
        if self.commands.send(Command::Guest { command, ticket: Arc::clone(&ticket) }).is_err() {
            self.nobody_takes(&ticket);
            return Action::None;
        }
        wait(link, &ticket, Then::Done)
    }

    /// A command found no worker: nobody waits for it.
    fn nobody_takes(&self, ticket: &Ticket) {
        self.shared.registers().pending = None;
        ticket.finish();
        self.shared.link.wake();
    }

    fn ring(&self, queue: u16) {
        if let Some(doorbell) = self.doorbells.get(usize::from(queue)) {
            doorbell.ring();
        }
    }
}

impl BusDevice for MmioTransport {
    fn name(&self) -> &str {
        &self.shared.identity.id
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<Action, GuestError> {
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            let config = &self.shared.config;
            check_config(at, data.len(), config.len())?;
            if !config.read(at, data) {
                return Err(GuestError::BadRegister { offset });
            }
            return Ok(Action::None);
        }
        let value = check_width(offset, data.len()).and_then(|()| self.read_register(offset))?;
        data.copy_from_slice(&value.to_le_bytes());
        Ok(Action::None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Action, GuestError> {
        let done = self.write_at(offset, data);
        if matches!(done, Err(GuestError::StrayNotify { .. })) {
            self.shared.metrics.stray_notifications.inc();
        }
        done
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("identity", &self.shared.identity)
            .field("signals", &self.shared.signals)
            .finish_non_exhaustive()
    }
}

/// Writes that are done whatever else is under way.
fn is_immediate(offset: u64) -> bool {
    matches!(offset, register::QUEUE_NOTIFY | register::INTERRUPT_ACK)
}

/// A wait for a slow write.
fn wait(link: &Arc<Link>, ticket: &Arc<Ticket>, then: Then) -> Action {
    let (link, ticket) = (Arc::clone(link), Arc::clone(ticket));
    Action::Wait(Wait::new(Arc::new(move || ticket.is_done() || link.is_gone()), then))
}

/// Registers are accessed as aligned 32-bit words (section 4.2.2.2).
fn check_width(offset: u64, width: usize) -> Result<(), GuestError> {
    if width != 4 {
        return Err(GuestError::BadWidth { offset, width });
    }
    if !offset.is_multiple_of(4) {
        return Err(GuestError::BadRegister { offset });
    }
    Ok(())
}

fn word(offset: u64, data: &[u8]) -> Result<u32, GuestError> {
    check_width(offset, data.len())?;
    data.try_into().map(u32::from_le_bytes).map_err(|_| GuestError::BadWidth { offset, width: data.len() })
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
