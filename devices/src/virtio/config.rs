//! A device's configuration space: published by the device, read by vCPUs (virtio 1.2, section 2.5).
//!
//! Owns the bytes and their generation, behind one mutex that is held for a copy only. Never knows what the bytes
//! mean, and is not written by the driver: a driver's write goes to the device, which publishes what
//! comes of it.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::interrupt::QueueInterrupt;

/// The bytes that a driver reads at offset 0x100 of the registers, little-endian. Clones are the same space.
#[derive(Debug, Clone)]
pub struct ConfigSpace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    interrupt: OnceLock<QueueInterrupt>,
}

#[derive(Debug)]
struct State {
    bytes: Box<[u8]>,
    generation: u32,
}

impl ConfigSpace {
    /// A space of these bytes; its length never changes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let state = State { bytes: bytes.into().into(), generation: 0 };
        Self(Arc::new(Inner { state: Mutex::new(state), interrupt: OnceLock::new() }))
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.lock().bytes.len() as u64
    }

    /// True if the device has no configuration.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes from `offset` on; false, with nothing copied, if they are not all there.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        let state = self.lock();
        let part =
            usize::try_from(offset).ok().and_then(|from| state.bytes.get(from..from.checked_add(buf.len())?));
        let Some(part) = part else { return false };
        buf.copy_from_slice(part);
        true
    }

    /// A copy of all bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.to_vec()
    }

    /// Changes bytes without telling the driver: for what follows from its own writes.
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        let mut state = self.lock();
        change(&mut state.bytes);
        state.generation = state.generation.wrapping_add(1);
    }

    /// Changes bytes and tells the driver (configuration change notification, section 2.3).
    pub fn publish(&self, change: impl FnOnce(&mut [u8])) {
        self.update(change);
        if let Some(interrupt) = self.0.interrupt.get() {
            interrupt.config_changed();
        }
    }

    /// Changes with every update, so that a driver can tell a torn read (section 2.5.1).
    pub fn generation(&self) -> u32 {
        self.lock().generation
    }

    /// Whom [`ConfigSpace::publish`] tells. The first call counts: a space belongs to one device.
    pub(super) fn connect(&self, interrupt: QueueInterrupt) {
        let _ = self.0.interrupt.set(interrupt);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
