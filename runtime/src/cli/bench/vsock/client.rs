//! The side that measures: streams to a contender's ports, by a path or in this process. The same for all of them.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::super::traffic::{self, Measured};
use super::exit::{self, Exit};

/// Nobody takes longer to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the longest line that a server says.
const LINE: u64 = 128;

/// A stream to a contender; dropping it closes it.
pub(super) trait Wire: Read + Write {
    /// Nothing more is sent.
    fn finish(&mut self) -> io::Result<()>;
}

/// How streams come about.
pub(super) trait Reach {
    /// A stream to a port of the contender, as soon as that has taken it.
    fn connect(&self, port: u32) -> io::Result<Box<dyn Wire + '_>>;
}

/// What the ports of `vsock-echo bench` are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// It sends back what comes.
    Echo,
    /// It takes what comes, and says how much that was.
    Sink,
    /// It sends without end.
    Source,
    /// It says how long exits take.
    Exits,
}

impl Service {
    /// The guest's own port for echo, and those behind it.
    pub(super) const fn port(self) -> u32 {
        1024 + self as u32
    }
}

/// What a contender is measured at. Receiving and sending are the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scenario {
    /// A byte there and back, one after the other.
    Requests,
    /// A stream to the guest.
    StreamIn,
    /// A stream from the guest.
    StreamOut,
    /// Connections that are made, and closed by both sides, one after the other.
    Connections,
}

impl Scenario {
    pub(super) const ALL: [Self; 4] = [Self::Requests, Self::StreamIn, Self::StreamOut, Self::Connections];

    /// Part of the figures' identifiers.
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::StreamIn => "stream.rx",
            Self::StreamOut => "stream.tx",
            Self::Connections => "connections",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Requests => "A byte there and back",
            Self::StreamIn => "A stream to the guest",
            Self::StreamOut => "A stream from the guest",
            Self::Connections => "Connections, opened and closed",
        }
    }

    /// Keeps a contender busy for about `time`.
    ///
    /// # Errors
    /// It does not answer, or says what makes no sense.
    pub(super) fn run(self, to: &dyn Reach, time: Duration) -> io::Result<Measured> {
        match self {
            Self::Requests => traffic::requests(&mut *to.connect(Service::Echo.port())?, time),
            Self::StreamIn => stream_in(to, time),
            Self::StreamOut => traffic::receive(&mut *to.connect(Service::Source.port())?, time),
            Self::Connections => connections(to, time),
        }?
        .of_something()
    }
}

/// What an exit takes in a guest.
pub(super) fn exits(to: &dyn Reach) -> io::Result<Exit> {
    let mut wire = to.connect(Service::Exits.port())?;
    let line = last_line(&mut *wire)?;
    exit::parse(&line).ok_or_else(|| io::Error::other(format!("the other side says {line:?}")))
}

fn stream_in(to: &dyn Reach, time: Duration) -> io::Result<Measured> {
    let mut wire = to.connect(Service::Sink.port())?;
    let sent = traffic::send(&mut *wire, time)?;
    wire.finish()?;
    traffic::taken(&last_line(&mut *wire)?, sent)
}

fn connections(to: &dyn Reach, time: Duration) -> io::Result<Measured> {
    let (begun, mut count) = (Instant::now(), 0_u64);
    while count == 0 || begun.elapsed() < time {
        let mut wire = to.connect(Service::Echo.port())?;
        wire.finish()?;
        if wire.read(&mut [0])? > 0 {
            return Err(io::Error::other("it sends what nobody has sent"));
        }
        count += 1;
    }
    Ok(Measured { amount: count as f64, time: begun.elapsed(), latencies: Vec::new() })
}

/// All that comes until the end.
fn last_line(wire: &mut dyn Wire) -> io::Result<String> {
    let mut line = String::new();
    wire.take(LINE).read_to_string(&mut line)?;
    Ok(line)
}

#[cfg(test)]
#[path = "client_test.rs"]
mod tests;
