//! One connection: its state, and what it does with each packet.
//!
//! Owns the host's socket, the credit, and what the socket did not take yet, which is never more than the guest was given
//! room for. Changes its state only; whoever holds it gives it turns, and removes it. Never waits.

use std::mem::replace;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ringlet_io::{ShardContext, Task};

use super::buffer::{Data, Pending, RoomFor, Unfit};
use super::credit::Credit;
use super::flaw::Flaw;
use super::host::ConnectError;
use super::owed::Owed;
use super::packet::{HOST_CID, Header, NO_MORE_RECEIVED, NO_MORE_SENT, Op, STREAM};
use super::peer::{Caller, Placed};
use super::table::Pair;
use super::window::Window;

const BOTH: u32 = NO_MORE_RECEIVED | NO_MORE_SENT;

#[derive(Debug)]
pub(super) enum Phase {
    /// The guest was asked, or will be.
    Requested(Caller),
    /// The guest asks, and a socket is being connected to.
    Connecting,
    Open,
    /// All that is left is to tell the guest of the end.
    Ended,
}

/// What a packet of the guest comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Stays,
    Established,
    /// The guest has ended it, or does not want it.
    Gone,
}

/// A task that ends with whoever has this.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) cx: ShardContext,
    pub(super) task: Task<()>,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.cx.abort(&self.task);
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) pair: Pair,
    pub(super) phase: Phase,
    pub(super) credit: Credit,
    pub(super) stream: Option<Rc<Placed>>,
    /// The socket once it is over, if there is something in it that nobody has taken.
    left: Option<Rc<Placed>>,
    /// There was data for the socket.
    has_sent: bool,
    /// It has its place among those that have turns.
    pub(super) queued: bool,
    /// Sees to the socket, and to the time that the guest has.
    pub(super) watcher: Option<Job>,
    /// Wakes the watcher.
    waker: Option<Waker>,
    pending: Pending,
    owed: Owed,
    /// The socket may have something to receive.
    readable: bool,
    /// The guest was asked for credit, and has not given any.
    asked: bool,
    /// What the guest has said will not come any more, and what it was told will not.
    ended_there: u32,
    ended_here: u32,
    /// What is counted for it, behind its sockets because it is given back after them.
    _window: Window,
}

impl Connection {
    pub(super) fn new(pair: Pair, phase: Phase, window: Window) -> Self {
        Self {
            pair,
            phase,
            credit: Credit::new(window.bytes()),
            stream: None,
            left: None,
            has_sent: false,
            queued: false,
            watcher: None,
            waker: None,
            pending: Pending::default(),
            owed: Owed::default(),
            readable: false,
            asked: false,
            ended_there: 0,
            ended_here: 0,
            _window: window,
        }
    }

    /// A packet without data is to be sent.
    pub(super) fn owe(&mut self, op: Op) {
        self.owed.add(op);
    }

    /// Whether the guest has not seen the request for it yet.
    pub(super) fn is_unheard_of(&self) -> bool {
        self.owed.has(Op::Request)
    }

    pub(super) fn is_requested(&self) -> bool {
        matches!(self.phase, Phase::Requested(_))
    }

    /// Whether a reset of the guest, which has come, is one that nobody has asked for: it is the answer to a whole shutdown,
    /// too (section 5.10.6.5).
    pub(super) fn is_broken_off(&self) -> bool {
        !matches!(self.phase, Phase::Ended) && self.ended_here != BOTH
    }

    /// Whether there is something to send, as far as is known.
    pub(super) fn wants_turn(&self) -> bool {
        self.owed != Owed::default()
            || self.readable && self.receives() && (self.credit.allowed() > 0 || !self.asked)
    }

    /// Whether bytes of the socket are wanted.
    fn receives(&self) -> bool {
        matches!(self.phase, Phase::Open)
            && self.ended_there & NO_MORE_RECEIVED == 0
            && self.ended_here & NO_MORE_SENT == 0
    }

    /// Sends as much as its socket takes, as if it came from the guest.
    #[cfg(test)]
    pub(super) fn fill_for_test(&mut self) {
        self.has_sent = true;
        while let Some(Ok(Some(_))) = self.stream.as_ref().map(|stream| stream.send_bytes(&[7; 4096])) {}
    }

    /// The end, of which the guest is told.
    pub(super) fn end(&mut self, error: ConnectError) {
        if let Phase::Requested(caller) = replace(&mut self.phase, Phase::Ended) {
            caller.refuse(error);
        }
        self.close();
        (self.watcher, self.waker) = (None, None);
        self.pending = Pending::default();
        self.owed = Owed::default();
        self.owe(Op::Reset);
    }

    /// Nobody is at the other end of the socket any more: closes it. The guest is to be told, and answers with a reset.
    fn leave(&mut self) {
        self.ended_here = BOTH;
        self.close();
        self.pending = Pending::default();
        self.wake();
    }

    /// Closes the socket; or ends it only, as long as the kernel keeps in it what the guest has sent.
    fn close(&mut self) {
        let Some(stream) = self.stream.take().filter(|_| self.has_sent) else { return };
        // An error is one of a socket that is no more.
        if stream.keep_at_most(0).is_ok() && stream.keeps_much() {
            stream.end_both();
            self.left = Some(stream);
        }
    }

    /// Whether there is still something in its socket that nobody has taken, after its end.
    pub(super) fn lingers(&self) -> bool {
        self.left.as_ref().is_some_and(|stream| stream.keeps_much())
    }

    /// Whether all that is left is the guest's answer to the end.
    pub(super) fn is_left(&self) -> bool {
        self.ended_here == BOTH && matches!(self.phase, Phase::Open)
    }

    /// Whether the guest was told of everything but data.
    pub(super) fn owes_nothing(&self) -> bool {
        self.owed == Owed::default()
    }

    /// Takes a packet of the guest that belongs to this connection. `data`: the chain that its data is in.
    pub(super) fn hear(&mut self, op: Op, header: &Header, data: &mut Data<'_>) -> Result<After, Flaw> {
        if matches!(self.phase, Phase::Ended) {
            // What was sent before the guest heard of the end.
            return Ok(if op == Op::Reset { After::Gone } else { After::Stays });
        }
        if op == Op::Reset {
            return Ok(After::Gone);
        }
        self.credit.hear(header.buf_alloc, header.fwd_cnt)?;
        self.asked &= self.credit.allowed() == 0;
        match (&self.phase, op) {
            (Phase::Requested(_), Op::Response) if !self.is_unheard_of() => return Ok(After::Established),
            (Phase::Open, Op::Data) => self.take_data(header.len, data)?,
            (Phase::Open, Op::Shutdown) => self.shut_down(header.flags)?,
            (Phase::Connecting, Op::Shutdown) => self.end(ConnectError::Reset),
            (Phase::Open | Phase::Connecting, Op::CreditUpdate) => {}
            (Phase::Open | Phase::Connecting, Op::CreditRequest) => self.owe(Op::CreditUpdate),
            _ => return Err(Flaw::Order(op)),
        }
        Ok(After::Stays)
    }

    /// The guest has accepted: tells who waits, and begins. False if nobody waits any more.
    pub(super) fn establish(&mut self) -> bool {
        let Phase::Requested(caller) = replace(&mut self.phase, Phase::Open) else { return false };
        let told = match caller {
            Caller::Process(answer) => answer.send(Ok(self.pair.host)).is_ok(),
            Caller::Socket => {
                let line = format!("OK {}\n", self.pair.host);
                // The first bytes of a socket always fit.
                self.stream.as_ref().is_some_and(|stream| {
                    matches!(stream.send_bytes(line.as_bytes()), Ok(Some(count)) if count == line.len())
                })
            }
        };
        self.wake();
        told
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Passes data on: what the socket takes, from guest memory; the rest is kept.
    fn take_data(&mut self, len: u32, data: &mut Data<'_>) -> Result<(), Flaw> {
        if self.ended_there & NO_MORE_SENT != 0 {
            return Err(Flaw::Order(Op::Data));
        }
        self.credit.receive(len)?;
        if self.is_left() && len > 0 {
            self.end(ConnectError::Reset);
        }
        let Some(stream) = self.stream.clone().filter(|_| len > 0) else { return Ok(()) };
        let mut gone = 0;
        self.has_sent = true;
        if self.pending.is_empty() {
            match data.send(&stream, len)? {
                Ok(count) => gone = count,
                Err(_) => {
                    // Whoever was there is gone, or does not want to hear of it.
                    self.end(ConnectError::Reset);
                    return Ok(());
                }
            }
        }
        if gone < len {
            let rest = usize::try_from(len - gone).unwrap_or(0);
            data.copy(gone, self.pending.add(rest))?;
            // It is the watcher that waits for the socket.
            self.wake();
        }
        self.passed_on(gone);
        Ok(())
    }

    fn passed_on(&mut self, bytes: u32) {
        self.credit.pass_on(bytes);
        if self.credit.is_update_due() {
            self.owe(Op::CreditUpdate);
        }
    }

    fn shut_down(&mut self, flags: u32) -> Result<(), Flaw> {
        if flags & !BOTH != 0 {
            return Err(Flaw::Flags(flags));
        }
        let new = flags & !self.ended_there;
        self.ended_there |= flags;
        if new & NO_MORE_RECEIVED != 0
            && let Some(stream) = &self.stream
        {
            stream.end_receiving();
            // From now on it looks for the end of the socket only.
            self.wake();
        }
        self.settle();
        Ok(())
    }

    /// What the guest's end of sending entails, once everything that it sent is gone.
    fn settle(&mut self) {
        if self.ended_there & NO_MORE_SENT == 0 || !self.pending.is_empty() {
            return;
        }
        if let Some(stream) = &self.stream {
            stream.end_sending();
        }
        if self.ended_there & BOTH == BOTH {
            // The answer to a whole shutdown is a reset (section 5.10.6.5).
            self.end(ConnectError::Reset);
        }
    }

    /// Wakes the watcher by this from now on.
    pub(super) fn wake_by(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }

    /// Sees to the socket, for the watcher: whether there is something to receive, and what waits to be sent.
    pub(super) fn poll_socket(&mut self, cx: &mut Context<'_>) {
        self.wake_by(cx);
        self.look();
        while !self.pending.is_empty() {
            let Some(stream) = self.stream.clone() else { return };
            match stream.poll_writable(cx) {
                Poll::Pending => return,
                Poll::Ready(Err(_)) => return self.end(ConnectError::Reset),
                Poll::Ready(Ok(())) => {}
            }
            match stream.send_bytes(self.pending.rest()) {
                Ok(None) => {}
                Ok(Some(count)) => {
                    self.pending.has_gone(count);
                    // No more than is kept, which is within the window.
                    self.passed_on(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Err(_) => return self.end(ConnectError::Reset),
            }
        }
        self.settle();
        self.look_for_end(cx);
    }

    /// Looks whether anybody is at the other end, where nothing that is received would tell; the watcher is woken when nobody is.
    /// Not while something waits to be sent: then that fails.
    fn look_for_end(&mut self, cx: &mut Context<'_>) {
        if self.receives() || !matches!(self.phase, Phase::Open) {
            return;
        }
        let Some(stream) = &self.stream else { return };
        match stream.poll_hung_up(cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => {
                self.leave();
                self.owe(Op::Shutdown);
            }
            Poll::Ready(Err(_)) => self.end(ConnectError::Reset),
        }
    }

    /// Looks whether there may be something to receive; the watcher is woken when there is.
    fn look(&mut self) {
        if self.readable || !self.receives() {
            return;
        }
        let (Some(stream), Some(waker)) = (&self.stream, &self.waker) else { return };
        match stream.poll_readable(&mut Context::from_waker(waker)) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.readable = true,
            Poll::Ready(Err(_)) => self.end(ConnectError::Reset),
        }
    }

    /// Takes its turn: a packet for the guest, whose data is in `room`, if there is one.
    ///
    /// # Errors
    /// The room cannot be lent: it is in too many pieces.
    pub(super) fn take_turn(&mut self, room: &mut RoomFor<'_>) -> Result<Option<Header>, Unfit> {
        if let Some(op) = self.owed.take() {
            return Ok(Some(self.header(op, 0)));
        }
        if !self.readable || !self.receives() {
            return Ok(None);
        }
        let allowed = self.credit.allowed();
        if allowed == 0 {
            let asks = !replace(&mut self.asked, true);
            return Ok(asks.then(|| self.header(Op::CreditRequest, 0)));
        }
        let Some(stream) = self.stream.clone() else { return Ok(None) };
        match room.receive(&stream, allowed)? {
            Ok(Some(0)) => {
                self.readable = false;
                self.ended_here |= NO_MORE_SENT;
                if stream.has_hung_up() {
                    self.leave();
                } else {
                    // From now on it looks for the end of the other half.
                    self.wake();
                }
                Ok(Some(self.header(Op::Shutdown, 0)))
            }
            Ok(Some(count)) => {
                // No more than was allowed.
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                self.credit.sent(count);
                Ok(Some(self.header(Op::Data, count)))
            }
            Ok(None) => {
                self.readable = false;
                self.look();
                Ok(None)
            }
            Err(_) => {
                self.end(ConnectError::Reset);
                Ok(None)
            }
        }
    }

    /// The header of a packet to the guest, without its context ID.
    fn header(&mut self, op: Op, len: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        Header {
            src_cid: HOST_CID,
            dst_cid: 0,
            src_port: self.pair.host,
            dst_port: self.pair.guest,
            len,
            kind: STREAM,
            op: op.number(),
            flags: if op == Op::Shutdown { self.ended_here } else { 0 },
            buf_alloc,
            fwd_cnt,
        }
    }
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
