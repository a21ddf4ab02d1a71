//! All connections: sockets that listen, that are served, and that are over.

use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;

use ringlet_guest::net::stack::iface::SocketHandle;
use ringlet_guest::net::stack::socket::tcp::{Socket, SocketBuffer, State};
use ringlet_guest::net::stack::time::Duration;
use ringlet_guest::net::{Error, Net};
use ringlet_guest::time;

use crate::connection::{Connection, Outcome, Patience, Stream};
use crate::options::Options;
use crate::site::{Device, Stats};

/// Bytes that a client may send before they are looked at.
const RECEIVE: usize = 32 << 10;
/// Bytes on their way to a client.
const SEND: usize = 64 << 10;
/// Most packets between two looks at the connections.
const BATCH: usize = 64;
/// A response that comes within this time carries the acknowledgement.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// A socket that is not free.
struct Slot {
    socket: SocketHandle,
    /// `None`: the handshake is not complete, and has to be by `deadline`.
    connection: Option<Connection>,
    deadline: u64,
}

pub(crate) struct Server {
    port: u16,
    patience: Patience,
    /// Most sockets.
    max: usize,
    /// The one that listens. There is none when all are in use: the stack refuses connections then.
    listener: Option<SocketHandle>,
    slots: Vec<Slot>,
    free: Vec<SocketHandle>,
    stats: Stats,
    start: u64,
}

impl Server {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            port: options.port,
            patience: options.patience,
            max: options.connections,
            listener: None,
            slots: Vec::new(),
            free: Vec::new(),
            stats: Stats::default(),
            start: time::now(),
        }
    }

    pub(crate) fn run(&mut self, net: &mut Net) -> Result<Infallible, Error> {
        loop {
            for _ in 0..BATCH {
                if !net.receive()? {
                    break;
                }
                self.accept(net);
            }
            self.serve(net);
            net.send()?;
            self.reclaim(net);
            self.accept(net);
            net.wait(self.deadline())?;
        }
    }

    /// Sees to it that a socket listens, as long as there may be one more. Called after each packet, which may be a
    /// client's first.
    pub(crate) fn accept(&mut self, net: &mut Net) {
        if let Some(socket) = self.listener {
            if net.socket::<Socket<'_>>(socket).is_listening() {
                return;
            }
            self.listener = None;
            let deadline = time::now().saturating_add(self.patience.work);
            self.slots.push(Slot { socket, connection: None, deadline });
        }
        if self.slots.len() >= self.max {
            return;
        }
        let Some(socket) = self.free.pop().or_else(|| Some(net.sockets().add(socket()?))) else {
            // Memory for so many and no more.
            self.max = self.slots.len().max(1);
            return;
        };
        let tcp: &mut Socket<'_> = net.socket(socket);
        tcp.set_ack_delay(Some(ACK_DELAY));
        // A socket that is closed can listen on any port but 0.
        let _ = tcp.listen(self.port);
        self.listener = Some(socket);
    }

    /// Looks at every connection.
    fn serve(&mut self, net: &mut Net) {
        let now = time::now();
        self.stats.uptime = now.saturating_sub(self.start);
        self.stats.device = device(net);
        self.stats.open = self.slots.iter().filter(|slot| slot.connection.is_some()).count() as u64;
        for slot in &mut self.slots {
            slot.serve(net, &mut self.stats, self.patience, now);
        }
    }

    /// Takes the sockets back whose last packet was sent.
    fn reclaim(&mut self, net: &mut Net) {
        self.slots.retain(|slot| match net.socket::<Socket<'_>>(slot.socket).state() {
            State::Closed => {
                self.free.push(slot.socket);
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

    /// When something has to be done though nothing comes.
    fn deadline(&self) -> Option<u64> {
        let of = |slot: &Slot| slot.connection.as_ref().map_or(slot.deadline, Connection::deadline);
        self.slots.iter().map(of).min()
    }
}

impl Slot {
    fn serve(&mut self, net: &mut Net, stats: &mut Stats, patience: Patience, now: u64) {
        let socket: &mut Socket<'_> = net.socket(self.socket);
        match socket.state() {
            State::Closed | State::TimeWait => {}
            // The client has taken its first packet back.
            State::Listen => socket.abort(),
            State::SynReceived if now >= self.deadline => socket.abort(),
            State::SynReceived => {}
            _ => {
                let connection = self.connection.get_or_insert_with(|| {
                    stats.accepted += 1;
                    stats.open += 1;
                    Connection::new(patience, now)
                });
                if connection.advance(&mut Tcp(socket), stats, now) == Outcome::Abort {
                    stats.aborted += 1;
                    socket.abort();
                }
            }
        }
    }
}

/// A socket as a connection wants it.
struct Tcp<'a, 'b>(&'a mut Socket<'b>);

impl Stream for Tcp<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> usize {
        self.0.recv_slice(into).unwrap_or(0)
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.0.send_slice(bytes).unwrap_or(0)
    }

    fn has_ended(&self) -> bool {
        !self.0.may_recv()
    }

    fn queued(&self) -> usize {
        self.0.send_queue()
    }

    fn close(&mut self) {
        // The end of a connection is acknowledged at once: its socket is wanted.
        self.0.set_ack_delay(None);
        self.0.close();
    }

    fn is_gone(&self) -> bool {
        matches!(self.0.state(), State::Closed | State::TimeWait)
    }
}

/// A socket with its buffers, if there is memory.
fn socket() -> Option<Socket<'static>> {
    let mut socket = Socket::new(SocketBuffer::new(buffer(RECEIVE)?), SocketBuffer::new(buffer(SEND)?));
    socket.set_nagle_enabled(false);
    Some(socket)
}

fn buffer(len: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![];
    buffer.try_reserve_exact(len).ok()?;
    buffer.resize(len, 0);
    Some(buffer)
}

fn device(net: &Net) -> Device {
    let counters = net.counters();
    Device {
        rx_packets: counters.rx_packets,
        rx_bytes: counters.rx_bytes,
        rx_dropped: counters.rx_dropped,
        tx_packets: counters.tx_packets,
        tx_bytes: counters.tx_bytes,
        tx_dropped: counters.tx_dropped,
        interrupts: counters.interrupts,
        notifications: counters.notifications,
    }
}
