//! What a virtio-mmio driver has programmed (virtio 1.2, section 4.2.2), and what each access may do to it.
//!
//! Owns the registers behind the transport's mutex, and the rules: which register may be written in which device
//! status, and with what. Never does what a write entails: that is the [`Effect`], for the transport and its
//! worker. Values of queue registers are kept as they come and checked as a whole when the queue is enabled.

use std::sync::Arc;

use ringlet_io::GuestRam;

use super::device::Identity;
use super::layout::{QueueLayout, RawLayout};
use super::link::Ticket;
use super::rules::{
    check_config, check_features, half, impossible, is_read_only, is_write_only, set_high, set_low,
    status_is_possible,
};
use super::spec::{feature, isr, register, status};
use super::state::{QueueRegisters, TransportState};
use crate::error::GuestError;
use crate::state::StateError;

/// What the transport has to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// Ring the doorbell of this queue.
    Ring(u16),
    /// Add these bits to the device status.
    AddStatus(u32),
    /// Acknowledge these interrupts.
    Acknowledge(u32),
    /// Everything is as after a reset already; so must be status and interrupts.
    ClearSignals,
    /// Something for the worker.
    Slow(GuestCommand),
}

/// What a driver asks of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestCommand {
    /// Reset the device.
    Reset,
    /// Agree on the features that were written, then set these status bits.
    Negotiate { features: u64, bits: u32 },
    /// Start every queue that is ready; set these status bits.
    Start { bits: u32 },
    /// Start one queue, which was just enabled.
    StartQueue(u16),
    /// Stop one queue for good; `reset`: and forget what was programmed.
    StopQueue { index: u16, reset: bool },
    /// Write to the configuration space.
    WriteConfig { offset: u64, data: [u8; 4], len: usize },
}

/// What the rules depend on beside the registers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) identity: &'a Identity,
    pub(super) ram: &'a GuestRam,
    pub(super) status: u32,
}

impl Context<'_> {
    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    /// A refusal because of the device status.
    fn bad_state(&self, offset: u64) -> GuestError {
        GuestError::BadState { offset, status: self.status.to_le_bytes()[0] }
    }
}

/// One queue's registers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slot {
    raw: RawLayout,
    /// Set while QueueReady reads 1.
    pub(super) layout: Option<QueueLayout>,
    /// It was stopped since DRIVER_OK, and may be programmed anew.
    reset: bool,
    /// What QueueReset reads.
    resetting: bool,
}

/// The register file.
#[derive(Debug)]
pub(super) struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    pub(super) driver_features: u64,
    queue_sel: u32,
    pub(super) slots: Vec<Slot>,
    /// The slow write that is under way.
    pub(super) pending: Option<Arc<Ticket>>,
}

impl Registers {
    /// As after a reset.
    pub(super) fn new(queues: usize) -> Self {
        Self {
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            slots: vec![Slot::default(); queues],
            pending: None,
        }
    }

    /// As after a reset; what is under way stays so.
    pub(super) fn reset(&mut self) {
        let Self { device_features_sel, driver_features_sel, driver_features, queue_sel, slots, pending: _ } =
            self;
        *device_features_sel = 0;
        *driver_features_sel = 0;
        *driver_features = 0;
        *queue_sel = 0;
        slots.fill(Slot::default());
    }

    /// Reads a register, but those of status, interrupts and configuration.
    pub(super) fn read(&self, offset: u64, identity: &Identity) -> Result<u32, GuestError> {
        let slot = self.selected();
        Ok(match offset {
            register::MAGIC_VALUE => u32::from_le_bytes(*b"virt"),
            register::VERSION => 2,
            register::DEVICE_ID => identity.device_type,
            register::VENDOR_ID => u32::from_le_bytes(*b"RNGL"),
            register::DEVICE_FEATURES => half(identity.offered(), self.device_features_sel),
            register::QUEUE_NUM_MAX => self.max(identity).map_or(0, u32::from),
            register::QUEUE_READY => slot.is_some_and(|slot| slot.layout.is_some()).into(),
            register::QUEUE_RESET => slot.is_some_and(|slot| slot.resetting).into(),
            // No shared memory region exists: its length and address read as all ones (section 4.2.2).
            register::SHM_LEN_LOW
            | register::SHM_LEN_HIGH
            | register::SHM_BASE_LOW
            | register::SHM_BASE_HIGH => u32::MAX,
            _ if is_write_only(offset) => return Err(GuestError::WriteOnly { offset }),
            _ => return Err(GuestError::BadRegister { offset }),
        })
    }

    /// Writes a register, but those of the configuration.
    pub(super) fn write(&mut self, offset: u64, value: u32, cx: Context<'_>) -> Result<Effect, GuestError> {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::QUEUE_SEL => self.queue_sel = value,
            register::SHM_SEL => {}
            register::DRIVER_FEATURES => self.accept(value, cx)?,
            register::QUEUE_NUM
            | register::QUEUE_DESC_LOW
            | register::QUEUE_DESC_HIGH
            | register::QUEUE_DRIVER_LOW
            | register::QUEUE_DRIVER_HIGH
            | register::QUEUE_DEVICE_LOW
            | register::QUEUE_DEVICE_HIGH => self.program(offset, value, cx)?,
            register::QUEUE_READY => return self.write_ready(value, cx),
            register::QUEUE_RESET => return self.write_reset(value, cx),
            register::QUEUE_NOTIFY => return self.notify(value, cx),
            register::INTERRUPT_ACK if value & !(isr::USED | isr::CONFIG) == 0 => {
                return Ok(Effect::Acknowledge(value));
            }
            register::INTERRUPT_ACK => return Err(GuestError::BadValue { offset, value: value.into() }),
            register::STATUS => return self.write_status(value, cx),
            _ if is_read_only(offset) => return Err(GuestError::ReadOnly { offset }),
            _ => return Err(GuestError::BadRegister { offset }),
        }
        Ok(Effect::None)
    }

    /// A write to the configuration space, which is of `len` bytes. Whether it comes too early is the device's to
    /// say: a console takes emergency writes from a driver that has not even acknowledged it (section 5.3.4).
    pub(super) fn write_config(offset: u64, data: &[u8], len: u64) -> Result<Effect, GuestError> {
        check_config(offset, data.len(), len)?;
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        Ok(Effect::Slow(GuestCommand::WriteConfig { offset, data: bytes, len: data.len() }))
    }

    /// DriverFeatures: half of the features that the driver accepts.
    fn accept(&mut self, value: u32, cx: Context<'_>) -> Result<(), GuestError> {
        if !cx.has(status::DRIVER) || cx.has(status::FEATURES_OK) {
            return Err(cx.bad_state(register::DRIVER_FEATURES));
        }
        let (shift, kept) = match self.driver_features_sel {
            0 => (0, !u64::from(u32::MAX)),
            1 => (32, u64::from(u32::MAX)),
            _ if value == 0 => return Ok(()),
            _ => return Err(GuestError::BadValue { offset: register::DRIVER_FEATURES, value: value.into() }),
        };
        self.driver_features = self.driver_features & kept | u64::from(value) << shift;
        Ok(())
    }

    /// The device status register (sections 2.1 and 3.1.1).
    fn write_status(&mut self, value: u32, cx: Context<'_>) -> Result<Effect, GuestError> {
        if value == 0 {
            return Ok(self.write_status_zero(cx));
        }
        let from = cx.status & status::DRIVER_BITS;
        let refused = GuestError::BadStatus { from: cx.status.to_le_bytes()[0], to: value };
        // NEEDS_RESET is the device's; a driver writes it back as it read it, or does not know of it yet.
        if value & !(status::DRIVER_BITS | status::NEEDS_RESET) != 0 || from & !value != 0 {
            return Err(refused);
        }
        let to = value & status::DRIVER_BITS;
        let bits = to & !from;
        if !status_is_possible(to) {
            return Err(refused);
        }
        match bits & (status::FEATURES_OK | status::DRIVER_OK) {
            0 => Ok(Effect::AddStatus(bits)),
            status::FEATURES_OK => {
                let features = self.agreed(cx.identity)?;
                Ok(Effect::Slow(GuestCommand::Negotiate { features, bits }))
            }
            status::DRIVER_OK => Ok(Effect::Slow(GuestCommand::Start { bits })),
            // The driver has to see whether FEATURES_OK stays set before it goes on.
            _ => Err(refused),
        }
    }

    /// A reset. What the device never heard of needs no worker.
    fn write_status_zero(&mut self, cx: Context<'_>) -> Effect {
        if cx.has(status::FEATURES_OK) {
            return Effect::Slow(GuestCommand::Reset);
        }
        self.reset();
        Effect::ClearSignals
    }

    /// The features that the driver wrote, if both sides can work with them (section 2.2).
    fn agreed(&self, identity: &Identity) -> Result<u64, GuestError> {
        check_features(self.driver_features, identity.offered()).map(|()| self.driver_features)
    }

    /// A queue register that can be written only while the queue is not enabled.
    fn program(&mut self, offset: u64, value: u32, cx: Context<'_>) -> Result<(), GuestError> {
        let queue = self.queue_sel;
        let slot = self.selected_mut()?;
        if !slot.may_be_programmed(cx) {
            return Err(cx.bad_state(offset));
        }
        if slot.layout.is_some() {
            return Err(GuestError::BadQueue { queue, reason: "it is enabled and cannot be programmed" });
        }
        let RawLayout { size, descriptors, driver, device } = &mut slot.raw;
        match offset {
            register::QUEUE_NUM => *size = value,
            register::QUEUE_DESC_LOW => set_low(descriptors, value),
            register::QUEUE_DESC_HIGH => set_high(descriptors, value),
            register::QUEUE_DRIVER_LOW => set_low(driver, value),
            register::QUEUE_DRIVER_HIGH => set_high(driver, value),
            register::QUEUE_DEVICE_LOW => set_low(device, value),
            _ => set_high(device, value),
        }
        Ok(())
    }

    fn write_ready(&mut self, value: u32, cx: Context<'_>) -> Result<Effect, GuestError> {
        let queue = self.queue_sel;
        let max = self.max(cx.identity);
        let slot = self.selected_mut()?;
        let index = u16::try_from(queue).unwrap_or(u16::MAX);
        match (value, slot.layout) {
            (0, None) | (1, Some(_)) => Ok(Effect::None),
            (0, Some(_)) if cx.has(status::DRIVER_OK) => {
                Ok(Effect::Slow(GuestCommand::StopQueue { index, reset: false }))
            }
            (0, Some(_)) => {
                slot.layout = None;
                Ok(Effect::None)
            }
            (1, None) => {
                if !slot.may_be_programmed(cx) {
                    return Err(cx.bad_state(register::QUEUE_READY));
                }
                let checked = slot.raw.check(max.unwrap_or(0), cx.ram);
                slot.layout = Some(checked.map_err(|reason| GuestError::BadQueue { queue, reason })?);
                let live = cx.has(status::DRIVER_OK);
                Ok(if live { Effect::Slow(GuestCommand::StartQueue(index)) } else { Effect::None })
            }
            _ => Err(GuestError::BadValue { offset: register::QUEUE_READY, value: value.into() }),
        }
    }

    /// QueueReset (sections 2.6.1 and 4.2.2).
    fn write_reset(&mut self, value: u32, cx: Context<'_>) -> Result<Effect, GuestError> {
        let queue = self.queue_sel;
        let negotiated = self.driver_features & feature::RING_RESET != 0;
        let slot = self.selected_mut()?;
        if value != 1 {
            return Err(GuestError::BadValue { offset: register::QUEUE_RESET, value: value.into() });
        }
        if !negotiated || !cx.has(status::DRIVER_OK) {
            return Err(cx.bad_state(register::QUEUE_RESET));
        }
        if slot.layout.is_none() {
            return Err(GuestError::BadQueue { queue, reason: "it is not enabled and cannot be reset" });
        }
        slot.resetting = true;
        let index = u16::try_from(queue).unwrap_or(u16::MAX);
        Ok(Effect::Slow(GuestCommand::StopQueue { index, reset: true }))
    }

    fn notify(&self, queue: u32, cx: Context<'_>) -> Result<Effect, GuestError> {
        let slot = usize::try_from(queue).ok().and_then(|queue| self.slots.get(queue));
        let running = slot.is_some_and(|slot| slot.layout.is_some()) && cx.has(status::DRIVER_OK);
        match u16::try_from(queue) {
            Ok(index) if running => Ok(Effect::Ring(index)),
            _ => Err(GuestError::StrayNotify { queue }),
        }
    }

    /// A queue is stopped, and may be programmed anew.
    pub(super) fn queue_stopped(&mut self, index: u16, reset: bool) {
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            let raw = if reset { RawLayout::default() } else { slot.raw };
            *slot = Slot { raw, layout: None, reset: true, resetting: false };
        }
    }

    /// The registers to save; status and interrupt status are the transport's.
    pub(super) fn save(&self, status: u8, interrupt_status: u8) -> TransportState {
        let queue = |slot: &Slot| QueueRegisters {
            size: slot.raw.size,
            descriptors: slot.raw.descriptors,
            driver: slot.raw.driver,
            device: slot.raw.device,
            ready: slot.layout.is_some(),
            reset: slot.reset,
        };
        TransportState {
            status,
            interrupt_status,
            driver_features: self.driver_features,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            queue_sel: self.queue_sel,
            queues: self.slots.iter().map(queue).collect(),
        }
    }

    /// Registers that a driver could have programmed in just this way.
    pub(super) fn restore(
        state: &TransportState,
        identity: &Identity,
        ram: &GuestRam,
    ) -> Result<Self, StateError> {
        let status = u32::from(state.status);
        if status & !(status::DRIVER_BITS | status::NEEDS_RESET) != 0
            || !status_is_possible(status & status::DRIVER_BITS)
        {
            return Err(impossible("status", status.into()));
        }
        if u32::from(state.interrupt_status) & !(isr::USED | isr::CONFIG) != 0 {
            return Err(impossible("interrupt_status", state.interrupt_status.into()));
        }
        if status & status::FEATURES_OK != 0
            && check_features(state.driver_features, identity.offered()).is_err()
        {
            return Err(impossible("driver_features", state.driver_features));
        }
        if state.queues.len() != identity.queue_sizes.len() {
            return Err(impossible("queues", state.queues.len() as u64));
        }
        let cx = Context { identity, ram, status };
        let slots = state.queues.iter().zip(&identity.queue_sizes);
        let slots = slots.map(|(queue, max)| Slot::restore(queue, *max, cx)).collect::<Result<_, _>>()?;
        Ok(Self {
            device_features_sel: state.device_features_sel,
            driver_features_sel: state.driver_features_sel,
            driver_features: state.driver_features,
            queue_sel: state.queue_sel,
            slots,
            pending: None,
        })
    }

    fn selected(&self) -> Option<&Slot> {
        usize::try_from(self.queue_sel).ok().and_then(|queue| self.slots.get(queue))
    }

    fn selected_mut(&mut self) -> Result<&mut Slot, GuestError> {
        let queue = self.queue_sel;
        let index = usize::try_from(queue).unwrap_or(usize::MAX);
        self.slots.get_mut(index).ok_or(GuestError::BadQueue { queue, reason: "there is no such queue" })
    }

    /// The longest size of the selected queue.
    fn max(&self, identity: &Identity) -> Option<u16> {
        let queue = usize::try_from(self.queue_sel).ok()?;
        identity.queue_sizes.get(queue).copied()
    }
}

impl Slot {
    /// Whether size and addresses may be written: between FEATURES_OK and DRIVER_OK, or after the queue was stopped.
    fn may_be_programmed(&self, cx: Context<'_>) -> bool {
        cx.has(status::FEATURES_OK) && (self.reset || !cx.has(status::DRIVER_OK))
    }

    fn restore(state: &QueueRegisters, max: u16, cx: Context<'_>) -> Result<Self, StateError> {
        let QueueRegisters { size, descriptors, driver, device, ready, reset } = *state;
        let raw = RawLayout { size, descriptors, driver, device };
        if reset && !cx.has(status::DRIVER_OK) {
            return Err(impossible("queue.reset", 1));
        }
        if ready && !cx.has(status::FEATURES_OK) {
            return Err(impossible("queue.ready", 1));
        }
        let layout = match ready {
            true => Some(raw.check(max, cx.ram).map_err(|_| impossible("queue.size", size.into()))?),
            false => None,
        };
        Ok(Self { raw, layout, reset, resetting: false })
    }
}
