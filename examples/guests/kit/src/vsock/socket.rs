//! One stream: what is kept of it, what a packet does to it, and which packet it sends next. Nothing here touches a device,
//! so that it can be tested anywhere.
//!
//! It is strict: a peer that sends more than there is room for, or what it has no right to send, is wrong, and the device
//! with it.

use alloc::collections::VecDeque;

use super::header::{Op, Packet, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Bytes that a stream takes before they are read, and that it keeps to be sent.
pub(super) const CAPACITY: u32 = 256 << 10;

/// What a device must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lie(pub(super) &'static str);

/// How a stream has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides have said that they are done.
    Closed,
    /// Nobody listens where it was to go.
    Refused,
    /// One side has broken it off.
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Asked for; the answer is to come.
    Connecting,
    Open,
    Gone(End),
}

/// One end of a stream between guest and host.
#[derive(Debug)]
pub struct Socket {
    state: State,
    /// Packets that are owed: the request, the answer to one, a reset, how much room there is.
    owes: Owes,
    /// What came and was not read; what is to go.
    incoming: VecDeque<u8>,
    outgoing: VecDeque<u8>,
    /// Bytes that came, were read, and of which the peer knows that: modulo 2³².
    received: u32,
    forwarded: u32,
    told: u32,
    /// Bytes that went, and what the peer says of its room.
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
    /// The peer was asked for room, and has not answered.
    asked: bool,
    /// What this side is done with, as wanted and as told; and the other side.
    shut: u32,
    shut_told: u32,
    peer_shut: u32,
    /// The program has no further interest in it.
    pub(super) forgotten: bool,
    /// It stands in the line of those that have something to send, and of those at which the program is to look.
    pub(super) in_line: bool,
    pub(super) is_news: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owes {
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
}

impl Socket {
    fn new(state: State, owes: Owes) -> Self {
        Self {
            state,
            owes,
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_alloc: 0,
            peer_forwarded: 0,
            asked: false,
            shut: 0,
            shut_told: 0,
            peer_shut: 0,
            forgotten: false,
            in_line: false,
            is_news: false,
        }
    }

    /// A stream that is asked for.
    pub(super) fn connecting() -> Self {
        Self::new(State::Connecting, Owes { request: true, ..Owes::default() })
    }

    /// A stream that the host has asked for with `request`.
    pub(super) fn accepted(request: &Packet) -> Self {
        let mut socket = Self::new(State::Open, Owes { response: true, ..Owes::default() });
        (socket.peer_alloc, socket.peer_forwarded) = (request.buf_alloc, request.fwd_cnt);
        socket
    }

    /// Whether the answer to its request is to come.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    /// How it has ended, if it has; what came before may still be there to be read.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        match self.state {
            State::Gone(end) => Some(end),
            _ => None,
        }
    }

    /// Whether everything was read that will ever come.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let no_more = self.peer_shut & SHUTDOWN_SEND != 0 || self.end().is_some();
        no_more && self.incoming.is_empty()
    }

    /// Whether what is written can still go anywhere.
    #[must_use]
    pub fn may_write(&self) -> bool {
        let closed = (self.shut & SHUTDOWN_SEND) | (self.peer_shut & SHUTDOWN_RECEIVE);
        closed == 0 && self.end().is_none()
    }

    /// Bytes that came and were not read.
    #[must_use]
    pub fn readable(&self) -> usize {
        self.incoming.len()
    }

    /// Bytes that were written and have not gone.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.outgoing.len()
    }

    /// Bytes that can be written now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.may_write() { CAPACITY as usize - self.outgoing.len() } else { 0 }
    }

    /// Takes bytes that came in; how many.
    pub(super) fn read(&mut self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.incoming.len());
        let (front, back) = self.incoming.as_slices();
        let first = front.len().min(len);
        into[..first].copy_from_slice(&front[..first]);
        into[first..len].copy_from_slice(&back[..len - first]);
        self.incoming.drain(..len);
        self.forwarded = self.forwarded.wrapping_add(len as u32);
        // Before half of the room is used that the peer knows of: it need not stop, and is not told of every byte.
        let known = CAPACITY - self.received.wrapping_sub(self.told);
        self.owes.credit |= self.forwarded != self.told && known < CAPACITY / 2 && self.is_open();
        len
    }

    /// Gives bytes to send; how many were taken.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let len = self.room().min(bytes.len());
        self.outgoing.extend(&bytes[..len]);
        len
    }

    /// Says that nothing more will be written, when all that was has gone.
    pub(super) fn finish(&mut self) {
        self.shut |= SHUTDOWN_SEND;
    }

    /// As [`finish`](Self::finish), and that nothing more will be read.
    pub(super) fn close(&mut self) {
        self.shut |= SHUTDOWN_BOTH;
    }

    /// Breaks it off.
    pub(super) fn abort(&mut self) {
        if self.end().is_none() {
            // A request that has not gone needs no reset.
            self.owes = Owes { reset: !self.owes.request, ..Owes::default() };
            self.outgoing.clear();
            self.state = State::Gone(End::Reset);
        }
    }

    /// The transport is another: no packet of this stream will come or go.
    pub(super) fn break_off(&mut self) {
        self.abort();
        self.owes = Owes::default();
    }

    fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Takes a packet of this stream in.
    pub(super) fn receive(&mut self, packet: &Packet, payload: &[u8]) -> Result<(), Lie> {
        if self.end().is_some() {
            // It may have been on its way when the reset went out.
            return Ok(());
        }
        self.take_credit(packet)?;
        match (packet.op, self.state) {
            (Op::Reset, _) => self.end_by_reset(),
            (Op::Response, State::Connecting) if !self.owes.request => self.state = State::Open,
            (_, State::Connecting) => return Err(Lie("the host talks before it has answered")),
            (Op::Request | Op::Response, _) => return Err(Lie("the host asks for a stream that there is")),
            (Op::Data, _) => return self.take(payload),
            (Op::Shutdown, _) => self.peer_shuts(packet.flags)?,
            (Op::CreditRequest, _) => self.owes.credit = true,
            (Op::CreditUpdate, _) => {}
        }
        Ok(())
    }

    /// What the peer says of its room, which must be possible.
    fn take_credit(&mut self, packet: &Packet) -> Result<(), Lie> {
        let advanced = packet.fwd_cnt.wrapping_sub(self.peer_forwarded);
        if packet.op == Op::Reset {
            return Ok(());
        }
        if advanced > self.sent.wrapping_sub(self.peer_forwarded) {
            return Err(Lie("the host has forwarded what was never sent"));
        }
        self.asked &= advanced == 0 && packet.buf_alloc == self.peer_alloc;
        (self.peer_alloc, self.peer_forwarded) = (packet.buf_alloc, packet.fwd_cnt);
        Ok(())
    }

    fn take(&mut self, payload: &[u8]) -> Result<(), Lie> {
        if self.peer_shut & SHUTDOWN_SEND != 0 {
            return Err(Lie("the host sends after it has said that it will not"));
        }
        let known = CAPACITY - self.received.wrapping_sub(self.told);
        if payload.len() > known as usize {
            return Err(Lie("the host sends more than it was told that there is room for"));
        }
        self.received = self.received.wrapping_add(payload.len() as u32);
        if self.shut & SHUTDOWN_RECEIVE == 0 {
            self.incoming.extend(payload);
        } else {
            // Nobody will read it.
            self.forwarded = self.forwarded.wrapping_add(payload.len() as u32);
        }
        Ok(())
    }

    fn peer_shuts(&mut self, flags: u32) -> Result<(), Lie> {
        if flags & !SHUTDOWN_BOTH != 0 || flags == 0 {
            return Err(Lie("the host shuts down what there is not"));
        }
        self.peer_shut |= flags;
        if self.peer_shut & SHUTDOWN_RECEIVE != 0 {
            self.outgoing.clear();
        }
        if self.peer_shut == SHUTDOWN_BOTH {
            self.owes = Owes { reset: true, ..Owes::default() };
            self.state = State::Gone(End::Closed);
        }
        Ok(())
    }

    fn end_by_reset(&mut self) {
        let both_done = self.shut_told & SHUTDOWN_SEND != 0 && self.peer_shut & SHUTDOWN_SEND != 0;
        self.outgoing.clear();
        self.owes = Owes::default();
        self.state = State::Gone(match self.state {
            State::Connecting => End::Refused,
            _ if both_done || self.shut_told == SHUTDOWN_BOTH => End::Closed,
            _ => End::Reset,
        });
    }

    /// Bytes that the peer has room for.
    fn credit(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Whether [`send`](Self::send) would yield a packet.
    pub(super) fn wants_to_send(&self) -> bool {
        let Owes { request, response, reset, credit } = self.owes;
        if request || response || reset {
            return true;
        }
        let shuts = self.outgoing.is_empty() && self.shut != self.shut_told;
        let sends = !self.outgoing.is_empty() && (self.credit() > 0 || !self.asked);
        self.is_open() && (credit || sends || shuts)
    }

    /// Bytes of data in the next packet, of which there may be `most`.
    pub(super) fn next_len(&self, most: usize) -> usize {
        let Owes { request, response, reset, .. } = self.owes;
        if request || response || reset || !self.is_open() {
            return 0;
        }
        self.outgoing.len().min(self.credit() as usize).min(most)
    }

    /// The next packet, whose bytes are written to `into`: as many as [`next_len`](Self::next_len) says.
    pub(super) fn send(&mut self, into: &mut [u8]) -> Option<Packet> {
        if !into.is_empty() {
            return Some(self.data(into));
        }
        if core::mem::take(&mut self.owes.request) {
            return Some(self.packet(Op::Request, 0, 0));
        }
        if core::mem::take(&mut self.owes.reset) {
            return Some(self.packet(Op::Reset, 0, 0));
        }
        if !self.is_open() {
            return None;
        }
        if core::mem::take(&mut self.owes.response) {
            return Some(self.packet(Op::Response, 0, 0));
        }
        if self.outgoing.is_empty() && self.shut != self.shut_told {
            self.shut_told = self.shut;
            return Some(self.packet(Op::Shutdown, 0, self.shut));
        }
        if self.owes.credit {
            return Some(self.packet(Op::CreditUpdate, 0, 0));
        }
        if !self.outgoing.is_empty() && !self.asked {
            self.asked = true;
            return Some(self.packet(Op::CreditRequest, 0, 0));
        }
        None
    }

    fn data(&mut self, into: &mut [u8]) -> Packet {
        let len = into.len();
        let (front, back) = self.outgoing.as_slices();
        let first = front.len().min(len);
        into[..first].copy_from_slice(&front[..first]);
        into[first..].copy_from_slice(&back[..len - first]);
        self.outgoing.drain(..len);
        self.sent = self.sent.wrapping_add(len as u32);
        self.packet(Op::Data, len as u32, 0)
    }

    /// Every packet tells how much room there is.
    fn packet(&mut self, op: Op, len: u32, flags: u32) -> Packet {
        self.owes.credit = false;
        self.told = self.forwarded;
        Packet { op, len, flags, buf_alloc: CAPACITY, fwd_cnt: self.forwarded }
    }
}
