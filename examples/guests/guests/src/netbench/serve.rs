//! The side that serves: it does what the other side asks for, and measures what only it can know.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ringlet_guest::net::Net;
use ringlet_guest::net::stack::socket::tcp::Socket;
use ringlet_guest::net::stack::wire::IpEndpoint;
use ringlet_guest::{println, time};

use crate::datagrams::Datagrams;
use crate::options::SIZE_MAX;
use crate::pool::{Pool, Shape};
use crate::report::Outcome;
use crate::wire::{Command, HEADER, Header, Kind, LINE_MAX, Pace, Tally};
use crate::{Failure, PATIENCE};

const CONNECTIONS: usize = 16;
/// Bytes on their way to a connection: several times what the device takes in, so that the other side does not wait for this
/// one to look.
pub(crate) const RECEIVE: usize = 4 << 20;
/// Bytes on their way from it.
pub(crate) const SEND: usize = 1 << 20;
/// Most nanoseconds that datagrams are sent for.
const SEND_MAX: u64 = 3_600_000_000_000;
/// Datagrams between two looks at what comes in.
const BATCH: u64 = 64;

pub(crate) static ZEROS: [u8; SIZE_MAX as usize] = [0; SIZE_MAX as usize];

/// Serves until the device breaks.
pub(crate) fn run(net: &mut Net, port: u16) -> Result<Outcome, Failure> {
    let shape = Shape { port, connections: CONNECTIONS, receive: RECEIVE, send: SEND, handshake: PATIENCE };
    let mut pool = Pool::new(shape);
    pool.accept(net);
    let mut datagrams =
        Answering { datagrams: Datagrams::open(net, port)?, flow: Flow::default(), job: None };
    println!("netbench: ready on port {port}");
    loop {
        crate::take_in(net, |net| pool.accept(net))?;
        let now = time::now();
        let look_at = |session: &mut Option<Session>, socket: &mut Socket<'static>| {
            session.get_or_insert_with(|| Session::new(now)).advance(socket, now)
        };
        pool.serve(net, now, look_at);
        if use_pairs(net, &mut pool)? {
            pool.serve(net, now, look_at);
        }
        datagrams.answer(net);
        datagrams.work(net);
        net.send()?;
        pool.reclaim(net);
        pool.accept(net);
        let until = pool.deadline(|session| session.deadline).into_iter().chain(datagrams.next(net)).min();
        net.wait(until)?;
    }
}

/// Uses as many pairs of queues as clients have asked for; whether there is something to say about that.
fn use_pairs(net: &mut Net, pool: &mut Pool<Session>) -> Result<bool, Failure> {
    let mut asked = false;
    for session in pool.connections_mut() {
        let Job::Pairs(pairs) = session.job else { continue };
        let agreed = net.use_pairs(pairs)?;
        let mut line = format!("{} {}", if agreed { "ok" } else { "no" }, net.pairs_in_use());
        net.pairs().for_each(|pair| line += &format!(" {}/{}", pair.rx_packets, pair.tx_packets));
        session.job = Job::Say(line + "\n");
        asked = true;
    }
    Ok(asked)
}

/// A connection.
struct Session {
    job: Job,
    /// It is torn down if nothing moves until then.
    deadline: u64,
}

enum Job {
    /// The line is to come.
    Line(Vec<u8>),
    Sink {
        bytes: u64,
        /// When the first byte came.
        start: Option<u64>,
        end: u64,
    },
    Source,
    Echo,
    /// So many pairs of queues are wanted.
    Pairs(u16),
    /// This is the answer.
    Say(String),
    /// All was said.
    Ended,
}

/// What a look at a connection has led to.
enum Step {
    /// Bytes moved.
    Moved,
    /// They cannot for now.
    Blocked,
    Next(Job),
    /// The client says what makes no sense.
    Nonsense,
}

impl Session {
    fn new(now: u64) -> Self {
        Self { job: Job::Line(Vec::new()), deadline: now.saturating_add(PATIENCE) }
    }

    /// Does what can be done now; whether the connection is still wanted.
    fn advance(&mut self, socket: &mut Socket<'_>, now: u64) -> bool {
        loop {
            let step = match &mut self.job {
                Job::Line(line) => read_line(line, socket),
                Job::Sink { bytes, start, end } => sink(bytes, start, end, socket, now),
                Job::Source => source(socket),
                Job::Echo => echo(socket),
                Job::Pairs(_) => Step::Blocked,
                Job::Say(line) => say(line, socket),
                Job::Ended => drain(socket),
            };
            match step {
                Step::Moved => {}
                Step::Blocked => return now < self.deadline,
                Step::Next(job) => self.job = job,
                Step::Nonsense => return false,
            }
            self.deadline = now.saturating_add(PATIENCE);
        }
    }
}

fn read_line(line: &mut Vec<u8>, socket: &mut Socket<'_>) -> Step {
    let mut byte = [0];
    while socket.recv_slice(&mut byte) == Ok(1) {
        if byte == *b"\n" {
            return match Command::parse(line) {
                Some(Command::Sink) => Step::Next(Job::Sink { bytes: 0, start: None, end: 0 }),
                Some(Command::Source) => Step::Next(Job::Source),
                Some(Command::Echo) => Step::Next(Job::Echo),
                Some(Command::Pairs(pairs)) => Step::Next(Job::Pairs(pairs)),
                None => Step::Nonsense,
            };
        }
        line.extend(byte);
        if line.len() == LINE_MAX {
            return Step::Nonsense;
        }
    }
    if socket.may_recv() { Step::Blocked } else { Step::Nonsense }
}

fn sink(bytes: &mut u64, start: &mut Option<u64>, end: &mut u64, socket: &mut Socket<'_>, now: u64) -> Step {
    let taken = socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0);
    if taken > 0 {
        start.get_or_insert(now);
        (*bytes, *end) = (*bytes + taken as u64, now);
        return Step::Moved;
    }
    if socket.may_recv() {
        return Step::Blocked;
    }
    say(&format!("{bytes} {}\n", *end - start.unwrap_or(*end)), socket)
}

/// Says the last thing that there is to say.
fn say(line: &str, socket: &mut Socket<'_>) -> Step {
    // A connection that was only read from has room for a line.
    let _ = socket.send_slice(line.as_bytes());
    close(socket)
}

fn source(socket: &mut Socket<'_>) -> Step {
    if !socket.may_recv() {
        return close(socket);
    }
    match (drain(socket), socket.send_slice(&ZEROS)) {
        (Step::Blocked, Ok(0) | Err(_)) => Step::Blocked,
        _ => Step::Moved,
    }
}

fn echo(socket: &mut Socket<'_>) -> Step {
    let mut piece = [0; 4096];
    // Only what lies in one piece can be taken in one.
    let there = socket.peek(piece.len()).unwrap_or_default();
    let read = there.len();
    piece[..read].copy_from_slice(there);
    if read == 0 {
        return if socket.may_recv() { Step::Blocked } else { close(socket) };
    }
    let written = socket.send_slice(&piece[..read]).unwrap_or(0);
    let _ = socket.recv(|_| (written, ()));
    if written > 0 { Step::Moved } else { Step::Blocked }
}

fn close(socket: &mut Socket<'_>) -> Step {
    socket.set_ack_delay(None);
    socket.close();
    Step::Next(Job::Ended)
}

/// Throws away what comes.
fn drain(socket: &mut Socket<'_>) -> Step {
    let taken = socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0);
    if taken > 0 { Step::Moved } else { Step::Blocked }
}

/// What came of the last flow.
#[derive(Default)]
struct Flow {
    id: u64,
    tally: Tally,
}

/// Datagrams that somebody has asked for.
struct Sending {
    flow: u64,
    to: IpEndpoint,
    size: usize,
    end: u64,
    pace: Pace,
    sent: u64,
}

/// The socket of UDP: one measurement at a time, the last that began.
struct Answering {
    datagrams: Datagrams,
    flow: Flow,
    job: Option<Sending>,
}

impl Answering {
    /// Takes what came in, as long as there is room for answers.
    fn answer(&mut self, net: &mut Net) {
        let now = time::now();
        while self.datagrams.has_room(net) {
            let Some((header, len, from)) = self.datagrams.receive(net) else { return };
            match header.kind {
                Kind::Data => self.count(header, len, now),
                Kind::Echo => {
                    self.datagrams.send(net, Header { kind: Kind::Reply, ..header }, len, from);
                }
                Kind::Send => self.begin(header, from, now, net.mtu()),
                Kind::Query => {
                    let report = self.report(header.flow);
                    self.datagrams.send(net, report, HEADER, from);
                }
                Kind::Reply | Kind::Report => {}
            }
        }
    }

    fn count(&mut self, header: Header, len: usize, now: u64) {
        if self.flow.id != header.flow {
            self.flow = Flow { id: header.flow, tally: Tally::default() };
        }
        self.flow.tally.add(header.number, len, now);
    }

    fn begin(&mut self, header: Header, to: IpEndpoint, now: u64, mtu: u16) {
        let sizes = HEADER as u64..=u64::from(mtu).saturating_sub(crate::options::HEADERS);
        // Asked again for what it does already.
        let known = self.job.as_ref().is_some_and(|job| job.flow == header.flow);
        if known || !sizes.contains(&header.first) {
            return;
        }
        let end = now.saturating_add(header.second.min(SEND_MAX));
        let pace = Pace::new(header.number, now);
        self.job = Some(Sending { flow: header.flow, to, size: header.first as usize, end, pace, sent: 0 });
    }

    fn report(&self, flow: u64) -> Header {
        let mut report = Header::of(Kind::Report, flow, 0);
        match &self.job {
            Some(job) if job.flow == flow => report.number = job.sent,
            _ if self.flow.id == flow => {
                let tally = &self.flow.tally;
                (report.number, report.first, report.second) =
                    (tally.packets, tally.late, tally.nanoseconds());
            }
            _ => {}
        }
        report
    }

    /// Sends what is due.
    fn work(&mut self, net: &mut Net) {
        let Some(job) = &mut self.job else { return };
        for _ in 0..BATCH {
            let now = time::now();
            let header = Header::of(Kind::Data, job.flow, job.sent);
            let is_due = now < job.end && job.pace.at(job.sent) <= now && self.datagrams.has_room(net);
            if !is_due || !self.datagrams.send(net, header, job.size, job.to) {
                return;
            }
            job.sent += 1;
        }
    }

    /// When the next one is due, if there is room for it.
    fn next(&mut self, net: &mut Net) -> Option<u64> {
        let has_room = self.datagrams.has_room(net);
        let job = self.job.as_ref().filter(|_| has_room)?;
        Some(job.pace.at(job.sent)).filter(|&at| at < job.end && time::now() < job.end)
    }
}
