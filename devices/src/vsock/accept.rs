//! The host's ways in: a listening socket, at which each connection says where it wants to go, and this process; and
//! the guest's way out, to sockets by their paths.
//!
//! Owns what is under way before there is a connection. The first line is bounded in length and time, and so are those
//! that are waited for in number: whoever is silent makes room for whoever comes. Nothing behind the line is taken from the
//! socket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::str;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ringlet_io::unix::{Acceptor, Connector, Stream};
use ringlet_io::{Descriptor, MonoTime, Timer};
use ringlet_metrics::ConnectionResult;
use tokio::sync::{mpsc, oneshot};

use super::connection::Caller;
use super::host::Connect;
use super::switch::Switch;
use crate::virtio::LocalBoxFuture;

/// How long somebody who connects may take to say where to.
const GREETING_TIME: Duration = Duration::from_secs(10);
/// How many are waited for at a time; for one more, the one that has waited longest goes.
const GREETINGS: usize = 64;
/// How long nobody has to go: many that connect together, and speak then, are no silent ones. Who comes meanwhile waits in
/// the kernel's queue.
const GRACE: Duration = Duration::from_millis(100);
/// Bytes of the longest first line, with its end.
const LINE: usize = 32;
/// How long nobody is accepted if the host has no descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What those take that are waited for, in bytes.
pub(super) const GREETINGS_BYTES: u64 = GREETINGS as u64 * 512;

/// Accepts connections, and connects each to where it wants to go.
pub(super) async fn accept(switch: Rc<Switch>, acceptor: Acceptor) {
    let budget = switch.budget();
    let mut greetings = Greetings::default();
    loop {
        tokio::select! {
            biased;
            Some(greeted) = greetings.next() => {
                if let Some(greeted) = greeted {
                    budget.spend().await;
                    greeted.connect(&switch);
                }
            }
            accepted = acceptor.accept() => match accepted.and_then(Stream::new) {
                Ok(stream) => {
                    budget.spend().await;
                    if let Some(descriptor) = make_room(&switch, &mut greetings).await {
                        greetings.add(switch.cx.timer().clone(), stream, descriptor);
                    }
                }
                Err(error) => {
                    switch.fail("connections to a guest cannot be accepted", &error);
                    switch.cx.timer().sleep(PAUSE).await;
                }
            },
        }
    }
}

/// Makes room for one more that has not said where to, and gives the place of its descriptor: those that have waited longest
/// go, unless they have said so in the end. `None`: connections have all descriptors.
async fn make_room(switch: &Rc<Switch>, greetings: &mut Greetings) -> Option<Descriptor> {
    loop {
        if greetings.len() < GREETINGS
            && let Some(descriptor) = switch.descriptors.try_take()
        {
            return Some(descriptor);
        }
        let grace = greetings.grace();
        if grace.is_zero() && !greetings.evict() {
            switch.result(ConnectionResult::NoDescriptors);
            switch.out_of_descriptors();
            return None;
        }
        tokio::select! {
            biased;
            Some(greeted) = greetings.next() => {
                if let Some(greeted) = greeted {
                    greeted.connect(switch);
                }
            }
            () = switch.cx.timer().sleep(grace), if !grace.is_zero() => {}
            else => {}
        }
    }
}

/// Somebody who has said where to.
#[derive(Debug)]
struct Greeted {
    port: u32,
    stream: Stream,
    descriptor: Descriptor,
}

impl Greeted {
    fn connect(self, switch: &Rc<Switch>) {
        let Self { port, stream, descriptor } = self;
        switch.connect(port, Ok(stream), Some(descriptor), Caller::Socket);
    }
}

/// Those that have not said where to, in the order in which they came.
#[derive(Default)]
struct Greetings {
    waiting: FuturesUnordered<LocalBoxFuture<(u64, Option<Greeted>)>>,
    /// When each came, and what is the last moment of its greeting when it is dropped.
    patience: BTreeMap<u64, (MonoTime, oneshot::Sender<Infallible>)>,
    last: u64,
}

impl Greetings {
    fn len(&self) -> usize {
        self.waiting.len()
    }

    fn add(&mut self, timer: Timer, stream: Stream, descriptor: Descriptor) {
        let (patience, over) = oneshot::channel();
        self.last += 1;
        let number = self.last;
        self.patience.insert(number, (MonoTime::now(), patience));
        let greeting = greet(timer, stream, descriptor, (GREETING_TIME, over));
        self.waiting.push(Box::pin(async move { (number, greeting.await) }));
    }

    /// The next that is over: `Some(None)` if it came to nothing, `None` if there are none. Cancel-safe.
    async fn next(&mut self) -> Option<Option<Greeted>> {
        let (number, greeted) = self.waiting.next().await?;
        self.patience.remove(&number);
        Some(greeted)
    }

    /// For how long nobody has to go yet.
    fn grace(&self) -> Duration {
        let oldest = self.patience.first_key_value();
        oldest.map_or(Duration::ZERO, |(_, (came, _))| GRACE.saturating_sub(MonoTime::now().since(*came)))
    }

    /// Ends the one that has waited longest, of those that have not been told to end; false if nobody waits.
    fn evict(&mut self) -> bool {
        self.patience.pop_first().is_some() || !self.waiting.is_empty()
    }
}

/// Waits until somebody has said where to, or the time is `over`, or as long as there is; what has arrived by then counts.
async fn greet(
    timer: Timer,
    stream: Stream,
    descriptor: Descriptor,
    (limit, over): (Duration, oneshot::Receiver<Infallible>),
) -> Option<Greeted> {
    let mut line = Line::default();
    let port = tokio::select! {
        biased;
        port = wanted_port(&stream, &mut line) => Some(port),
        _ = over => None,
        () = timer.sleep(limit) => None,
    };
    let port = match port {
        Some(port) => port,
        // Perhaps it is there, and nobody was told yet.
        None if line.take(&stream, true).ok()? => line.port(),
        None => None,
    }?;
    Some(Greeted { port, stream, descriptor })
}

async fn wanted_port(stream: &Stream, line: &mut Line) -> Option<u32> {
    loop {
        std::future::poll_fn(|cx| stream.poll_readable(cx)).await.ok()?;
        if line.take(stream, false).ok()? {
            return line.port();
        }
    }
}

/// What has come of a first line.
#[derive(Debug, Default)]
struct Line {
    bytes: [u8; LINE],
    len: usize,
}

impl Line {
    /// Takes what is there of it, and nothing behind it; true if it is whole. `unasked`: also if nothing is known of it.
    fn take(&mut self, stream: &Stream, unasked: bool) -> io::Result<bool> {
        let receive = |bytes: &mut [u8], peek| match unasked {
            true => stream.receive_bytes_unasked(bytes, peek),
            false => stream.receive_bytes(bytes, peek),
        };
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(there) = receive(room, true)? else { return Ok(false) };
        let seen = room.get(..there).unwrap_or_default();
        let end = seen.iter().position(|byte| *byte == b'\n');
        let wanted = end.map_or(there, |end| end + 1);
        match receive(room.get_mut(..wanted).unwrap_or_default(), false)? {
            None => Ok(false),
            Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(count) => {
                self.len += count;
                Ok(end.is_some() && count == wanted)
            }
        }
    }

    fn port(&self) -> Option<u32> {
        parse(self.bytes.get(..self.len)?)
    }
}

/// The port of `CONNECT <port>`.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    if !verb.eq_ignore_ascii_case("connect") || words.next().is_some() {
        return None;
    }
    // No sign, which a number may have for `parse`.
    port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())?
}

/// Connects what this process hands in.
pub(super) async fn take_over(switch: Rc<Switch>, mut commands: mpsc::Receiver<Connect>) {
    let budget = switch.budget();
    while let Some(Connect { port, stream, answer }) = commands.recv().await {
        budget.spend().await;
        let descriptor = switch.descriptors.try_take();
        switch.connect(port, Stream::new(stream), descriptor, Caller::Process(answer));
    }
}

/// Connects to the sockets that the guest asks for, one after the other, so that one guest's are not in another's way.
pub(super) async fn connect_out(switch: Rc<Switch>) {
    let (budget, connector) = (switch.budget(), Connector::default());
    loop {
        budget.spend().await;
        match switch.next_wanted() {
            Some((id, path)) => {
                let socket = connector.connect(path).await;
                switch.connected(id, socket);
            }
            None => switch.wanted.notified().await,
        }
    }
}

#[cfg(test)]
#[path = "accept_test.rs"]
mod tests;
