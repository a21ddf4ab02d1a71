//! The sockets of a TCP server: one that listens, those that are served, and those that are free.

use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use ringlet_guest::net::Net;
use ringlet_guest::net::stack::iface::SocketHandle;
use ringlet_guest::net::stack::socket::Socket as AnyKind;
use ringlet_guest::net::stack::socket::tcp::{Socket, SocketBuffer, State};
use ringlet_guest::net::stack::time::Duration;
use ringlet_guest::time;

/// An answer that comes within this time carries the acknowledgement.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// What a pool has room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) port: u16,
    /// Most connections at once.
    pub(crate) connections: usize,
    /// Bytes that a client may send before they are looked at.
    pub(crate) receive: usize,
    /// Bytes on their way to a client.
    pub(crate) send: usize,
    /// Nanoseconds that a handshake may take.
    pub(crate) handshake: u64,
}

/// A socket that is not free.
struct Slot<C> {
    socket: SocketHandle,
    /// `None`: the handshake is not complete, and has to be by `deadline`.
    connection: Option<C>,
    deadline: u64,
}

/// Sockets with what a server knows of each connection.
pub(crate) struct Pool<C> {
    shape: Shape,
    /// The one that listens. There is none when all are in use: the stack refuses connections then.
    listener: Option<SocketHandle>,
    slots: Vec<Slot<C>>,
    free: Vec<AnyKind<'static>>,
}

impl<C> Pool<C> {
    pub(crate) fn new(shape: Shape) -> Self {
        Self { shape, listener: None, slots: Vec::new(), free: Vec::new() }
    }

    /// Sees to it that a socket listens, as long as there may be one more. To be called after each packet, which may be
    /// a client's first.
    pub(crate) fn accept(&mut self, net: &mut Net) {
        self.forget_taken_back(net);
        if let Some(socket) = self.listener {
            if net.socket::<Socket<'_>>(socket).is_listening() {
                return;
            }
            self.listener = None;
            let deadline = time::now().saturating_add(self.shape.handshake);
            self.slots.push(Slot { socket, connection: None, deadline });
        }
        if self.slots.len() >= self.shape.connections {
            return;
        }
        let Shape { port, receive, send, .. } = self.shape;
        let Some(socket) = self.free.pop().or_else(|| Some(AnyKind::Tcp(socket(receive, send)?))) else {
            // Memory for so many and no more.
            self.shape.connections = self.slots.len().max(1);
            return;
        };
        let closed = net.sockets().add(socket);
        let socket = self.put_last(net, closed);
        let tcp: &mut Socket<'_> = net.socket(socket);
        tcp.set_ack_delay(Some(ACK_DELAY));
        // A socket that is closed can listen on any port but 0.
        let _ = tcp.listen(port);
        self.listener = Some(socket);
    }

    /// Closes the sockets whose client has taken its first packet back: they would listen again.
    fn forget_taken_back(&self, net: &mut Net) {
        for slot in &self.slots {
            let socket: &mut Socket<'_> = net.socket(slot.socket);
            if socket.is_listening() {
                socket.abort();
            }
        }
    }

    /// Moves a socket that is closed to the end, by exchanging it with the last one in use. The stack asks sockets in their
    /// order, and one that listens takes every request for a connection, even one that came twice and that another knows.
    fn put_last(&mut self, net: &mut Net, closed: SocketHandle) -> SocketHandle {
        let last = self.slots.iter_mut().max_by_key(|slot| slot.socket);
        let Some(last) = last.filter(|last| last.socket > closed) else { return closed };
        let both = [closed, last.socket];
        let mut sockets = net.sockets().iter_mut().filter(|(handle, _)| both.contains(handle));
        let (Some((_, first)), Some((_, second))) = (sockets.next(), sockets.next()) else { return closed };
        mem::swap(first, second);
        mem::replace(&mut last.socket, closed)
    }

    /// Has `serve` look at every connection, and make one of `None`; those are torn down for which it says `false`.
    pub(crate) fn serve(
        &mut self,
        net: &mut Net,
        now: u64,
        mut serve: impl FnMut(&mut Option<C>, &mut Socket<'static>) -> bool,
    ) {
        for slot in &mut self.slots {
            let socket: &mut Socket<'_> = net.socket(slot.socket);
            match socket.state() {
                State::Closed | State::Listen | State::TimeWait => {}
                State::SynReceived if now >= slot.deadline => socket.abort(),
                State::SynReceived => {}
                _ if serve(&mut slot.connection, socket) => {}
                _ => socket.abort(),
            }
        }
    }

    /// Takes the sockets back whose last packet was sent.
    pub(crate) fn reclaim(&mut self, net: &mut Net) {
        self.slots.retain(|slot| match net.socket::<Socket<'_>>(slot.socket).state() {
            State::Closed => {
                self.free.push(net.sockets().remove(slot.socket));
                false
            }
            // It would wait ten seconds for packets of a connection that is over (RFC 9293, 3.6.1), and others for it.
            State::TimeWait => {
                drop(net.sockets().remove(slot.socket));
                false
            }
            _ => true,
        });
    }

    /// When something has to be done though nothing comes, if `of` says so of each connection.
    pub(crate) fn deadline(&self, of: impl Fn(&C) -> u64) -> Option<u64> {
        let of = |slot: &Slot<C>| slot.connection.as_ref().map_or(slot.deadline, &of);
        self.slots.iter().map(of).min()
    }

    /// Connections that are being served.
    pub(crate) fn connections(&self) -> impl Iterator<Item = &C> {
        self.slots.iter().filter_map(|slot| slot.connection.as_ref())
    }

    /// As [`connections`](Self::connections), to change what is known of them.
    pub(crate) fn connections_mut(&mut self) -> impl Iterator<Item = &mut C> {
        self.slots.iter_mut().filter_map(|slot| slot.connection.as_mut())
    }
}

/// A socket with its buffers, if there is memory.
pub(crate) fn socket(receive: usize, send: usize) -> Option<Socket<'static>> {
    let mut socket = Socket::new(SocketBuffer::new(buffer(receive)?), SocketBuffer::new(buffer(send)?));
    socket.set_nagle_enabled(false);
    Some(socket)
}

/// Zeroes, if there is memory.
pub(crate) fn buffer(len: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![];
    buffer.try_reserve_exact(len).ok()?;
    buffer.resize(len, 0);
    Some(buffer)
}
