//! The host's ways in: a listening socket, at which each connection says where it wants to go, and this process; and
//! the guest's way out, to sockets by their paths.
//!
//! Owns what is under way before there is a connection. The first line is bounded in length and time, and so are those
//! that are waited for in number; nothing behind it is taken from the socket.

use std::io;
use std::rc::Rc;
use std::str;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ringlet_io::Timer;
use ringlet_io::unix::{Acceptor, Connector, Stream};
use tokio::sync::mpsc;

use super::connection::Caller;
use super::host::Connect;
use super::switch::Switch;

/// How long somebody who connects may take to say where to.
const GREETING_TIME: Duration = Duration::from_secs(10);
/// How many are waited for at a time; the next are accepted later.
const GREETINGS: usize = 64;
/// Bytes of the longest first line, with its end.
const LINE: usize = 32;
/// How long nobody is accepted if the host has no descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// What those take that are waited for, in bytes.
pub(super) const GREETINGS_BYTES: u64 = GREETINGS as u64 * 512;

/// Accepts connections, and connects each to where it wants to go.
pub(super) async fn accept(switch: Rc<Switch>, acceptor: Acceptor) {
    let budget = switch.budget();
    let mut greetings = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(greeting) = greetings.next(), if !greetings.is_empty() => {
                if let Some((stream, port)) = greeting {
                    budget.spend().await;
                    switch.connect(port, Ok(stream), Caller::Socket);
                }
            }
            accepted = acceptor.accept(), if greetings.len() < GREETINGS => match accepted.and_then(Stream::new) {
                Ok(stream) => {
                    budget.spend().await;
                    greetings.push(greet(switch.cx.timer().clone(), stream, GREETING_TIME));
                }
                Err(error) => {
                    switch.fail("connections to a guest cannot be accepted", &error);
                    switch.cx.timer().sleep(PAUSE).await;
                }
            },
        }
    }
}

/// Waits for the first line; `None`: there is none that makes sense, or not in time.
async fn greet(timer: Timer, stream: Stream, limit: Duration) -> Option<(Stream, u32)> {
    let port = tokio::select! {
        biased;
        port = wanted_port(&stream) => port,
        () = timer.sleep(limit) => None,
    };
    Some((stream, port?))
}

async fn wanted_port(stream: &Stream) -> Option<u32> {
    let mut line = [0; LINE];
    let mut len = 0;
    loop {
        std::future::poll_fn(|cx| stream.poll_readable(cx)).await.ok()?;
        match read_line(stream, &mut line, &mut len) {
            Ok(true) => return parse(line.get(..len)?),
            Ok(false) => {}
            Err(_) => return None,
        }
    }
}

/// Takes what is there of the first line, and nothing behind it; true if it is whole.
fn read_line(stream: &Stream, line: &mut [u8; LINE], len: &mut usize) -> io::Result<bool> {
    let room = line.get_mut(*len..).unwrap_or_default();
    if room.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some(there) = stream.receive_bytes(room, true)? else { return Ok(false) };
    let seen = room.get(..there).unwrap_or_default();
    let end = seen.iter().position(|byte| *byte == b'\n');
    let wanted = end.map_or(there, |end| end + 1);
    match stream.receive_bytes(room.get_mut(..wanted).unwrap_or_default(), false)? {
        None => Ok(false),
        Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(count) => {
            *len += count;
            Ok(end.is_some() && count == wanted)
        }
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
        switch.connect(port, Stream::new(stream), Caller::Process(answer));
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
