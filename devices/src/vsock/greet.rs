//! Those who have connected to a VM's socket and not said where to: the first line, `CONNECT <port>\n`.
//!
//! Owns them, with their sockets and the places of these. The line is bounded in length and time; whoever is told to go
//! leaves its place to whoever told it to, and not to the pool. Nothing behind the line is taken from the socket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::str;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ringlet_io::unix::Stream;
use ringlet_io::{Descriptor, MonoTime, Timer};
use tokio::sync::oneshot;

use super::peer::{Caller, Placed};
use super::switch::Switch;
use crate::virtio::LocalBoxFuture;

/// How long somebody who connects may take to say where to.
const GREETING_TIME: Duration = Duration::from_secs(10);
/// How many are waited for at a time; for one more, the one that has waited longest goes.
pub(super) const GREETINGS: usize = 64;
/// How long nobody has to go: many that connect together, and speak then, are no silent ones. Who comes meanwhile waits in
/// the kernel's queue.
pub(super) const GRACE: Duration = Duration::from_millis(100);
/// Bytes of the longest first line, with its end.
const LINE: usize = 32;

/// What those take that are waited for, in bytes.
pub(super) const GREETINGS_BYTES: u64 = GREETINGS as u64 * 512;

/// Somebody who has said where to.
#[derive(Debug)]
pub(super) struct Greeted {
    port: u32,
    socket: Placed,
}

impl Greeted {
    /// Connects it, if connections may have one more place.
    pub(super) fn connect(self, switch: &Rc<Switch>) {
        let Placed { stream, descriptor } = self.socket;
        match descriptor.into_connection() {
            Ok(descriptor) => switch.connect(self.port, Placed { stream, descriptor }, Caller::Socket),
            Err(descriptor) => {
                // Counted before whoever it was hears of it.
                switch.refuse_without_descriptor(Caller::Socket);
                drop(Placed { stream, descriptor });
            }
        }
    }
}

/// What has become of one; or its place, if that is nothing.
pub(super) type Greeting = Result<Greeted, Descriptor>;

/// Those that have not said where to, in the order in which they came.
#[derive(Default)]
pub(super) struct Greetings {
    waiting: FuturesUnordered<LocalBoxFuture<(u64, Greeting)>>,
    /// When each came, and what is the last moment of its greeting when it is dropped.
    patience: BTreeMap<u64, (MonoTime, oneshot::Sender<Infallible>)>,
    last: u64,
}

impl Greetings {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn add(&mut self, timer: Timer, socket: Placed) {
        let (patience, over) = oneshot::channel();
        self.last += 1;
        let number = self.last;
        self.patience.insert(number, (MonoTime::now(), patience));
        let greeting = greet(timer, socket, (GREETING_TIME, over));
        self.waiting.push(Box::pin(async move { (number, greeting.await) }));
    }

    /// The next that is over; `None` if there are none. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Greeting> {
        let (number, greeted) = self.waiting.next().await?;
        self.patience.remove(&number);
        Some(greeted)
    }

    /// For how long nobody has to go yet.
    pub(super) fn grace(&self) -> Duration {
        let oldest = self.patience.first_key_value();
        oldest.map_or(Duration::ZERO, |(_, (came, _))| GRACE.saturating_sub(MonoTime::now().since(*came)))
    }

    /// Ends the one that has waited longest, of those that have not been told to end.
    pub(super) fn evict(&mut self) {
        self.patience.pop_first();
    }
}

/// Waits until somebody has said where to, or the time is `over`, or as long as there is; what has arrived by then counts.
async fn greet(
    timer: Timer,
    socket: Placed,
    (limit, over): (Duration, oneshot::Receiver<Infallible>),
) -> Greeting {
    let (stream, mut line) = (&socket.stream, Line::default());
    let port = tokio::select! {
        biased;
        port = wanted_port(stream, &mut line) => port,
        // Perhaps it is there, and nobody was told yet.
        _ = over => line.port_of(stream),
        () = timer.sleep(limit) => line.port_of(stream),
    };
    match port {
        Some(port) => Ok(Greeted { port, socket }),
        None => Err(socket.close()),
    }
}

async fn wanted_port(stream: &Stream, line: &mut Line) -> Option<u32> {
    // Who has spoken already is not to wait for the loop to hear of it.
    if line.take(stream, true).ok()? {
        return line.port();
    }
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

    /// The port, if what is there makes the line whole, also if nothing is known of it.
    fn port_of(&mut self, stream: &Stream) -> Option<u32> {
        self.take(stream, true).ok()?.then(|| self.port())?
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

#[cfg(test)]
#[path = "greet_test.rs"]
mod tests;
