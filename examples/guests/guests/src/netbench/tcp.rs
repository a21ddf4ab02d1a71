//! The side that measures TCP.

use alloc::format;
use alloc::vec::Vec;

use ringlet_guest::net::Net;
use ringlet_guest::net::stack::iface::SocketHandle;
use ringlet_guest::net::stack::socket::tcp::{Socket, State};
use ringlet_guest::time;

use crate::options::{Mode, Options};
use crate::report::Outcome;
use crate::serve::{RECEIVE, SEND, ZEROS};
use crate::wire::{Command, LINE_MAX, report};
use crate::{Failure, PATIENCE, pool};

/// First of the ports that nobody else uses (RFC 6335, 6).
const PORTS: u16 = 49_152;

/// A connection.
struct Stream {
    socket: SocketHandle,
    mode: Mode,
    size: usize,
    /// Bytes of the command's line, and then of the request, that were not sent.
    unsaid: Vec<u8>,
    to_send: usize,
    /// Bytes of the response that did not come.
    missing: usize,
    /// When the request was begun.
    asked: u64,
    sent: u64,
    /// The peer's answer at the end.
    line: Vec<u8>,
    closed: bool,
    done: bool,
}

/// Runs `--streams` connections for the duration.
pub(crate) fn run(net: &mut Net, options: &Options) -> Result<Outcome, Failure> {
    let mut streams = Vec::new();
    // Another one than after the last boot: the peer may remember that connection.
    let first = (time::now() >> 10) as u16 % 8192;
    for index in 0..options.streams {
        let socket = net.sockets().add(pool::socket(RECEIVE, SEND).ok_or(Failure::Memory)?);
        let port = PORTS + first + index as u16;
        net.connect(socket, options.peer, port).map_err(|_| Failure::NoAnswer)?;
        streams.push(Stream::new(socket, options));
    }
    connect(net, &streams)?;
    let mut outcome = Outcome::new();
    let start = time::now();
    let end = start + options.duration;
    loop {
        crate::take_in(net, |_| {})?;
        let now = time::now();
        for stream in &mut streams {
            stream.advance(net.socket(stream.socket), &mut outcome, now, end)?;
        }
        net.send()?;
        if streams.iter().all(|stream| stream.done) {
            break;
        }
        if now >= end + PATIENCE {
            return Err(Failure::NoAnswer);
        }
        net.wait(Some(if now < end { end } else { end + PATIENCE }))?;
    }
    if options.mode != Mode::TcpSend {
        outcome.nanoseconds = time::now().max(end) - start;
    }
    Ok(outcome)
}

/// Waits until all connections are there.
fn connect(net: &mut Net, streams: &[Stream]) -> Result<(), Failure> {
    let end = time::now() + PATIENCE;
    loop {
        net.poll()?;
        let mut all = true;
        for stream in streams {
            match net.socket::<Socket<'_>>(stream.socket).state() {
                State::SynSent | State::SynReceived => all = false,
                State::Closed => return Err(Failure::Ended),
                _ => {}
            }
        }
        if all {
            return Ok(());
        }
        if time::now() >= end {
            return Err(Failure::NoAnswer);
        }
        net.wait(Some(end))?;
    }
}

impl Stream {
    fn new(socket: SocketHandle, options: &Options) -> Self {
        let command = match options.mode {
            Mode::TcpReceive => Command::Source,
            Mode::TcpRr => Command::Echo,
            _ => Command::Sink,
        };
        let unsaid = format!("{command}\n").into_bytes();
        Self {
            socket,
            mode: options.mode,
            size: options.size,
            unsaid,
            to_send: 0,
            missing: 0,
            asked: 0,
            sent: 0,
            line: Vec::new(),
            closed: false,
            done: false,
        }
    }

    fn advance(
        &mut self,
        socket: &mut Socket<'_>,
        outcome: &mut Outcome,
        now: u64,
        end: u64,
    ) -> Result<(), Failure> {
        if self.done {
            return Ok(());
        }
        if !self.unsaid.is_empty() {
            let said = socket.send_slice(&self.unsaid).map_err(|_| Failure::Ended)?;
            self.unsaid.drain(..said);
            return if self.unsaid.is_empty() { self.advance(socket, outcome, now, end) } else { Ok(()) };
        }
        match self.mode {
            Mode::TcpReceive => self.receive(socket, outcome, now, end),
            Mode::TcpRr => self.ask(socket, outcome, now, end),
            _ if now < end => self.send(socket),
            _ => self.settle(socket, outcome),
        }
    }

    fn send(&mut self, socket: &mut Socket<'_>) -> Result<(), Failure> {
        loop {
            let sent = socket.send_slice(&ZEROS[..self.size]).map_err(|_| Failure::Ended)?;
            self.sent += sent as u64;
            if sent == 0 {
                return Ok(());
            }
        }
    }

    /// Ends this side, and reads what the peer has to say about that.
    fn settle(&mut self, socket: &mut Socket<'_>, outcome: &mut Outcome) -> Result<(), Failure> {
        if !self.closed {
            socket.close();
            self.closed = true;
        }
        let mut byte = [0];
        while socket.recv_slice(&mut byte) == Ok(1) {
            if byte == *b"\n" {
                let (bytes, nanoseconds) = report(&self.line).ok_or(Failure::Mismatch)?;
                if bytes != self.sent {
                    return Err(Failure::Mismatch);
                }
                outcome.bytes += bytes;
                outcome.nanoseconds = outcome.nanoseconds.max(nanoseconds);
                self.done = true;
                return Ok(());
            }
            self.line.extend(byte);
            if self.line.len() == LINE_MAX {
                return Err(Failure::Mismatch);
            }
        }
        if socket.may_recv() { Ok(()) } else { Err(Failure::Ended) }
    }

    fn receive(
        &mut self,
        socket: &mut Socket<'_>,
        outcome: &mut Outcome,
        now: u64,
        end: u64,
    ) -> Result<(), Failure> {
        // On the slowest of machines nothing may have come yet.
        if now >= end && outcome.bytes > 0 {
            socket.abort();
            self.done = true;
            return Ok(());
        }
        loop {
            let taken = socket.recv(|bytes| (bytes.len(), bytes.len())).map_err(|_| Failure::Ended)?;
            outcome.bytes += taken as u64;
            if taken == 0 {
                return Ok(());
            }
        }
    }

    /// Sends a request when the response to the last one is there.
    fn ask(
        &mut self,
        socket: &mut Socket<'_>,
        outcome: &mut Outcome,
        now: u64,
        end: u64,
    ) -> Result<(), Failure> {
        while self.missing > 0 {
            let most = self.missing;
            let taken = socket.recv(|bytes| (bytes.len().min(most), bytes.len().min(most)));
            let taken = taken.map_err(|_| Failure::Ended)?;
            if taken == 0 {
                break;
            }
            self.missing -= taken;
            if self.missing == 0 {
                let now = time::now();
                outcome.latency.add(now - self.asked);
                outcome.requests += 1;
                outcome.bytes += self.size as u64;
            }
        }
        if self.missing == 0 && now >= end {
            socket.close();
            self.done = true;
            return Ok(());
        }
        if self.missing == 0 {
            (self.missing, self.to_send, self.asked) = (self.size, self.size, time::now());
        }
        let sent = socket.send_slice(&ZEROS[..self.to_send]).map_err(|_| Failure::Ended)?;
        self.to_send -= sent;
        Ok(())
    }
}
