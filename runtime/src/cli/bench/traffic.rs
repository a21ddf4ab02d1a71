//! Streams to a server that echoes, takes or sends without end: what a client does, and what is said of it.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::report::Unit;

/// Bytes of a write and a read.
pub(super) const PIECE: usize = 256 << 10;
pub(super) const GIB: f64 = (1_u64 << 30) as f64;

/// What was measured of one scenario.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// Bytes, datagrams, requests or connections.
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

    /// # Errors
    /// There was nothing to measure.
    pub(super) fn of_something(self) -> io::Result<Self> {
        let moved = self.amount > 0.0 && !self.time.is_zero();
        moved.then_some(self).ok_or_else(|| io::Error::other("nothing came through"))
    }
}

/// A byte there and back, one after the other, for about `time`.
pub(super) fn requests(wire: &mut (impl Read + Write + ?Sized), time: Duration) -> io::Result<Measured> {
    let (begun, mut latencies) = (Instant::now(), Vec::new());
    let mut byte = [0];
    while latencies.is_empty() || begun.elapsed() < time {
        let asked = Instant::now();
        wire.write_all(&byte)?;
        wire.read_exact(&mut byte)?;
        latencies.push(asked.elapsed());
    }
    let time = begun.elapsed();
    latencies.sort_unstable();
    Ok(Measured { amount: latencies.len() as f64, time, latencies })
}

/// Writes without end for about `time`; gives how many bytes.
pub(super) fn send(wire: &mut (impl Write + ?Sized), time: Duration) -> io::Result<u64> {
    let (piece, begun) = (vec![0; PIECE], Instant::now());
    let mut sent = 0_u64;
    // What comes at once takes no time: more than the other side reads at once.
    while sent <= PIECE as u64 || begun.elapsed() < time {
        wire.write_all(&piece)?;
        sent += piece.len() as u64;
    }
    Ok(sent)
}

/// What the one who took `sent` bytes says of them: how many there were, and for how many nanoseconds they came.
pub(super) fn taken(line: &str, sent: u64) -> io::Result<Measured> {
    let numbers = line.trim_end().split_once(' ');
    match numbers.and_then(|(bytes, nanos)| Some((bytes.parse::<u64>().ok()?, nanos.parse().ok()?))) {
        Some((bytes, nanos)) if bytes == sent => {
            Ok(Measured { amount: bytes as f64, time: Duration::from_nanos(nanos), latencies: Vec::new() })
        }
        _ => Err(io::Error::other(format!("of {sent} bytes, the other side says {line:?}"))),
    }
}

/// Reads from one who sends without end, for about `time`.
pub(super) fn receive(wire: &mut (impl Read + ?Sized), time: Duration) -> io::Result<Measured> {
    let mut piece = vec![0; PIECE];
    let mut read = || match wire.read(&mut piece)? {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        count => Ok(count),
    };
    // The first bytes start the clock.
    read()?;
    let (begun, mut bytes) = (Instant::now(), 0);
    while bytes == 0 || begun.elapsed() < time {
        bytes += read()?;
    }
    Ok(Measured { amount: bytes as f64, time: begun.elapsed(), latencies: Vec::new() })
}

/// What is said of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantity {
    Throughput,
    CpuOfGib,
    Rate,
    CpuOfEach,
    P50,
    P99,
}

impl Quantity {
    /// Part of the figures' identifiers.
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::CpuOfGib => "cpu_per_gib",
            Self::Rate => "rate",
            Self::CpuOfEach => "cpu",
            Self::P50 => "p50",
            Self::P99 => "p99",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::CpuOfGib => "CPU a GiB",
            Self::Rate => "a second",
            Self::CpuOfEach => "CPU each",
            Self::P50 => "latency, p50",
            Self::P99 => "latency, p99",
        }
    }

    pub(super) fn unit(self) -> Unit {
        match self {
            Self::Throughput => Unit::BytesPerSecond,
            Self::Rate => Unit::PerSecond,
            Self::CpuOfGib | Self::CpuOfEach | Self::P50 | Self::P99 => Unit::Seconds,
        }
    }

    /// Its value; `cpu` is the contender's CPU time meanwhile.
    pub(super) fn of(self, measured: &Measured, cpu: Duration) -> f64 {
        match self {
            Self::Throughput | Self::Rate => measured.rate(),
            Self::CpuOfGib => cpu.as_secs_f64() / (measured.amount / GIB),
            Self::CpuOfEach => cpu.as_secs_f64() / measured.amount,
            Self::P50 => measured.percentile(50).as_secs_f64(),
            Self::P99 => measured.percentile(99).as_secs_f64(),
        }
    }
}

#[cfg(test)]
#[path = "traffic_test.rs"]
mod tests;
