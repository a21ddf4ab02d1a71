//! A socket of UDP whose datagrams have a header.

use alloc::vec;

use ringlet_guest::net::Net;
use ringlet_guest::net::stack::iface::SocketHandle;
use ringlet_guest::net::stack::socket::udp::{PacketBuffer, PacketMetadata, Socket, UdpMetadata};
use ringlet_guest::net::stack::wire::IpEndpoint;

use crate::Failure;
use crate::pool::buffer;
use crate::wire::{HEADER, Header};

/// Datagrams that wait on each side, and bytes of all.
const PACKETS: usize = 512;
const BYTES: usize = 512 << 10;

pub(crate) struct Datagrams {
    socket: SocketHandle,
    /// Bytes that waited when there was no room: there is none before they are fewer.
    full: Option<usize>,
}

impl Datagrams {
    /// A socket on this port, which is not 0.
    pub(crate) fn open(net: &mut Net, port: u16) -> Result<Self, Failure> {
        let packets = || {
            let bytes = buffer(BYTES).ok_or(Failure::Memory)?;
            Ok::<_, Failure>(PacketBuffer::new(vec![PacketMetadata::EMPTY; PACKETS], bytes))
        };
        let mut socket = Socket::new(packets()?, packets()?);
        // A new socket can be bound to any port but 0.
        let _ = socket.bind(port);
        Ok(Self { socket: net.sockets().add(socket), full: None })
    }

    /// Whether a datagram can be sent.
    pub(crate) fn has_room(&mut self, net: &mut Net) -> bool {
        let waiting = net.socket::<Socket<'_>>(self.socket).send_queue();
        if self.full.is_some_and(|full| waiting < full) {
            self.full = None;
        }
        self.full.is_none()
    }

    /// Sends a datagram of `len` bytes, the header's at least; whether there was room. What follows the header is
    /// whatever was there.
    pub(crate) fn send(&mut self, net: &mut Net, header: Header, len: usize, to: IpEndpoint) -> bool {
        self.send_with(net, len.max(HEADER), to, |datagram| {
            datagram[..HEADER].copy_from_slice(&header.encode());
        })
    }

    /// Sends a datagram of `len` bytes, as far as `fill` writes them; whether there was room.
    pub(crate) fn send_with(
        &mut self,
        net: &mut Net,
        len: usize,
        to: IpEndpoint,
        fill: impl FnOnce(&mut [u8]),
    ) -> bool {
        let socket: &mut Socket<'_> = net.socket(self.socket);
        let Ok(datagram) = socket.send(len, UdpMetadata::from(to)) else {
            self.full = Some(socket.send_queue());
            return false;
        };
        fill(datagram);
        true
    }

    /// The next datagram that is one of ours: its header, its length, and who has sent it.
    pub(crate) fn receive(&mut self, net: &mut Net) -> Option<(Header, usize, IpEndpoint)> {
        while let Some((datagram, from)) = self.next(net) {
            if let Some(header) = Header::parse(datagram) {
                return Some((header, datagram.len(), from));
            }
        }
        None
    }

    /// The next datagram, whatever it says, and who has sent it.
    pub(crate) fn next<'a>(&self, net: &'a mut Net) -> Option<(&'a [u8], IpEndpoint)> {
        let socket: &'a mut Socket<'static> = net.socket(self.socket);
        let (datagram, from) = socket.recv().ok()?;
        Some((datagram, from.endpoint))
    }
}
