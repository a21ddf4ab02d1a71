//! Device status and interrupts: what both sides of a device share without a lock.
//!
//! Owns the status and interrupt status registers (virtio 1.2, sections 2.1 and 4.2.2) and the interrupt line.
//! The driver writes status and acknowledges through the transport; the shard raises interrupts and
//! DEVICE_NEEDS_RESET. Never waits.
//!
//! A bit is set in the interrupt status before the line is pulsed, and the line is pulsed every time, so a driver
//! that acknowledges what it read loses nothing: a bit that it did not see comes with an interrupt of its own.
//!
//! The acknowledgement of used buffers, nearly the only one there is, may be an ioeventfd: KVM counts it, and nobody
//! looks at it before the register is read the next time. What was raised since the driver last read it stays then.

use std::fmt;
use std::sync::Arc;
#[cfg(not(all(test, ringlet_loom)))]
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(all(test, ringlet_loom))]
use loom::sync::atomic::{AtomicU32, Ordering};
use ringlet_io::Doorbell;
use ringlet_metrics::DeviceMetrics;

use super::queue::Owed;
use super::spec::{isr, status};
use crate::ioapic::LineOut;

/// The bits of the interrupt status.
const ISR: u32 = isr::USED | isr::CONFIG;
/// How far above each of them it is kept that the driver has not read it yet.
const UNREAD: u32 = 16;

/// The shared registers.
pub(super) struct Signals {
    status: AtomicU32,
    /// The interrupt status, and what of it is [`UNREAD`].
    isr: AtomicU32,
    /// Rung where the driver acknowledges used buffers without being looked at.
    acknowledgements: Doorbell,
    line: LineOut,
    metrics: Arc<DeviceMetrics>,
}

impl Signals {
    pub(super) fn new(line: LineOut, acknowledgements: Doorbell, metrics: Arc<DeviceMetrics>) -> Arc<Self> {
        Arc::new(Self { status: AtomicU32::new(0), isr: AtomicU32::new(0), acknowledgements, line, metrics })
    }

    /// What to ring for an acknowledgement of used buffers, and of nothing else.
    pub(super) fn acknowledgements(&self) -> &Doorbell {
        &self.acknowledgements
    }

    /// The device status register.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Sets bits of the device status.
    pub(super) fn add_status(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    /// The interrupt status register.
    pub(super) fn isr(&self) -> u32 {
        self.look_at_acknowledgements();
        self.isr.load(Ordering::SeqCst) & ISR
    }

    /// The driver reads the interrupt status register.
    pub(super) fn read_isr(&self) -> u32 {
        self.look_at_acknowledgements();
        self.isr.fetch_and(ISR, Ordering::SeqCst) & ISR
    }

    fn look_at_acknowledgements(&self) {
        if self.acknowledgements.take_rings() > 0 {
            self.acknowledge_unseen();
        }
    }

    /// The driver acknowledges interrupts.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.isr.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The driver has acknowledged used buffers at some time since it last read the register.
    pub(super) fn acknowledge_unseen(&self) {
        let read = |isr: u32| (isr & isr::USED << UNREAD == 0).then_some(isr & !isr::USED);
        // Not changed: it is raised again, and comes with an interrupt of its own.
        let _ = self.isr.fetch_update(Ordering::SeqCst, Ordering::SeqCst, read);
    }

    /// Both registers as after a reset, and no interrupt pending on the line. Acknowledgements of before do no harm: what is
    /// raised from now on is unread.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.isr.store(0, Ordering::SeqCst);
        self.line.deassert();
    }

    /// Both registers as they were saved.
    pub(super) fn restore(&self, status: u32, isr: u32) {
        self.status.store(status, Ordering::SeqCst);
        self.isr.store(isr, Ordering::SeqCst);
    }

    fn raise(&self, bits: u32) {
        self.isr.fetch_or(bits | bits << UNREAD, Ordering::SeqCst);
        self.metrics.interrupts.inc();
        self.line.pulse();
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signals")
            .field("status", &format_args!("{:#x}", self.status()))
            .field("isr", &format_args!("{:#x}", self.isr.load(Ordering::SeqCst) & ISR))
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}

/// A device's way to its driver's attention. Clones are the same device's.
#[derive(Debug, Clone)]
pub struct QueueInterrupt(Arc<Signals>);

impl QueueInterrupt {
    pub(super) fn new(signals: &Arc<Signals>) -> Self {
        Self(Arc::clone(signals))
    }

    /// Gives the driver what it is owed after completions ([`Queue::take_owed`](super::Queue::take_owed)).
    pub fn settle(&self, owed: Owed) {
        match owed {
            Owed::Nothing => {}
            Owed::Suppressed => self.0.metrics.interrupts_suppressed.inc(),
            Owed::Interrupt => self.used(),
        }
    }

    /// Buffers were used: an interrupt, whatever the driver asked for.
    pub fn used(&self) {
        self.0.raise(isr::USED);
    }

    /// The configuration changed: an interrupt if the driver is set up.
    pub fn config_changed(&self) {
        if self.0.status() & status::DRIVER_OK != 0 {
            self.0.raise(isr::CONFIG);
        }
    }

    /// The device cannot go on until it is reset (section 2.1.2).
    pub fn needs_reset(&self) {
        self.0.add_status(status::NEEDS_RESET);
        self.config_changed();
    }
}

#[cfg(test)]
#[cfg(not(ringlet_loom))]
#[path = "interrupt_test.rs"]
mod tests;
