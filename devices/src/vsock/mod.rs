//! Virtio socket device (virtio 1.2, section 5.10): stream connections between a guest and processes of the host.
//!
//! ```text
//!  tx chain ─► header: copied once, validated ─► limiter ─► connection ─► payload ─► Unix socket      guest to host
//!  rx chain peeked ◄─ limiter: charged with what came ◄─ next connection in turn ◄── Unix socket      host to guest
//!  accepted (CONNECT n), handed in ─► REQUEST          REQUEST ─► listener in the process, or <uds>_<port>
//! ```
//!
//! Every host's end of a connection is a Unix stream socket on the VM's shard, whose bytes go between it and guest memory
//! directly; what a slow peer does not take is kept up to the credit that the guest was given, and no further. Owns the
//! connections: their number, their credit both ways, whose turn it is, their end. Nothing is ever in flight in a queue.
//! Never reads a byte of guest memory twice.
//!
//! The crate `virtio-vsock` is not used: its packets hold slices of guest memory and are made from descriptor
//! chains that `virtio-queue` walks, both of which this crate does without (docs/adr/0005).

mod accept;
mod buffer;
mod config;
mod connection;
mod credit;
mod device;
mod event;
mod flaw;
mod greet;
mod host;
mod linger;
mod making;
mod owed;
pub mod packet;
mod peer;
mod receive;
mod retire;
mod switch;
mod table;
#[cfg(test)]
mod test_util;
mod transmit;
mod watch;
mod window;

pub use config::{CONNECT_TIMEOUT, MAX_CONNECTIONS, VsockOptions};
pub use device::VsockDevice;
pub use host::{ConnectError, ListenError, VsockHandle, VsockIncoming, VsockListener, VsockSource};
