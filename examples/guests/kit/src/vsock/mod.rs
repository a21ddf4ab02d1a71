//! Stream sockets between guest and host: a virtio device (virtio 1.2, 5.10), driven by the queues of `virtio-drivers`.
//!
//! That crate's own driver waits for every packet to be taken, one at a time, and knows no half of a stream that is closed;
//! this one keeps many packets under way. [`Vsock`] takes packets in and sends them out when it is asked to, and halts the
//! processor until there is something to do; nothing polls. A device that breaks the protocol is an error: this is the
//! other side that Ringlet's own device is tested against.
//!
//! ```ignore
//! let mut vsock = Vsock::open(context)?;
//! vsock.listen(1024, 16);
//! loop {
//!     vsock.poll()?;
//!     while let Some(handle) = vsock.news() {
//!         …                   // read and write
//!     }
//!     vsock.poll()?;          // what was written goes out
//!     vsock.wait(None)?;
//! }
//! ```

mod device;
mod error;
mod header;
mod socket;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::fmt;

use device::{Device, PAYLOAD};
pub use error::Error;
use header::{HOST, Header, Op, Packet, Ports, STREAM};
pub use socket::{End, Socket};

use crate::boot::Context;
use crate::interrupts::{self, TIMER_VECTOR};
use crate::{lapic, time};

/// Most packets that [`Vsock::poll`] takes in.
const BUDGET: usize = 64;
/// Answers to packets of no connection that may wait for room; while there are more, no packet is taken in.
const ANSWERS: usize = 64;
/// Where the guest's own ports begin.
const FIRST_PORT: u32 = 49152;

/// What the device has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that came in, and their bytes without headers.
    pub rx_packets: u64,
    /// Those bytes.
    pub rx_bytes: u64,
    /// Packets that went out.
    pub tx_packets: u64,
    /// Their bytes without headers.
    pub tx_bytes: u64,
    /// Interrupts of the device.
    pub interrupts: u64,
    /// How often the device was told of something.
    pub notifications: u64,
}

/// Names a stream until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handle(u32);

/// A port that connections may go to.
#[derive(Debug)]
struct Listener {
    port: u32,
    backlog: usize,
    waiting: VecDeque<Handle>,
}

/// A stream and who it is between.
#[derive(Debug)]
struct Entry {
    ports: Ports,
    socket: Socket,
}

/// All streams of the guest, over one device.
pub struct Vsock {
    device: Device,
    entries: Vec<Option<Entry>>,
    free: Vec<Handle>,
    /// Streams that are not gone, by their ports.
    by_ports: BTreeMap<Ports, Handle>,
    listeners: Vec<Listener>,
    /// Those that have something to send, each once, in their order.
    line: VecDeque<Handle>,
    /// Those at which the program is to look.
    news: VecDeque<Handle>,
    /// Answers to packets of no connection.
    answers: VecDeque<Header>,
    next_port: u32,
    /// A packet found no room.
    starved: bool,
    /// When the timer is going to fire.
    armed: Option<u64>,
    counters: Counters,
}

impl Vsock {
    /// Sets the device up.
    ///
    /// # Errors
    /// There is none, or it does not come up.
    pub fn open(context: &Context) -> Result<Self, Error> {
        Ok(Self {
            device: Device::open(context)?,
            entries: Vec::new(),
            free: Vec::new(),
            by_ports: BTreeMap::new(),
            listeners: Vec::new(),
            line: VecDeque::new(),
            news: VecDeque::new(),
            answers: VecDeque::new(),
            next_port: FIRST_PORT,
            starved: false,
            armed: None,
            counters: Counters::default(),
        })
    }

    /// The guest's address.
    #[must_use]
    pub fn cid(&self) -> u64 {
        self.device.cid
    }

    /// What the device has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let Device { interrupts, .. } = self.device;
        Counters { interrupts, notifications: self.device.notifications(), ..self.counters }
    }

    /// Lets the host connect to `port`; of connections that nobody has [accepted](Self::accept) there may be `backlog`.
    pub fn listen(&mut self, port: u32, backlog: usize) {
        match self.listeners.iter_mut().find(|listener| listener.port == port) {
            Some(listener) => listener.backlog = backlog,
            None => self.listeners.push(Listener { port, backlog, waiting: VecDeque::new() }),
        }
    }

    /// The connection to `port` that waits the longest.
    pub fn accept(&mut self, port: u32) -> Option<Handle> {
        self.listeners.iter_mut().find(|listener| listener.port == port)?.waiting.pop_front()
    }

    /// Asks for a connection to a port of the host. It is there, or has come to its end, when [`news`](Self::news) says so.
    pub fn connect(&mut self, port: u32) -> Handle {
        let ports = loop {
            let ports = Ports { local: self.next_port, peer: port };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.by_ports.contains_key(&ports) {
                break ports;
            }
        };
        let handle = self.add(ports, Socket::connecting());
        self.line_up(handle);
        handle
    }

    fn add(&mut self, ports: Ports, socket: Socket) -> Handle {
        let handle = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Handle(self.entries.len() as u32 - 1)
        });
        self.entries[handle.0 as usize] = Some(Entry { ports, socket });
        self.by_ports.insert(ports, handle);
        handle
    }

    fn entry(&mut self, handle: Handle) -> &mut Entry {
        let entry = self.entries.get_mut(handle.0 as usize).and_then(Option::as_mut);
        entry.expect("the stream was removed")
    }

    /// A stream.
    ///
    /// # Panics
    /// It was removed.
    #[must_use]
    pub fn socket(&mut self, handle: Handle) -> &Socket {
        &self.entry(handle).socket
    }

    /// Takes bytes that came in; how many.
    pub fn read(&mut self, handle: Handle, into: &mut [u8]) -> usize {
        self.change(handle, |socket| socket.read(into))
    }

    /// Gives bytes to send; how many were taken.
    pub fn write(&mut self, handle: Handle, bytes: &[u8]) -> usize {
        self.change(handle, |socket| socket.write(bytes))
    }

    /// Says that nothing more will be written, when all that was has gone. What comes can still be read.
    pub fn finish(&mut self, handle: Handle) {
        self.change(handle, Socket::finish);
    }

    /// Says that nothing more will be written or read, when all that was written has gone.
    pub fn close(&mut self, handle: Handle) {
        self.change(handle, Socket::close);
    }

    /// Has nothing more to do with the stream; if it has not come to its end, it is broken off.
    pub fn remove(&mut self, handle: Handle) {
        self.change(handle, |socket| {
            socket.abort();
            socket.forgotten = true;
        });
        self.retire(handle);
    }

    fn change<R>(&mut self, handle: Handle, change: impl FnOnce(&mut Socket) -> R) -> R {
        let result = change(&mut self.entry(handle).socket);
        self.line_up(handle);
        result
    }

    /// Puts a stream that has something to send into the line.
    fn line_up(&mut self, handle: Handle) {
        let socket = &mut self.entry(handle).socket;
        if socket.wants_to_send() && !core::mem::replace(&mut socket.in_line, true) {
            self.line.push_back(handle);
        }
    }

    /// Frees the place of a stream that nobody has anything to do with.
    fn retire(&mut self, handle: Handle) {
        let &mut Entry { ports, ref socket } = self.entry(handle);
        let is_gone = socket.end().is_some();
        let is_done = socket.forgotten && !socket.in_line && !socket.is_news;
        if is_gone && self.by_ports.get(&ports) == Some(&handle) {
            self.by_ports.remove(&ports);
        }
        if is_gone && is_done {
            self.entries[handle.0 as usize] = None;
            self.free.push(handle);
        }
    }

    /// A stream to which something has happened since it was last returned: it is there, bytes came, there is room
    /// again, or it has come to an end.
    pub fn news(&mut self) -> Option<Handle> {
        while let Some(handle) = self.news.pop_front() {
            let socket = &mut self.entry(handle).socket;
            socket.is_news = false;
            if !socket.forgotten {
                return Some(handle);
            }
            self.retire(handle);
        }
        None
    }

    fn note(&mut self, handle: Handle) {
        let socket = &mut self.entry(handle).socket;
        if !core::mem::replace(&mut socket.is_news, true) {
            self.news.push_back(handle);
        }
    }

    /// Takes in packets, up to 64, then sends what there is to send, as far as the device has room.
    ///
    /// # Errors
    /// The device broke, or breaks the protocol.
    pub fn poll(&mut self) -> Result<(), Error> {
        if self.device.was_reset()? {
            self.reset();
        }
        for _ in 0..BUDGET {
            if self.answers.len() >= ANSWERS || !self.receive()? {
                break;
            }
        }
        self.send()
    }

    /// All connections are gone.
    fn reset(&mut self) {
        self.answers.clear();
        let handles: Vec<Handle> = self.by_ports.values().copied().collect();
        for handle in handles {
            let socket = &mut self.entry(handle).socket;
            socket.break_off();
            self.note(handle);
            self.retire(handle);
        }
    }

    /// Takes in one packet, if there is one; whether there was.
    fn receive(&mut self) -> Result<bool, Error> {
        let mut payload_len = 0;
        let cid = self.device.cid;
        let Self { device, entries, by_ports, .. } = self;
        let taken = device.next(|header, payload| {
            payload_len = payload.len();
            if header.dst_cid != cid || header.src_cid != HOST {
                return Err(Error::Device("a packet is not for this guest, or not of the host"));
            }
            let ports = Ports { local: header.dst_port, peer: header.src_port };
            let op = header.op.ok_or(Error::Device("a packet has an operation that there is not"))?;
            if op != Op::Data && !payload.is_empty() {
                return Err(Error::Device("a packet without data has some"));
            }
            let &Header { len, flags, buf_alloc, fwd_cnt, .. } = header;
            let packet = Packet { op, len, flags, buf_alloc, fwd_cnt };
            if header.kind != STREAM {
                return Err(Error::Device("a packet is of no stream"));
            }
            let handle = by_ports.get(&ports).copied();
            let entry = handle.and_then(|handle| entries.get_mut(handle.0 as usize)?.as_mut());
            if let Some(entry) = entry {
                entry.socket.receive(&packet, payload)?;
            }
            Ok((ports, packet, handle))
        })?;
        let Some((ports, packet, handle)) = taken else { return Ok(false) };
        self.counters.rx_packets += 1;
        self.counters.rx_bytes += payload_len as u64;
        match handle {
            Some(handle) => {
                self.line_up(handle);
                self.note(handle);
                self.retire(handle);
            }
            None => self.meet(ports, &packet),
        }
        Ok(true)
    }

    /// A packet of no connection: the first of one, or one that has come too late.
    fn meet(&mut self, ports: Ports, packet: &Packet) {
        let listener = self.listeners.iter().position(|listener| listener.port == ports.local);
        let has_room = |index: &usize| {
            self.listeners.get(*index).is_some_and(|listener| listener.waiting.len() < listener.backlog)
        };
        match (packet.op, listener.filter(has_room)) {
            (Op::Reset, _) => {}
            (Op::Request, Some(index)) => {
                let handle = self.add(ports, Socket::accepted(packet));
                self.line_up(handle);
                self.listeners[index].waiting.push_back(handle);
            }
            _ => {
                let refusal = Packet { op: Op::Reset, len: 0, flags: 0, buf_alloc: 0, fwd_cnt: 0 };
                self.answers.push_back(Header::sent(self.device.cid, ports, refusal));
            }
        }
    }

    /// Sends what there is to send, a packet of each stream in turn.
    fn send(&mut self) -> Result<(), Error> {
        self.starved = false;
        while !self.answers.is_empty() || !self.line.is_empty() {
            if !self.device.has_room()? {
                self.starved = true;
                break;
            }
            let sent = match self.answers.pop_front() {
                Some(answer) => self.device.send(0, |_| Some(answer))?,
                None => self.send_next()?,
            };
            self.counters.tx_packets += u64::from(sent);
        }
        self.device.tell();
        Ok(())
    }

    /// Sends the packet of the stream that is first in the line.
    fn send_next(&mut self) -> Result<bool, Error> {
        let Some(handle) = self.line.pop_front() else { return Ok(false) };
        let cid = self.device.cid;
        let entry = self.entries.get_mut(handle.0 as usize).and_then(Option::as_mut);
        let Some(Entry { ports, socket }) = entry else { return Ok(false) };
        socket.in_line = false;
        let len = socket.next_len(PAYLOAD);
        let sent = self.device.send(len, |payload| Some(Header::sent(cid, *ports, socket.send(payload)?)))?;
        self.counters.tx_bytes += len as u64;
        if len > 0 {
            self.note(handle);
        }
        self.line_up(handle);
        self.retire(handle);
        Ok(sent)
    }

    /// Halts until there may be something to do: a packet, a connection to accept, a time at which the program has to
    /// act (`until`, of [`time::now`]), or any interrupt.
    ///
    /// # Errors
    /// The device broke.
    pub fn wait(&mut self, until: Option<u64>) -> Result<(), Error> {
        // A connection waits to be accepted without being news, and its peer may have nothing to say before that.
        let unaccepted = self.listeners.iter().any(|listener| !listener.waiting.is_empty());
        if unaccepted || !self.news.is_empty() || self.device.listen(self.starved) {
            self.device.hush();
            return Ok(());
        }
        if let Some(at) = until {
            let now = time::now();
            if at <= now {
                self.device.hush();
                return Ok(());
            }
            self.arm(now, at);
        }
        self.device.wait()?;
        if interrupts::take(TIMER_VECTOR) > 0 {
            self.armed = None;
        }
        Ok(())
    }

    /// Has the timer fire at `at` or before: one that fires too early costs less than being armed anew every time.
    fn arm(&mut self, now: u64, at: u64) {
        if self.armed.is_none_or(|armed| armed > at) {
            lapic::arm_timer(at - now);
            self.armed = Some(at);
        }
    }
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock").field("device", &self.device).finish_non_exhaustive()
    }
}
