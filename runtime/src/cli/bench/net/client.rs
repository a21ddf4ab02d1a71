//! The side that measures: sockets of this machine's kernel, in front of a contender's tap. The same for all of them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::wire::{HEADER, Header, Kind, PORT};

/// Nobody takes longer to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a datagram is sent that may be lost.
const AGAIN: Duration = Duration::from_millis(200);
/// Bytes of a write and a read.
const PIECE: usize = 256 << 10;
/// Bytes of a datagram's payload.
const SMALL: usize = 64;

/// Datagrams between two looks at the clock.
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

/// What was measured.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// Bytes, datagrams or requests.
    pub(super) amount: f64,
    pub(super) time: Duration,
    /// Of requests, in their order of size.
    pub(super) latencies: Vec<Duration>,
}

impl Measured {
    pub(super) fn rate(&self) -> f64 {
        self.amount / self.time.as_secs_f64()
    }

    /// Nearest rank; 0 of none.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.latencies.len() * percent).div_ceil(100).max(1);
        self.latencies.get(rank - 1).copied().unwrap_or_default()
    }
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
        let measured = match self {
            Self::StreamIn => stream_in(address, time),
            Self::StreamOut => stream_out(address, time),
            Self::PacketsIn => packets_in(address, time),
            Self::PacketsOut => packets_out(address, time),
            Self::Requests => requests(address, time),
        }?;
        let moved = measured.amount > 0.0 && !measured.time.is_zero();
        moved.then_some(measured).ok_or_else(|| io::Error::other("nothing came through"))
    }
}

/// A connection that begins with this line.
fn connect(address: Ipv4Addr, line: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&(address, PORT).into(), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(line)?;
    Ok(stream)
}

fn stream_in(address: Ipv4Addr, time: Duration) -> io::Result<Measured> {
    let mut stream = connect(address, b"sink\n")?;
    let (piece, begun) = (vec![0; PIECE], Instant::now());
    let mut sent = 0_u64;
    while sent == 0 || begun.elapsed() < time {
        stream.write_all(&piece)?;
        sent += piece.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let numbers = line.trim().split_once(' ');
    let numbers = numbers.and_then(|(bytes, nanos)| Some((bytes.parse::<u64>().ok()?, nanos.parse().ok()?)));
    match numbers {
        Some((bytes, nanos)) if bytes == sent => {
            Ok(Measured { amount: bytes as f64, time: Duration::from_nanos(nanos), latencies: Vec::new() })
        }
        _ => Err(io::Error::other(format!("of {sent} bytes, the other side says {line:?}"))),
    }
}

fn stream_out(address: Ipv4Addr, time: Duration) -> io::Result<Measured> {
    let mut stream = connect(address, b"source\n")?;
    let mut piece = vec![0; PIECE];
    // The first bytes start the clock.
    let _ = stream.read(&mut piece)?;
    let begun = Instant::now();
    let mut bytes = 0;
    while bytes == 0 || begun.elapsed() < time {
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => bytes += count,
        }
    }
    Ok(Measured { amount: bytes as f64, time: begun.elapsed(), latencies: Vec::new() })
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
    let mut datagram = [0; SMALL];
    let (begun, mut header) = (Instant::now(), Header::of(Kind::Data, flow));
    while header.number == 0 || begun.elapsed() < time {
        for _ in 0..BATCH {
            datagram.iter_mut().zip(header.encode()).for_each(|(place, byte)| *place = byte);
            socket.send(&datagram)?;
            header.number += 1;
        }
    }
    let report = query(&socket, flow)?;
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

fn requests(address: Ipv4Addr, time: Duration) -> io::Result<Measured> {
    let mut stream = connect(address, b"echo\n")?;
    let (begun, mut latencies) = (Instant::now(), Vec::new());
    let mut byte = [0];
    while latencies.is_empty() || begun.elapsed() < time {
        let asked = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        latencies.push(asked.elapsed());
    }
    let time = begun.elapsed();
    latencies.sort_unstable();
    Ok(Measured { amount: latencies.len() as f64, time, latencies })
}
