//! The handle that a virtio device counts on.
//!
//! Owns: the numbers of one device, and which kinds of request each [`DeviceKind`] has, so that a device exposes
//! no series that can never move. Never: knows what a request does, reads a clock, or takes a lock.

use std::time::Duration;

use crate::counter::{Bounds, Counter, Counters, Gauge, Histogram, HistogramSnapshot};
use crate::escape::label_value;
use crate::families::MAX_LABEL_BYTES;
use crate::labels::{ConnectionResult, DeviceKind, DropReason, RequestKind, RequestStatus, ResetReason};

/// Bounds for one request of a device: 2 µs to 5 s, in steps of 1, 2, 5 up to 1 ms and coarser above.
pub static REQUEST_BOUNDS: Bounds = Bounds::new(&[
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    20_000_000,
    100_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
]);

/// Numbers of one device of a VM. Its series are exposed as long as this handle and its VM's are alive. Every
/// write is lock-free.
#[derive(Debug)]
pub struct DeviceMetrics {
    /// Requests taken from a queue and not completed yet.
    pub in_flight: Gauge,
    /// Notifications by the driver that reached a queue.
    pub notifications: Counter,
    /// Notifications for a queue that does not exist or is not ready.
    pub stray_notifications: Counter,
    /// Interrupts sent to the driver.
    pub interrupts: Counter,
    /// Interrupts that were due and that the driver had asked not to get.
    pub interrupts_suppressed: Counter,
    /// Requests whose data went through a buffer of the host, because alignment forced it. Exposed for block
    /// devices.
    pub bounce_copies: Counter,
    /// Bytes lost because their reader was too slow. Exposed for consoles.
    pub dropped_bytes: Counter,
    /// Packets that got no further, by reason. Exposed for network interfaces.
    pub dropped_packets: Counters<DropReason>,
    /// Connections that there are, those that are being made or ended included. Exposed for socket devices.
    pub connections: Gauge,
    /// What became of connections that were asked for. Exposed for socket devices.
    pub connection_results: Counters<ConnectionResult>,
    /// Connections that were broken off, and packets without one, by reason. Exposed for socket devices.
    pub connection_resets: Counters<ResetReason>,
    /// Queues stopped at the driver's request: by a reset of the queue or of the device.
    pub queue_resets: Counter,
    /// Queues that stopped for good because of what the driver wrote into them.
    pub broken_queues: Counter,
    kind: DeviceKind,
    id: Box<str>,
    /// In the order of `kind.requests()`.
    requests: Box<[Requests]>,
}

/// What is counted for one kind of request.
#[derive(Debug)]
struct Requests {
    kind: RequestKind,
    completed: Counters<RequestStatus>,
    bytes: Counter,
    latency: Histogram,
}

impl Requests {
    fn new(kind: RequestKind) -> Self {
        Self {
            kind,
            completed: Counters::new(),
            bytes: Counter::new(),
            latency: Histogram::new(&REQUEST_BOUNDS),
        }
    }
}

impl DeviceMetrics {
    pub(crate) fn new(id: &str, kind: DeviceKind) -> Self {
        Self {
            in_flight: Gauge::new(),
            notifications: Counter::new(),
            stray_notifications: Counter::new(),
            interrupts: Counter::new(),
            interrupts_suppressed: Counter::new(),
            bounce_copies: Counter::new(),
            dropped_bytes: Counter::new(),
            dropped_packets: Counters::new(),
            connections: Gauge::new(),
            connection_results: Counters::new(),
            connection_resets: Counters::new(),
            queue_resets: Counter::new(),
            broken_queues: Counter::new(),
            kind,
            id: label_value(id, MAX_LABEL_BYTES),
            requests: kind.requests().iter().copied().map(Requests::new).collect(),
        }
    }

    /// Counts one completed request: `bytes` of data moved, `time` since it was taken from its queue. What this
    /// kind of device has no series for is counted as [`RequestKind::Other`].
    pub fn completed(&self, kind: RequestKind, status: RequestStatus, bytes: u64, time: Duration) {
        if let Some(requests) = self.of(kind) {
            requests.completed.inc(status);
            requests.bytes.add(bytes);
            requests.latency.observe(time);
        }
    }

    /// The device's identifier as it appears in the label `device`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What sort of device it is.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Requests completed, of one kind and status.
    pub fn requests(&self, kind: RequestKind, status: RequestStatus) -> u64 {
        self.of(kind).map_or(0, |requests| requests.completed.get(status))
    }

    /// Bytes moved by requests of one kind.
    pub fn bytes(&self, kind: RequestKind) -> u64 {
        self.of(kind).map_or(0, |requests| requests.bytes.get())
    }

    /// Times from queue to completion of requests of one kind.
    pub fn latency(&self, kind: RequestKind) -> Option<HistogramSnapshot> {
        self.of(kind).map(|requests| requests.latency.snapshot())
    }

    /// Every kind of request that this device has a series for.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = RequestKind> {
        self.requests.iter().map(|requests| requests.kind)
    }

    /// The cells of `kind`, or those of the last kind, which is `Other`.
    fn of(&self, kind: RequestKind) -> Option<&Requests> {
        self.requests.iter().find(|requests| requests.kind == kind).or(self.requests.last())
    }
}

impl DeviceKind {
    /// The kinds of request that the device may see; [`RequestKind::Other`] is the last of each.
    pub const fn requests(self) -> &'static [RequestKind] {
        use RequestKind::{
            Control, Discard, Entropy, Flush, GetId, Other, Read, Receive, Transmit, Write, WriteZeroes,
        };
        match self {
            Self::Block => &[Read, Write, Flush, Discard, WriteZeroes, GetId, Other],
            Self::Entropy => &[Entropy, Other],
            Self::Console => &[Receive, Transmit, Other],
            Self::Net | Self::Vsock => &[Receive, Transmit, Control, Other],
        }
    }
}

impl RequestKind {
    /// Whether requests of this kind move data, so that their bytes are worth a series.
    pub(crate) const fn moves_data(self) -> bool {
        !matches!(self, Self::Flush | Self::GetId | Self::Control | Self::Other)
    }

    /// Whether a request of this kind may have to wait, so that its latency is worth a histogram.
    pub(crate) const fn takes_time(self) -> bool {
        !matches!(self, Self::GetId | Self::Other)
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;
