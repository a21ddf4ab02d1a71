//! Virtio network interface (virtio 1.2, section 5.1): packets between a guest and a port of the host.
//!
//! ```text
//!  chain ─► header: parsed, validated ─► filter ─► limiter ─► coalesce ─► port.send ─► host   a task a pair, each way
//!  chains peeked ◄─ limiter: charged with what came ◄─ port.receive ◄────── host
//!  control queue ─► mode, address, pairs, offloads ─► what the host's side is told
//! ```
//!
//! Owns what the driver may ask for, and the way of each packet. Nothing is ever in flight: a packet is sent or
//! received by a call that does not wait, and its chains are given back at once. Never knows what a port is, and
//! never sends another copy of a header than the one that it judged. A guest that offers no buffers is sent nothing, and
//! nothing is read for it.

#[cfg(test)]
mod allocations_test;
pub mod coalesce;
pub mod config;
pub mod control;
mod device;
pub mod filter;
mod frame;
pub mod header;
mod host;
mod receive;
#[cfg(test)]
mod segments_test;
#[cfg(test)]
mod test_tcp;
#[cfg(test)]
mod test_util;
mod transmit;

pub use config::Mac;
pub use device::{MAX_PAIRS, NetDevice, NetOptions};
pub use filter::Filter;
