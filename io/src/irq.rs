//! Interrupt lines: eventfds that KVM turns into guest interrupts (irqfd).
//!
//! Owns the eventfd. Never knows which interrupt it stands for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// The sending end of an irqfd. Clones are the same line.
#[derive(Debug, Clone)]
pub struct InterruptLine(Arc<OwnedFd>);

impl InterruptLine {
    /// Makes a line that is not connected to any VM yet: register [`InterruptLine::as_fd`] with `KVM_IRQFD`.
    ///
    /// # Errors
    /// The process or the system has no free file descriptor.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Raises one (edge) interrupt: one `write(2)`, never blocks, from any thread.
    ///
    /// Interrupts raised while KVM has no route for the line are lost; interrupts raised faster than the
    /// guest takes them merge into one.
    pub fn trigger(&self) {
        // The only possible error is EAGAIN: 2^64 - 2 interrupts are pending already, so one is.
        let _ = rustix::io::write(self.0.as_fd(), &1u64.to_ne_bytes());
    }

    /// Takes the interrupts that were raised and that no KVM consumed: their number since the last call.
    /// For lines without a VM (tests) and for checking a line before it is connected.
    pub fn take_pending(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(self.0.as_fd(), &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }
}

impl AsFd for InterruptLine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[path = "irq_test.rs"]
mod tests;
