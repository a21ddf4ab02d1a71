//! Device models of Ringlet: what a guest sees behind its I/O ports and MMIO addresses.
//!
//! Owns the buses and the register-level models of the legacy devices. Never knows KVM, threads, files or
//! clocks: interrupt lines, wake-up callbacks and the wall clock are handed in. See the crate's README for
//! the dependency law.

pub mod block;
pub mod bus;
pub mod cmos;
pub mod console;
pub mod error;
#[cfg(test)]
mod hostile_test;
pub mod i8042;
pub mod ioapic;
mod log_limit;
pub mod net;
pub mod output;
pub mod ports;
pub mod rng;
pub mod serial;
pub mod state;
#[cfg(test)]
mod test_util;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;
pub mod vsock;

pub use bus::{Action, Bus, BusDevice, BusError, BusKind, Then, Wait};
pub use cmos::Cmos;
pub use error::GuestError;
pub use i8042::I8042;
pub use ioapic::{Ioapic, LineOut, Route};
pub use output::{Overflow, SerialOutput};
pub use ports::GuestPorts;
pub use serial::Serial;
