//! Where the packets of a virtual network interface come from and go to: a tap, or a Unix socket.
//!
//! [`NetSource`] is opened by whoever assembles a VM (plain data and descriptors, `Send`) and attached on the
//! VM's shard, where it becomes a [`NetPort`] for each pair of queues. Owns the host's side of an interface: which
//! offloads the kernel has, framing, the end of a link. Never knows what a guest negotiated, and never
//! looks into a frame: headers that a guest wrote are checked before they come here.
//!
//! # Waiting
//! Packets are taken and given by calls that never wait. What waits is only for readiness, so it can be
//! dropped at any time: nothing has been taken, and nothing of the guest's is with the kernel. Some calls on a tap
//! (offloads, queues, closing it) wait for the kernel's network configuration lock (RTNL): those run on a thread of
//! their own, and never on the shard's.

mod control;
pub mod framing;
mod host;
mod ioctl;
mod link;
mod offloads;
pub(crate) mod packet;
mod passt;
mod publish;
mod socket;
mod socket_port;
mod tap;
mod tap_error;
mod tap_port;
#[cfg(test)]
mod testing;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;

use crate::lease::{Lease, MAX_PIECES};
use crate::shard::ShardContext;

pub use host::eui64;
pub use ioctl::duplicate;
pub use offloads::Offloads;
pub use passt::{GATEWAY, GUEST, NETWORK6, PasstError, PasstOptions};
pub use publish::{Publish, Transport};
pub use socket::{Socket, SocketError};
pub use tap::{MAX_TAP_QUEUES, Tap};
pub use tap_error::TapError;

/// Bytes of the header before a frame (virtio 1.2, section 5.1.6, with `num_buffers`, little-endian). It is the same on
/// a tap with `IFF_VNET_HDR`, `TUNSETVNETHDRSZ` of 12 and `TUNSETVNETLE`.
pub const HEADER: usize = 12;
/// Bytes of the shortest frame: an Ethernet header.
pub const MIN_FRAME: usize = 14;
/// Bytes of the longest frame: 64 KiB behind an Ethernet header.
pub const MAX_FRAME: usize = 65_550;
/// Bytes of the longest packet.
pub const MAX_PACKET: usize = HEADER + MAX_FRAME;
/// Most bytes of a packet that are sent from our own memory: its header, and what was judged of its frame.
pub const MAX_HEAD: usize = 256;
/// Most pieces that the lease of a packet may have: the kernel is given one piece more.
pub const MAX_PACKET_PIECES: usize = MAX_PIECES - 1;

/// A boxed future of a port: one a wait, none a packet. Dropping it undoes nothing, because it has done nothing.
pub type NetFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What the host's side of an interface is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetInfo {
    /// The address that the guest must have, where the host's side prescribes one (macvtap). A tap's own address
    /// is that of the host's end, and is none for the guest.
    pub mac: Option<[u8; 6]>,
    /// Bytes of the largest packet behind the Ethernet header, if the host's side says so.
    pub mtu: Option<u16>,
    /// Pairs of queues: how many ports [`NetSource::attach`] gives; at least 1.
    pub queue_pairs: u16,
    /// What can be left unfinished in both directions. Nothing where packets go without a header: there, a header
    /// that is sent must ask for nothing, and a received one is all zeroes.
    pub offloads: Offloads,
}

/// What [`NetPort::receive`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A packet: its bytes, of which the first [`HEADER`] are its header. `num_buffers`, the last two of these, is
    /// not set (they may be as they were).
    Packet(usize),
    /// A packet that is longer than the lease, of which something may be in the lease. It is dropped.
    TooLong,
    /// A frame of less than [`MIN_FRAME`] bytes. It is dropped.
    TooShort,
}

/// What [`NetPort::send`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The host has the packet.
    Taken,
    /// The host does not want this packet (a tap that is down, a header that its kernel refuses): it is dropped.
    Refused,
    /// The host takes none now; [`NetPort::writable`] tells when. A stream may have taken a part: a packet of the same
    /// length that is sent next is taken to be this one, and only its rest is sent.
    Later,
}

/// One queue pair's host side, on its shard.
///
/// An error of any call is the end of the port: the tap was deleted, the peer is gone or lied. The same error or its
/// like comes again from then on, at once; nothing spins unless its caller does.
pub trait NetPort {
    /// Waits until [`NetPort::receive`] may give a packet, or an error. Cancel-safe; may be wrong, once.
    ///
    /// # Errors
    /// The loop is shutting down.
    fn readable(&self) -> NetFuture<'_, io::Result<()>>;

    /// Waits until [`NetPort::send`] may take a packet, or give an error. Cancel-safe; may be wrong, once.
    ///
    /// # Errors
    /// The loop is shutting down.
    fn writable(&self) -> NetFuture<'_, io::Result<()>>;

    /// Takes one packet into the lease, header first. Never waits. `None`: there is none, as far as is known;
    /// [`NetPort::readable`] tells of the next. What was written is marked dirty.
    ///
    /// # Errors
    /// The end of the port. `InvalidInput`, with nothing taken: the lease is no target, has fewer than
    /// [`HEADER`] bytes, or more than [`MAX_PACKET_PIECES`] pieces.
    fn receive(&self, into: &Lease) -> io::Result<Option<Received>>;

    /// Gives one packet: `head`, which is ours, and behind it what is left of the frame in guest memory, if anything.
    /// Never waits. The head is a header, which was validated, and as much of the frame's beginning as was judged: what
    /// the guest does to its memory meanwhile changes nothing of that.
    ///
    /// # Errors
    /// The end of the port. `InvalidInput`, with nothing sent: `head` has not [`HEADER`] to [`MAX_HEAD`] bytes,
    /// the lease is no source or has more than [`MAX_PACKET_PIECES`] pieces, the frame has not [`MIN_FRAME`] to
    /// [`MAX_FRAME`] bytes, or the header asks for something and the port has no headers.
    fn send(&self, head: &[u8], rest: &Lease) -> io::Result<Sent>;

    /// Sets what received packets may leave unfinished: what the driver accepts. For all ports of the interface. If it
    /// is less than before, packets that wait at the host are dropped, since they may be of the old kind. Nothing
    /// at first. May wait for the kernel, so it is to be awaited; dropped, it happens or not, and a later one wins.
    ///
    /// # Errors
    /// `Unsupported`: more than [`NetInfo::offloads`]. What the kernel says.
    fn set_offloads(&self, accepted: Offloads) -> NetFuture<'_, io::Result<()>>;

    /// Uses the first `active` ports of the interface only: packets that come are spread over these, and the others get
    /// none. All at first. Like [`NetPort::set_offloads`], for all ports, and to be awaited.
    ///
    /// # Errors
    /// `InvalidInput`: 0, or more than [`NetInfo::queue_pairs`]. What the kernel says.
    fn set_queue_pairs(&self, active: u16) -> NetFuture<'_, io::Result<()>>;
}

impl fmt::Debug for dyn NetPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NetPort")
    }
}

/// The host's side of a network interface that is not attached to a shard yet.
#[derive(Debug)]
#[non_exhaustive]
pub enum NetSource {
    /// A tap, or a macvtap.
    Tap(Tap),
    /// A Unix socket.
    Socket(Socket),
}

impl NetSource {
    /// What it is.
    pub fn info(&self) -> NetInfo {
        match self {
            Self::Tap(tap) => tap.info(),
            Self::Socket(socket) => socket.info(),
        }
    }

    /// Makes it ports on this shard, one a pair of queues, in their order.
    ///
    /// # Errors
    /// The kernel refuses to watch a descriptor; there can be no thread for what waits.
    pub fn attach(self, cx: &ShardContext) -> io::Result<Vec<Rc<dyn NetPort>>> {
        match self {
            Self::Tap(tap) => tap_port::attach(tap),
            Self::Socket(socket) => Ok(vec![socket_port::attach(socket, cx)?]),
        }
    }
}
