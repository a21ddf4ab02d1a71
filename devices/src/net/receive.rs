//! Packets on their way to the guest.
//!
//! Owns the buffers that were peeked and not used yet: with mergeable buffers (virtio 1.2, section 5.1.6.3.1) a packet
//! takes as many as it needs, which shows only when it is there. So as much room as the longest packet needs is
//! peeked ahead, each chain copied once; then one packet is read straight into guest memory, and the chains that it
//! took are given back together. Never reads a packet that it has no buffer for: without buffers, the host is not asked.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use ringlet_io::net::{HEADER, MAX_PACKET, MIN_FRAME, NetPort, Received};
use ringlet_io::{CostKind, DoorbellListener, GuestRange, Lease, LeaseUse, MonoTime};
use ringlet_metrics::{DropReason, RequestKind};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_MRG_RXBUF,
};

use super::host::Host;
use crate::virtio::spec::MAX_QUEUE_SIZE;
use crate::virtio::{Chain, Ordered, QueueError};

/// Bytes of a VLAN tag, which is not part of an MTU.
const VLAN_TAG: u64 = 4;
/// Offset of num_buffers in the header.
const NUM_BUFFERS: u64 = 10;
/// Ranges from which on no further chain is peeked ahead: with them, no buffer needs more than 512 bytes for the longest
/// packet.
const MAX_RANGES: usize = 128;
/// How long a driver is waited for that has less room than before, until a packet is read for which there may not be
/// enough: so many looks at its ring, ...
const LOOKS: u32 = 5;
/// ... or so many, about a second, if it has had room for the longest packet: such a driver gives its buffers back,
/// when it gets a CPU, and a packet that is dropped meanwhile costs it more than one that waits.
const PATIENT_LOOKS: u32 = 200;
/// The first look is after this, and each after twice as long as the one before: mostly it is just giving buffers back.
const FIRST_LOOK: Duration = Duration::from_micros(25);
/// Looks are no further apart than this.
const LAST_LOOK: Duration = Duration::from_millis(5);

/// Bytes that the chains take that were peeked ahead, with the list of their ranges: lists may be half empty. Those of short
/// chains lie in them.
pub(super) const AHEAD_BYTES: usize = {
    let ranges = MAX_RANGES + MAX_QUEUE_SIZE as usize;
    4 * size_of::<GuestRange>() * ranges + 2 * size_of::<Chain>() * MAX_RANGES
};

/// The task of one receive queue.
pub(super) struct Receiver {
    queue: Rc<Ordered>,
    doorbell: DoorbellListener,
    host: Rc<Host>,
    pair: u16,
    port: Rc<dyn NetPort>,
    /// A packet may take several chains.
    merges: bool,
    /// The header that the host wrote is the driver's to read; else it must be empty.
    keeps_header: bool,
    /// Bytes of the longest packet that is expected.
    longest: u64,
    /// Bytes of room that are waited for: those of the longest packet, or what the driver has.
    enough: u64,
    /// The driver had room for the longest packet, and has not kept us waiting for too long since.
    is_generous: bool,
    /// Chains that were peeked, in their order.
    ahead: VecDeque<Chain>,
    /// Bytes of them that can be written, up to the first that is not for receiving.
    room: u64,
    /// Their memory, once it is lent; or that of the first only.
    lease: Option<Lease>,
    ranges: Vec<GuestRange>,
}

impl Receiver {
    pub(super) fn new(
        queue: Rc<Ordered>,
        doorbell: DoorbellListener,
        host: Rc<Host>,
        pair: u16,
        port: Rc<dyn NetPort>,
    ) -> Self {
        let longest = longest(&host);
        Self {
            merges: host.has(VIRTIO_NET_F_MRG_RXBUF),
            keeps_header: host.has(VIRTIO_NET_F_GUEST_CSUM),
            queue,
            doorbell,
            host,
            pair,
            port,
            longest,
            enough: longest,
            is_generous: false,
            ahead: VecDeque::new(),
            room: 0,
            lease: None,
            ranges: Vec::new(),
        }
    }

    /// Serves the queue; ends only if it breaks.
    pub(super) async fn run(mut self) -> QueueError {
        if let Err(error) = self.queue.quiet() {
            return error;
        }
        loop {
            if let Err(error) = self.receive_one().await {
                return error;
            }
        }
    }

    /// Reads the next packet, once there are buffers for it. At every await nothing is taken of the host, nor of the
    /// queue.
    async fn receive_one(&mut self) -> Result<(), QueueError> {
        if !self.host.is_open(self.pair) {
            self.queue.wait_for(&mut self.doorbell, self.host.opened(self.pair)).await?;
        }
        self.gather().await?;
        if self.refuse_unfit()? {
            return Ok(());
        }
        let lease = self.lend()?;
        let (host, pair, port) = (&self.host, self.pair, &self.port);
        let receive = || {
            let begun = MonoTime::now();
            // It may have waited, and meanwhile the link may have gone.
            let received = if host.is_open(pair) { port.receive(&lease) } else { Ok(None) };
            let bytes = match received {
                Ok(Some(Received::Packet(len))) => Some(len.saturating_sub(HEADER) as u64),
                Ok(Some(Received::TooLong | Received::TooShort)) => Some(0),
                Ok(None) | Err(_) => None,
            };
            ((received, begun), bytes)
        };
        let (received, begun) = self.queue.admit_and(&mut self.doorbell, CostKind::Read, receive).await?;
        match received {
            Ok(Some(Received::Packet(len))) => {
                self.lease = Some(lease);
                return self.deliver(len as u64, begun);
            }
            Ok(Some(Received::TooLong)) => self.queue.metrics.dropped_packets.inc(DropReason::TooLong),
            Ok(Some(Received::TooShort)) => self.queue.metrics.dropped_packets.inc(DropReason::BadLength),
            Ok(None) => {
                self.lease = Some(lease);
                let ready = self.queue.wait_for(&mut self.doorbell, self.port.readable()).await?;
                return ready.map_err(|error| QueueError::Ring(error.to_string()));
            }
            // Nothing was taken: the driver has cut its buffer into more pieces than the kernel takes.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                let Some(chain) = self.pop() else { return Ok(()) };
                return self.queue.refuse(&chain, "too many pieces");
            }
            Err(error) => self.host.fail(&error),
        }
        self.lease = Some(lease);
        Ok(())
    }

    /// Waits for buffers: for the first as long as it takes, for as many as the longest packet may need only if the
    /// driver seems to have them.
    async fn gather(&mut self) -> Result<(), QueueError> {
        let first = if self.ahead.is_empty() {
            Some(self.queue.offered(&mut self.doorbell).await?)
        } else {
            self.queue.spend().await;
            None
        };
        self.look_ahead(first)?;
        let (mut looks, most) = (0, if self.is_generous { PATIENT_LOOKS } else { LOOKS });
        while self.is_short() && looks < most {
            let pause = FIRST_LOOK.saturating_mul(1 << looks.min(16)).min(LAST_LOOK);
            self.queue.wait_for(&mut self.doorbell, self.host.timer.sleep(pause)).await?;
            let before = self.room;
            self.look_ahead(None)?;
            looks = if self.room > before { 0 } else { looks + 1 };
        }
        if looks == most || self.room > self.enough {
            self.enough = self.room.min(self.longest);
        }
        self.is_generous = self.room >= self.longest || self.is_generous && looks < most;
        Ok(())
    }

    /// Peeks at what there is, behind a chain that was peeked already, up to the room of the longest packet. What came is
    /// added to the lease at once: chain by chain, that would take as long as all the rest.
    fn look_ahead(&mut self, first: Option<Chain>) -> Result<(), QueueError> {
        let (room, known) = (self.room, self.ranges.len());
        first.into_iter().for_each(|chain| self.push(chain));
        while self.wants_more() {
            let Some(chain) = self.queue.offered_beyond(self.ahead.len())? else { break };
            self.push(chain);
        }
        if self.room > room {
            let added = self.ranges.get(known..).unwrap_or_default();
            let lease = self.lease.take().filter(|lease| self.merges && lease.len() == room);
            self.lease = lease.and_then(|lease| lease.and(added).ok());
        }
        Ok(())
    }

    fn wants_more(&self) -> bool {
        let is_fit = self.ahead.back().is_none_or(|chain| chain.readable_len() == 0);
        self.merges && is_fit && self.room < self.longest && self.ranges.len() < MAX_RANGES
    }

    /// Whether it is worth to wait for more.
    fn is_short(&self) -> bool {
        self.wants_more() && self.room < self.enough
    }

    fn push(&mut self, chain: Chain) {
        if chain.readable_len() == 0 {
            self.room += chain.writable_len();
            self.ranges.extend_from_slice(chain.writable_ranges());
        }
        self.ahead.push_back(chain);
    }

    /// Takes the first chain off the list.
    fn pop(&mut self) -> Option<Chain> {
        let chain = self.ahead.pop_front()?;
        let (room, ranges) = target(&chain);
        self.shrink(room, ranges);
        Some(chain)
    }

    /// Takes so many chains off the list.
    fn pop_all(&mut self, count: usize) {
        let gone = self.ahead.drain(..count.min(self.ahead.len()));
        let (room, ranges) = gone.fold((0, 0), |(room, ranges), chain| {
            let (its_room, its_ranges) = target(&chain);
            (room + its_room, ranges + its_ranges)
        });
        self.shrink(room, ranges);
    }

    /// Forgets the room of chains that came first. The lease follows, if it is of all chains on the list: to lend so much
    /// anew for each packet would take longer than to receive it.
    fn shrink(&mut self, room: u64, ranges: usize) {
        let lease = self.lease.take().filter(|lease| self.merges && lease.len() == self.room);
        self.lease = lease.map(|lease| lease.without(room));
        self.room -= room;
        self.ranges.drain(..ranges);
    }

    /// Gives the first chain back if no packet can begin in it.
    fn refuse_unfit(&mut self) -> Result<bool, QueueError> {
        let Some(first) = self.ahead.front() else { return Ok(true) };
        let wrong = if first.readable_len() > 0 {
            "a part for the device to read"
        } else if first.writable_len() < (HEADER + MIN_FRAME) as u64 && !self.merges
            || first.writable_len() < HEADER as u64
        {
            "no room for a packet's header"
        } else {
            return Ok(false);
        };
        if let Some(chain) = self.pop() {
            self.queue.refuse(&chain, wrong)?;
        }
        Ok(true)
    }

    /// The memory for a packet. It was lent before, if the last attempt found none.
    fn lend(&mut self) -> Result<Lease, QueueError> {
        if let Some(lease) = self.lease.take() {
            return Ok(lease);
        }
        let first = self.ahead.front().map(Chain::writable_ranges).unwrap_or_default();
        let ranges = if self.merges { self.ranges.as_slice() } else { first };
        let ram = &self.queue.ram;
        // All may be too many pieces where those of one chain are not.
        let lease = ram.lease(ranges, LeaseUse::Target).or_else(|_| ram.lease(first, LeaseUse::Target));
        lease.map_err(|error| QueueError::Ring(error.to_string()))
    }

    /// Gives the guest a packet of `len` bytes, which lies in the chains that come first.
    fn deliver(&mut self, len: u64, begun: MonoTime) -> Result<(), QueueError> {
        let count = self.count(len);
        if let Some(first) = self.ahead.front() {
            // There are no more than the queue is long.
            let [low, high] = u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes();
            // Without checksums there is nothing to say in a header (section 5.1.6.4.1).
            let written = match self.keeps_header {
                true => first.copy_in(&self.queue.ram, NUM_BUFFERS, &[low, high]),
                false => first.copy_in(&self.queue.ram, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, low, high]),
            };
            written.map_err(|error| QueueError::Ring(error.to_string()))?;
        }
        let parts = self.ahead.iter().take(count).scan(len, |left, chain| {
            let part = chain.writable_len().min(*left);
            *left -= part;
            Some((chain, u32::try_from(part).unwrap_or(u32::MAX)))
        });
        self.queue.finish(parts)?;
        self.pop_all(count);
        let frame = len.saturating_sub(HEADER as u64);
        self.queue.served(RequestKind::Receive, frame, begun);
        Ok(())
    }

    /// How many chains `len` bytes take.
    fn count(&self, len: u64) -> usize {
        let mut left = len;
        let mut count = 0;
        for chain in &self.ahead {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(chain.writable_len());
            count += 1;
        }
        count
    }
}

/// How many bytes can be written to a chain, in how many ranges; none, if it is not for receiving.
fn target(chain: &Chain) -> (u64, usize) {
    if chain.readable_len() == 0 { (chain.writable_len(), chain.writable_ranges().len()) } else { (0, 0) }
}

/// Bytes of the longest packet that the host's side may have for a driver.
fn longest(host: &Host) -> u64 {
    let segments = [
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_UFO,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
    ];
    let whole = (HEADER + MIN_FRAME) as u64 + VLAN_TAG;
    match host.layout.mtu {
        Some(mtu) if !segments.iter().any(|feature| host.has(*feature)) => whole + u64::from(mtu),
        _ => MAX_PACKET as u64,
    }
}

#[cfg(test)]
#[path = "receive_test.rs"]
mod tests;
