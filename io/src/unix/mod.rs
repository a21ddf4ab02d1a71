//! Unix stream sockets on a shard: connections between something in a VM and a process of the host.
//!
//! [`Listener`] is opened by whoever assembles a VM, and attached on the VM's shard, where it accepts; a [`Stream`] is a
//! connection there, whose bytes go between the socket and guest memory by calls that never wait. Owns readiness, the
//! file that a listening socket leaves in a directory ([`SocketFile`]), and the thread that looks up paths
//! ([`Connector`]). Never knows what the bytes mean.

mod connect;
mod listen;
mod rights;
mod stream;

pub use connect::Connector;
pub use listen::{Acceptor, ListenError, Listener, SocketFile};
pub(crate) use rights::refuse_rights;
pub use stream::{Scratch, Stream};
