//! What iperf3 says, as its sources have it (`src/iperf_api.c`, `src/iperf_udp.c`; versions 3.1 and later). A connection
//! begins with a cookie; all with the same cookie are one test. The first of them carries its course: states of one byte,
//! and JSON behind its length.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::Value;

/// iperf3's port.
pub(crate) const PORT: u16 = 5201;
/// Bytes of a cookie: letters, digits, and a zero.
pub(crate) const COOKIE: usize = 37;
/// Most bytes of a message: what a client says of itself and of at most 32 streams.
pub(crate) const MESSAGE_MAX: usize = 64 << 10;
/// Most streams in one direction.
pub(crate) const STREAMS_MAX: u64 = 16;
/// Bytes of the header of a datagram, with a counter of 64 bits.
pub(crate) const HEADER: usize = 16;

/// The first datagram of a stream, and the answer to it.
pub(crate) const HELLO: [u8; 4] = *b"9876";
pub(crate) const WELCOME: [u8; 4] = *b"6789";

/// States, as the byte that tells of them.
pub(crate) mod state {
    pub(crate) const TEST_START: u8 = 1;
    pub(crate) const TEST_RUNNING: u8 = 2;
    pub(crate) const TEST_END: u8 = 4;
    pub(crate) const PARAM_EXCHANGE: u8 = 9;
    pub(crate) const CREATE_STREAMS: u8 = 10;
    pub(crate) const EXCHANGE_RESULTS: u8 = 13;
    pub(crate) const DISPLAY_RESULTS: u8 = 14;
    /// -1: another test runs.
    pub(crate) const ACCESS_DENIED: u8 = 255;
    /// -2: two numbers of 32 bits say why.
    pub(crate) const SERVER_ERROR: u8 = 254;
}

/// Why a test is refused: the number that iperf3 has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many streams, or none.
    Streams = 6,
    /// Writes or datagrams of such a length cannot be.
    Length = 7,
    /// It makes no sense, or asks for what this server has not.
    Parameters = 110,
}

impl Refusal {
    /// What the client is told.
    pub(crate) fn message(self) -> Vec<u8> {
        let mut message = Vec::from([state::SERVER_ERROR]);
        message.extend((self as u32).to_be_bytes());
        message.extend([0; 4]);
        message
    }
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) is_udp: bool,
    /// Streams from the client.
    pub(crate) up: usize,
    /// Streams to the client, which it opens after the others.
    pub(crate) down: usize,
    /// Bytes of a write or datagram.
    pub(crate) len: usize,
    /// Datagrams a second of each stream to the client; 0: as many as go.
    pub(crate) rate: u64,
    /// Whether datagrams have a counter of 64 bits.
    pub(crate) wide: bool,
}

impl Parameters {
    /// Reads a message of a client whose datagrams have at most `longest` bytes.
    pub(crate) fn parse(message: &[u8], longest: usize) -> Result<Self, Refusal> {
        let value: Value = serde_json::from_slice(message).map_err(|_| Refusal::Parameters)?;
        let is = |key: &str| value[key].as_bool().unwrap_or(value[key].as_u64().is_some_and(|it| it != 0));
        let number = |key: &str| value[key].as_u64().unwrap_or(0);
        if is("sctp") || is("tcp") == is("udp") {
            return Err(Refusal::Parameters);
        }
        let streams = value["parallel"].as_u64().unwrap_or(1);
        if !(1..=STREAMS_MAX).contains(&streams) {
            return Err(Refusal::Streams);
        }
        let (is_udp, len) = (is("udp"), number("len"));
        let lens = if is_udp { HEADER as u64..=longest as u64 } else { 1..=u64::from(u32::MAX) };
        if !lens.contains(&len) {
            return Err(Refusal::Length);
        }
        let (up, down) = match (is("bidirectional"), is("reverse")) {
            (true, _) => (streams, streams),
            (false, true) => (0, streams),
            (false, false) => (streams, 0),
        };
        let rate = number("bandwidth").checked_div(8 * len).unwrap_or(0);
        let rate = if number("bandwidth") == 0 { 0 } else { rate.max(1) };
        let (up, down) = (up as usize, down as usize);
        Ok(Self { is_udp, up, down, len: len as usize, rate, wide: is("udp_counters_64bit") })
    }

    pub(crate) fn streams(&self) -> usize {
        self.up + self.down
    }
}

/// What came of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Flow {
    pub(crate) bytes: u64,
    /// Datagrams: the highest number that came, or how many were sent.
    pub(crate) packets: u64,
    /// Those that are missing among them.
    pub(crate) lost: u64,
    /// Seconds by which the time on the way varies (RFC 1889, 6.3.1).
    jitter: f64,
    transit: Option<f64>,
}

impl Flow {
    /// Counts a datagram that came at `now` (nanoseconds); whether it was one.
    pub(crate) fn receive(&mut self, datagram: &[u8], wide: bool, now: u64) -> bool {
        let word = |at: usize| {
            let bytes = datagram.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(|bytes| u64::from(u32::from_be_bytes(bytes)))
        };
        let (Some(seconds), Some(micros), Some(count)) = (word(0), word(4), word(8)) else { return false };
        let number = if wide { word(12).map(|low| count << 32 | low) } else { Some(count) };
        let Some(number) = number else { return false };
        self.bytes += datagram.len() as u64;
        if number > self.packets {
            self.lost = self.lost.saturating_add(number - self.packets - 1);
            self.packets = number;
        } else {
            // One that was thought lost.
            self.lost = self.lost.saturating_sub(1);
        }
        let transit = now as f64 / 1e9 - (seconds as f64 + micros as f64 / 1e6);
        if let Some(before) = self.transit.replace(transit) {
            self.jitter += ((transit - before).abs() - self.jitter) / 16.0;
        }
        true
    }

    /// Writes the header of the next datagram, sent at `now` (nanoseconds), and counts it.
    pub(crate) fn send(&mut self, datagram: &mut [u8], wide: bool, now: u64) {
        self.packets += 1;
        self.bytes += datagram.len() as u64;
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&((now / 1_000_000_000) as u32).to_be_bytes());
        header[4..8].copy_from_slice(&((now / 1000 % 1_000_000) as u32).to_be_bytes());
        if wide {
            header[8..].copy_from_slice(&self.packets.to_be_bytes());
        } else {
            header[8..12].copy_from_slice(&(self.packets as u32).to_be_bytes());
        }
        datagram.iter_mut().zip(header).for_each(|(to, byte)| *to = byte);
    }
}

/// A client's numbers of its streams, in the order in which it opened them, from what it says of the test.
pub(crate) fn ids(message: &[u8], streams: usize) -> Option<Vec<u64>> {
    let value: Value = serde_json::from_slice(message).ok()?;
    let ids: Option<Vec<u64>> =
        value["streams"].as_array()?.iter().map(|stream| stream["id"].as_u64()).collect();
    ids.filter(|ids| ids.len() == streams)
}

/// What this side says of the test, which took so many nanoseconds: a length and JSON.
pub(crate) fn results(flows: &[Flow], ids: &[u64], nanoseconds: u64) -> Vec<u8> {
    let seconds = nanoseconds as f64 / 1e9;
    let stream = |(flow, id): (&Flow, &u64)| {
        let Flow { bytes, packets, lost, jitter, .. } = flow;
        format!(
            "{{\"id\":{id},\"bytes\":{bytes},\"retransmits\":-1,\"jitter\":{jitter},\"errors\":{lost},\
             \"packets\":{packets},\"start_time\":0,\"end_time\":{seconds}}}"
        )
    };
    let streams: Vec<String> = flows.iter().zip(ids).map(stream).collect();
    let text = format!(
        "{{\"cpu_util_total\":0,\"cpu_util_user\":0,\"cpu_util_system\":0,\"sender_has_retransmits\":-1,\
         \"streams\":[{}]}}",
        streams.join(",")
    );
    let mut message = (text.len() as u32).to_be_bytes().to_vec();
    message.extend(text.as_bytes());
    message
}

/// The message at the start of `bytes`, if all of it is there: itself, and where it ends. An error if it is too long.
pub(crate) fn message(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Refusal> {
    let Some((len, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes(*len) as usize;
    if len > MESSAGE_MAX {
        return Err(Refusal::Parameters);
    }
    Ok(rest.get(..len).map(|message| (message, 4 + len)))
}
