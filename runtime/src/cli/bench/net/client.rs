//! The side that measures: sockets of this machine's kernel, in front of a contender's tap. The same for all of them.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::TcpCongestion, sockopt::UdpGsoSegment};

use super::super::traffic::{self, Measured};
use super::wire::{HEADER, Header, Kind, PORT};

/// Nobody takes longer to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a datagram is sent that may be lost.
const AGAIN: Duration = Duration::from_millis(200);
/// Bytes of a datagram's payload.
const SMALL: usize = 64;

/// Datagrams between two looks at the clock, and of one call: Linux takes no more (`UDP_MAX_SEGMENTS` of its older versions).
pub(super) const BATCH: usize = 64;

/// What a contender is measured at. Receiving and sending are the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scenario {
    /// A stream of TCP to the guest.
    StreamIn,
    /// A stream of TCP from the guest.
    StreamOut,
    /// Datagrams of 64 bytes to the guest, as many as it takes.
    PacketsIn,
    /// Datagrams of 64 bytes from the guest.
    PacketsOut,
    /// A byte there and back by TCP, one after the other.
    Requests,
}

impl Scenario {
    pub(super) const ALL: [Self; 5] =
        [Self::StreamIn, Self::StreamOut, Self::PacketsIn, Self::PacketsOut, Self::Requests];

    /// Part of the figures' identifiers.
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::StreamIn => "stream.rx",
            Self::StreamOut => "stream.tx",
            Self::PacketsIn => "packets.rx",
            Self::PacketsOut => "packets.tx",
            Self::Requests => "requests",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::StreamIn => "TCP, a stream to the guest",
            Self::StreamOut => "TCP, a stream from the guest",
            Self::PacketsIn => "UDP, 64 bytes, to the guest",
            Self::PacketsOut => "UDP, 64 bytes, from the guest",
            Self::Requests => "TCP, a byte there and back",
        }
    }

    /// Keeps the server at `address` busy for about `time`.
    ///
    /// # Errors
    /// It is not there, does not answer, or says what makes no sense.
    pub(super) fn run(self, address: Ipv4Addr, time: Duration) -> io::Result<Measured> {
        match self {
            Self::StreamIn => stream_in(address, time),
            Self::StreamOut => traffic::receive(&mut connect(address, b"source\n")?, time),
            Self::PacketsIn => packets_in(address, time),
            Self::PacketsOut => packets_out(address, time),
            Self::Requests => traffic::requests(&mut connect(address, b"echo\n")?, time),
        }?
        .of_something()
    }
}

/// A connection that begins with this line.
fn connect(address: Ipv4Addr, line: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&(address, PORT).into(), PATIENCE)?;
    set_up(&stream)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(line)?;
    Ok(stream)
}

/// Has a connection send what there is at once, as fast as it is taken: what paces itself by its own idea of the path, as BBR
/// does where that is the machine's default, would wait for its timers instead of the contender.
pub(super) fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // There is no Linux without it, and the bench's own network lets everybody use it.
    Ok(setsockopt(stream, TcpCongestion, &"reno".into())?)
}

fn stream_in(address: Ipv4Addr, time: Duration) -> io::Result<Measured> {
    let mut stream = connect(address, b"sink\n")?;
    let sent = traffic::send(&mut stream, time)?;
    stream.shutdown(Shutdown::Write)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    traffic::taken(&line, sent)
}

/// A socket of UDP to the server, and a number for this measurement.
fn datagrams(address: Ipv4Addr, patience: Duration) -> io::Result<(UdpSocket, u64)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((address, PORT))?;
    socket.set_read_timeout(Some(patience))?;
    let mut flow = [0; 8];
    rustix::rand::getrandom(&mut flow[..], rustix::rand::GetRandomFlags::empty())?;
    Ok((socket, u64::from_ne_bytes(flow).max(1)))
}

fn packets_in(address: Ipv4Addr, time: Duration) -> io::Result<Measured> {
    let (socket, flow) = datagrams(address, AGAIN)?;
    // One call for a batch: the kernel cuts it into datagrams, at the latest before they come to a tap whose user does not.
    setsockopt(&socket, UdpGsoSegment, &i32::try_from(SMALL).map_err(io::Error::other)?)?;
    let mut batch = [[0; SMALL]; BATCH];
    let (begun, mut header) = (Instant::now(), Header::of(Kind::Data, flow));
    while header.number == 0 || begun.elapsed() < time {
        for datagram in &mut batch {
            datagram.iter_mut().zip(header.encode()).for_each(|(place, byte)| *place = byte);
            header.number += 1;
        }
        socket.send(batch.as_flattened())?;
    }
    let report = query(&socket, flow)?;
    if report.number > header.number {
        return Err(io::Error::other("more datagrams are said to have come than were sent"));
    }
    let time = Duration::from_nanos(report.second);
    Ok(Measured { amount: report.number as f64, time, latencies: Vec::new() })
}

/// Asks what the server knows of a flow, until it answers.
fn query(socket: &UdpSocket, flow: u64) -> io::Result<Header> {
    let begun = Instant::now();
    let mut datagram = [0; HEADER];
    while begun.elapsed() < PATIENCE {
        socket.send(&Header::of(Kind::Query, flow).encode())?;
        if let Some(len) = receive(socket, &mut datagram)?
            && let Some(header) = datagram.get(..len).and_then(Header::parse)
            && (header.kind, header.flow) == (Kind::Report, flow)
        {
            return Ok(header);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// `None` if nothing comes in time.
fn receive(socket: &UdpSocket, datagram: &mut [u8]) -> io::Result<Option<usize>> {
    match socket.recv(datagram) {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
        result => result.map(Some),
    }
}

fn packets_out(address: Ipv4Addr, time: Duration) -> io::Result<Measured> {
    let (socket, flow) = datagrams(address, AGAIN)?;
    let mut wish = Header::of(Kind::Send, flow);
    (wish.first, wish.second) = (SMALL as u64, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let mut datagram = [0; SMALL];
    let asked = Instant::now();
    let (mut count, mut first, mut last) = (0_u64, None, asked);
    // It is over when nothing has come for a while.
    loop {
        if receive(&socket, &mut datagram)?.is_some() {
            last = Instant::now();
            if first.is_none() {
                first = Some(last);
            } else {
                count += 1;
            }
        } else if first.is_some() {
            break;
        } else if asked.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        } else {
            socket.send(&wish.encode())?;
        }
    }
    let time = last.saturating_duration_since(first.unwrap_or(last));
    Ok(Measured { amount: count as f64, time, latencies: Vec::new() })
}
