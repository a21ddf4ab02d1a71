//! What the two sides say to each other. Over TCP the client's first line says what is wanted; over UDP each datagram
//! has a header. Numbers are big-endian. Both are simple enough for a peer that is no guest.

use core::fmt;

/// The port of both.
pub(crate) const PORT: u16 = 5001;
/// Most bytes of a client's line, its end included.
pub(crate) const LINE_MAX: usize = 64;
/// Bytes of a datagram's header.
pub(crate) const HEADER: usize = 40;
/// Of the header, the first bytes.
const MAGIC: [u8; 4] = *b"rnb1";

/// What a client of TCP wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `sink`: take what comes; at its end say how much that was, and how long it took: `BYTES NANOSECONDS`.
    Sink,
    /// `source`: send zeros until the client goes away.
    Source,
    /// `echo`: send back what comes.
    Echo,
    /// `pairs N`: use so many pairs of queues from now on. `ok` or `no`, then how many are used, and of each pair how many
    /// packets have come in and gone out: `ok 2 12/10 7/9`.
    Pairs(u16),
}

impl Command {
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        Some(match str::from_utf8(line).ok()? {
            "sink" => Self::Sink,
            "source" => Self::Source,
            "echo" => Self::Echo,
            line => Self::Pairs(line.strip_prefix("pairs ")?.parse().ok()?),
        })
    }
}

/// The line, without its end.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sink => f.write_str("sink"),
            Self::Source => f.write_str("source"),
            Self::Echo => f.write_str("echo"),
            Self::Pairs(pairs) => write!(f, "pairs {pairs}"),
        }
    }
}

/// A server's answer to `sink`.
pub(crate) fn report(line: &[u8]) -> Option<(u64, u64)> {
    let (bytes, nanoseconds) = str::from_utf8(line).ok()?.split_once(' ')?;
    Some((bytes.parse().ok()?, nanoseconds.parse().ok()?))
}

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is counted. `number` counts the datagrams of a flow from 0.
    Data,
    /// It is sent back as a [`Reply`](Self::Reply).
    Echo,
    Reply,
    /// Asks for data: datagrams of `first` bytes, for `second` nanoseconds, `number` a second (0: as many as go).
    Send,
    /// Asks for a [`Report`](Self::Report).
    Query,
    /// Of a flow: `number` datagrams came or were sent, of which `first` came later than one with a higher number;
    /// `second` nanoseconds lie between the first and the last.
    Report,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Data, Self::Echo, Self::Reply, Self::Send, Self::Query, Self::Report];
}

/// The header of a datagram: magic, kind, three bytes of 0, then four numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    /// Tells one measurement from another.
    pub(crate) flow: u64,
    pub(crate) number: u64,
    pub(crate) first: u64,
    pub(crate) second: u64,
}

impl Header {
    pub(crate) fn of(kind: Kind, flow: u64, number: u64) -> Self {
        Self { kind, flow, number, first: 0, second: 0 }
    }

    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        let bytes = datagram.first_chunk::<HEADER>()?;
        let (start, numbers) = bytes.split_at(8);
        let kind = *Kind::ALL.get(usize::from(bytes[4])).filter(|_| start.starts_with(&MAGIC))?;
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|&number| u64::from_be_bytes(number));
        let mut next = || numbers.next();
        Some(Self { kind, flow: next()?, number: next()?, first: next()?, second: next()? })
    }

    pub(crate) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let kind = Kind::ALL.iter().position(|&kind| kind == self.kind).unwrap_or(0) as u8;
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = kind;
        let numbers = [self.flow, self.number, self.first, self.second];
        for (to, number) in bytes[8..].as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *to = number.to_be_bytes();
        }
        bytes
    }
}

/// What has come of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    /// Datagrams that came later than one with a higher number.
    pub(crate) late: u64,
    /// One more than the highest number.
    next: u64,
    start: u64,
    end: u64,
}

impl Tally {
    /// Counts a datagram that came at `now`.
    pub(crate) fn add(&mut self, number: u64, len: usize, now: u64) {
        if self.packets == 0 {
            self.start = now;
        }
        self.packets += 1;
        self.bytes += len as u64;
        self.end = now;
        if number < self.next {
            self.late += 1;
        } else {
            self.next = number.saturating_add(1);
        }
    }

    /// Between the first and the last.
    pub(crate) fn nanoseconds(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// When to send, for so many datagrams a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    start: u64,
    /// 0: as many as go.
    rate: u64,
}

impl Pace {
    pub(crate) fn new(rate: u64, now: u64) -> Self {
        Self { start: now, rate }
    }

    /// When datagram `number` may be sent.
    pub(crate) fn at(self, number: u64) -> u64 {
        let after = u128::from(number) * 1_000_000_000 / u128::from(self.rate.max(1));
        if self.rate == 0 {
            self.start
        } else {
            self.start.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
        }
    }
}
