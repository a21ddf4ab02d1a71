//! A server of iperf3: one test at a time, of TCP or UDP, in one direction or both; others are told to come later.

use alloc::vec::Vec;

use ringlet_guest::net::Net;
use ringlet_guest::net::stack::socket::tcp::Socket;
use ringlet_guest::net::stack::wire::{IpEndpoint, IpVersion};
use ringlet_guest::{println, time};

use crate::datagrams::Datagrams;
use crate::iperf_wire::{
    COOKIE, Flow, HELLO, MESSAGE_MAX, Parameters, STREAMS_MAX, WELCOME, ids, message, results, state,
};
use crate::options::SIZE_MAX;
use crate::pool::{Pool, Shape};
use crate::report::Outcome;
use crate::serve::{RECEIVE, SEND, ZEROS};
use crate::wire::Pace;
use crate::{Failure, PATIENCE};

/// Those of a test in both directions, the one that carries its course, and one that is told to come later.
const CONNECTIONS: usize = 2 * STREAMS_MAX as usize + 2;
/// Nanoseconds without a byte of a test after which it is over.
const SILENCE: u64 = 3 * PATIENCE;
/// Datagrams of a stream between two looks at what comes in.
const BATCH: u64 = 64;

/// Serves until the device breaks.
pub(crate) fn run(net: &mut Net, port: u16) -> Result<Outcome, Failure> {
    let shape = Shape { port, connections: CONNECTIONS, receive: RECEIVE, send: SEND, handshake: PATIENCE };
    let mut pool = Pool::new(shape);
    pool.accept(net);
    let mut datagrams = Datagrams::open(net, port)?;
    let mut server = Server { test: None, mtu: net.mtu().into(), again: false };
    println!("netbench: ready on port {port}, for iperf3");
    loop {
        crate::take_in(net, |net| pool.accept(net))?;
        let now = time::now();
        server.answer(&mut datagrams, net, now);
        // What one connection says may be what another waits for.
        server.again = true;
        while core::mem::take(&mut server.again) {
            pool.serve(net, now, |peer, socket| {
                server.look_at(peer.get_or_insert_with(|| Peer::new(now)), socket, now)
            });
        }
        server.send(&mut datagrams, net);
        net.send()?;
        pool.reclaim(net);
        if !pool.connections_mut().any(|peer| matches!(peer.role, Role::Control)) {
            // It is gone, in the middle of its test or at the end.
            server.test = None;
        }
        pool.accept(net);
        let until = pool.deadline(|peer| peer.deadline).into_iter().chain(server.next(&mut datagrams, net));
        net.wait(until.min())?;
    }
}

/// A connection.
struct Peer {
    role: Role,
    /// It is torn down then.
    deadline: u64,
}

enum Role {
    /// Its cookie is to come.
    New(Vec<u8>),
    /// It carries the course of the test.
    Control,
    /// It is this stream of the test.
    Stream(usize),
    /// There is nothing more to say.
    Ended,
}

impl Peer {
    fn new(now: u64) -> Self {
        Self { role: Role::New(Vec::new()), deadline: now.saturating_add(PATIENCE) }
    }

    fn end(&mut self, socket: &mut Socket<'_>, now: u64) {
        socket.set_ack_delay(None);
        socket.close();
        *self = Self { role: Role::Ended, deadline: now.saturating_add(PATIENCE) };
    }
}

/// How far a test has come: what is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Parameters,
    Streams,
    End,
    Results,
    Goodbye,
}

struct Test {
    cookie: Vec<u8>,
    /// Bytes of the longest datagram: nothing is sent in fragments.
    longest: usize,
    phase: Phase,
    parameters: Option<Parameters>,
    flows: Vec<Flow>,
    /// Who sends the datagrams of each stream.
    ends: Vec<IpEndpoint>,
    paces: Vec<Pace>,
    /// Bytes of control that came and were not understood yet, and such that are to go.
    came: Vec<u8>,
    to_go: Vec<u8>,
    start: u64,
    /// When a byte of it was last seen.
    moved: u64,
}

struct Server {
    test: Option<Test>,
    /// Most bytes of an IP packet.
    mtu: usize,
    /// Something has changed that another connection may wait for.
    again: bool,
}

impl Server {
    /// Does what can be done now; whether the connection is still wanted.
    fn look_at(&mut self, peer: &mut Peer, socket: &mut Socket<'_>, now: u64) -> bool {
        match &mut peer.role {
            Role::New(cookie) => {
                let mut byte = [0];
                while cookie.len() < COOKIE && socket.recv_slice(&mut byte) == Ok(1) {
                    cookie.extend(byte);
                }
                if cookie.len() < COOKIE {
                    return socket.may_recv() && now < peer.deadline;
                }
                let cookie = core::mem::take(cookie);
                self.begin(cookie, peer, socket, now);
            }
            Role::Control => self.steer(peer, socket, now),
            Role::Stream(index) => match (&mut self.test, *index) {
                (Some(test), index) if test.phase <= Phase::End => test.stream(index, socket, now),
                _ => peer.end(socket, now),
            },
            Role::Ended => {
                // What it still sends is of no interest, but has to go.
                let _ = socket.recv(|bytes| (bytes.len(), ()));
            }
        }
        if let (Role::Control | Role::Stream(_), Some(test)) = (&peer.role, &self.test) {
            peer.deadline = test.moved.saturating_add(SILENCE);
        }
        now < peer.deadline
    }

    /// Takes a connection as what its cookie makes it.
    fn begin(&mut self, cookie: Vec<u8>, peer: &mut Peer, socket: &mut Socket<'_>, now: u64) {
        self.again = true;
        match &mut self.test {
            None => {
                let is_ipv6 =
                    socket.remote_endpoint().is_some_and(|end| end.addr.version() == IpVersion::Ipv6);
                let headers = if is_ipv6 { 48 } else { 28 };
                self.test = Some(Test::new(cookie, self.mtu.saturating_sub(headers), now));
                peer.role = Role::Control;
            }
            Some(test) if test.cookie == cookie && test.wants_stream(false) => {
                peer.role = Role::Stream(test.flows.len());
                test.join(now);
            }
            Some(_) => {
                // A new connection has room for a byte.
                let _ = socket.send_slice(&[state::ACCESS_DENIED]);
                peer.end(socket, now);
            }
        }
    }

    /// Goes on with the test, as its client says.
    fn steer(&mut self, peer: &mut Peer, socket: &mut Socket<'_>, now: u64) {
        let Some(test) = &mut self.test else { return peer.end(socket, now) };
        let mut piece = [0; 1024];
        while test.came.len() < 4 + MESSAGE_MAX {
            match socket.recv_slice(&mut piece) {
                Ok(len @ 1..) => {
                    test.came.extend(&piece[..len]);
                    test.moved = now;
                }
                _ => break,
            }
        }
        let before = test.phase;
        let wanted = test.advance(now);
        self.again |= test.phase != before;
        let sent = socket.send_slice(&test.to_go).unwrap_or(0);
        test.to_go.drain(..sent);
        if !wanted || !socket.may_recv() {
            self.test = None;
            peer.end(socket, now);
        }
    }

    /// Takes the datagrams that came, as long as there is room for answers.
    fn answer(&mut self, datagrams: &mut Datagrams, net: &mut Net, now: u64) {
        while datagrams.has_room(net) {
            let Some((datagram, from)) = datagrams.next(net) else { return };
            // Nobody is told anything but by whom a test is under way.
            let Some(test) = &mut self.test else { continue };
            let known = test.ends.iter().position(|end| *end == from);
            match (known, test.parameters) {
                (None, Some(_)) if datagram == HELLO && test.wants_stream(true) => {
                    test.ends.push(from);
                    test.join(now);
                }
                (Some(_), _) if datagram == HELLO => {}
                (Some(index), Some(parameters)) if test.phase == Phase::End && index < parameters.up => {
                    if test.flows[index].receive(datagram, parameters.wide, now) {
                        test.moved = now;
                    }
                    continue;
                }
                _ => continue,
            }
            datagrams.send_with(net, WELCOME.len(), from, |bytes| bytes.copy_from_slice(&WELCOME));
        }
    }

    /// Sends the datagrams that are due.
    fn send(&mut self, datagrams: &mut Datagrams, net: &mut Net) {
        let Some((test, parameters)) = self.sending() else { return };
        for index in parameters.up..parameters.streams() {
            let (flow, to) = (&mut test.flows[index], test.ends[index]);
            for _ in 0..BATCH {
                let now = time::now();
                if test.paces[index].at(flow.packets) > now || !datagrams.has_room(net) {
                    break;
                }
                let sent = datagrams.send_with(net, parameters.len, to, |bytes| {
                    flow.send(bytes, parameters.wide, now);
                });
                if !sent {
                    break;
                }
                test.moved = now;
            }
        }
    }

    /// When the next one is due, if there is room for it.
    fn next(&mut self, datagrams: &mut Datagrams, net: &mut Net) -> Option<u64> {
        let has_room = datagrams.has_room(net);
        let (test, parameters) = self.sending().filter(|_| has_room)?;
        let due = |index: usize| test.paces[index].at(test.flows[index].packets);
        (parameters.up..parameters.streams()).map(due).min()
    }

    /// The test, if its datagrams flow.
    fn sending(&mut self) -> Option<(&mut Test, Parameters)> {
        let test = self.test.as_mut().filter(|test| test.phase == Phase::End)?;
        let parameters = test.parameters.filter(|parameters| parameters.is_udp)?;
        Some((test, parameters))
    }
}

impl Test {
    fn new(cookie: Vec<u8>, longest: usize, now: u64) -> Self {
        Self {
            cookie,
            longest,
            phase: Phase::Parameters,
            parameters: None,
            flows: Vec::new(),
            ends: Vec::new(),
            paces: Vec::new(),
            came: Vec::new(),
            to_go: Vec::from([state::PARAM_EXCHANGE]),
            start: now,
            moved: now,
        }
    }

    /// Whether one more stream is to come.
    fn wants_stream(&self, is_udp: bool) -> bool {
        let of_kind = self.parameters.filter(|parameters| parameters.is_udp == is_udp);
        self.phase == Phase::Streams && of_kind.is_some_and(|all| self.flows.len() < all.streams())
    }

    /// One more stream is there.
    fn join(&mut self, now: u64) {
        self.flows.push(Flow::default());
        self.moved = now;
    }

    /// Understands what came, as far as it is all there; whether the test goes on.
    fn advance(&mut self, now: u64) -> bool {
        loop {
            let before = self.phase;
            match self.phase {
                Phase::Parameters => {
                    let parsed = message(&self.came).and_then(|message| {
                        message
                            .map(|(text, end)| Ok((Parameters::parse(text, self.longest)?, end)))
                            .transpose()
                    });
                    match parsed {
                        Ok(None) => {}
                        Ok(Some((parameters, end))) => {
                            self.came.drain(..end);
                            self.parameters = Some(parameters);
                            self.tell(Phase::Streams, &[state::CREATE_STREAMS]);
                        }
                        Err(refusal) => {
                            self.to_go.extend(refusal.message());
                            return false;
                        }
                    }
                }
                Phase::Streams => {
                    let rate =
                        self.parameters.filter(|all| all.streams() == self.flows.len()).map(|all| all.rate);
                    if let Some(rate) = rate {
                        self.start = now;
                        self.paces = self.flows.iter().map(|_| Pace::new(rate, now)).collect();
                        self.tell(Phase::End, &[state::TEST_START, state::TEST_RUNNING]);
                    }
                }
                Phase::End => match self.came.first() {
                    None => {}
                    Some(&state::TEST_END) => {
                        self.came.remove(0);
                        self.report(now);
                        self.tell(Phase::Results, &[state::EXCHANGE_RESULTS]);
                    }
                    Some(_) => return false,
                },
                Phase::Results => match message(&self.came) {
                    Ok(None) => {}
                    Ok(Some((text, end))) => {
                        let Some(ids) = ids(text, self.flows.len()) else { return false };
                        let results = results(&self.flows, &ids, self.moved.max(now) - self.start);
                        self.came.drain(..end);
                        self.to_go.extend(results);
                        self.tell(Phase::Goodbye, &[state::DISPLAY_RESULTS]);
                    }
                    Err(_) => return false,
                },
                // That it is done, or whatever it says.
                Phase::Goodbye => return self.came.is_empty(),
            }
            if self.phase == before {
                return true;
            }
        }
    }

    fn tell(&mut self, phase: Phase, states: &[u8]) {
        self.phase = phase;
        self.to_go.extend(states);
    }

    /// Moves bytes of a stream of TCP.
    fn stream(&mut self, index: usize, socket: &mut Socket<'_>, now: u64) {
        let Some(parameters) = self.parameters.filter(|_| self.phase == Phase::End) else { return };
        let piece = &ZEROS[..parameters.len.min(SIZE_MAX as usize)];
        loop {
            let moved = match index < parameters.up {
                true => socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0),
                false => socket.send_slice(piece).unwrap_or(0),
            };
            if moved == 0 {
                return;
            }
            self.flows[index].bytes += moved as u64;
            self.moved = now;
        }
    }

    /// Prints what came of it.
    fn report(&self, now: u64) {
        let up = self.parameters.map_or(0, |parameters| parameters.up);
        let sum = |flows: &[Flow]| flows.iter().map(|flow| flow.bytes).sum::<u64>();
        let (came, gone) = self.flows.split_at(up);
        println!(
            "netbench: iperf3: {} streams: {} bytes came, {} bytes went in {} ms",
            self.flows.len(),
            sum(came),
            sum(gone),
            (now - self.start) / 1_000_000
        );
    }
}
