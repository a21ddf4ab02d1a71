//! What may go wrong with the socket device.

use core::fmt;

use super::socket::Lie;

/// Why there are no sockets, or none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The command line names no such device.
    NoDevice,
    /// The device does not come up, or broke, or does what it must not.
    Device(
        /// What it did.
        &'static str,
    ),
    /// The device's queues are too small.
    Queue,
    /// No memory for packets.
    Memory,
}

impl From<Lie> for Error {
    fn from(Lie(what): Lie) -> Self {
        Self::Device(what)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoDevice => "no socket device; start with --vsock",
            Self::Device(what) => what,
            Self::Queue => "the queues of the device are too small",
            Self::Memory => "not enough memory for packets: give the VM more",
        })
    }
}
