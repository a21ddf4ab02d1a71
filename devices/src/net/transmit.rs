//! Packets on their way from the guest.
//!
//! Owns nothing: a packet stays in guest memory until the host takes it. Its header, and what a filter judges of the
//! frame, are copied once, checked, and sent from the copy. A packet with a flaw is dropped, counted and given back:
//! the driver made it, and the next may be better. Segments of a flow that wait in the ring, each copied, checked, filtered
//! and admitted as any other frame, go out as one packet (see [`coalesce`](super::coalesce)).

use std::rc::Rc;

use ringlet_io::net::{HEADER, MAX_HEAD, MAX_PACKET_PIECES, MIN_FRAME, NetPort, Sent};
use ringlet_io::{Cost, DoorbellListener, GuestRange, Lease, LeaseUse, MonoTime};
use ringlet_metrics::{DropReason, GuestErrorKind, RequestKind, RequestStatus, guest_error};

use super::coalesce::{JOINED, Segments, Versions};
use super::filter::{JUDGED, Spoof};
use super::header::{Header, HeaderError, Rules};
use super::host::Host;
use crate::virtio::{Chain, InFlight, Ordered, OutsideChain, QueueError};

const _: () = assert!(HEADER + JUDGED <= MAX_HEAD && JOINED <= JUDGED);

/// Most frames of a packet: an Ethernet's segments to a packet of full length are 44. A VM may begin no more in a turn.
const MAX_FRAMES: usize = 64;
/// Most pieces of segments in guest memory that are one packet.
const MAX_RANGES: usize = 128;
const _: () = assert!(2 * MAX_RANGES < MAX_PACKET_PIECES);

/// Bytes that the lists of a packet's segments take: theirs, the chains', and the kernel's. Lists may be half empty.
pub(super) const JOINED_BYTES: usize =
    2 * size_of::<Chain>() * MAX_FRAMES + 8 * size_of::<GuestRange>() * MAX_RANGES;

/// After so many packets in a row to which the next frame did not belong ...
const MISSES: u32 = 4;
/// ... only every so many-th is looked behind: to look takes as long as to send.
const REST: u32 = 16;

/// The task of one transmit queue.
pub(super) struct Transmitter {
    queue: Rc<Ordered>,
    doorbell: DoorbellListener,
    host: Rc<Host>,
    pair: u16,
    port: Rc<dyn NetPort>,
    /// Which segments the host's side takes as one packet.
    joins: Versions,
    /// How many packets in a row might have had more segments, and had not.
    misses: u32,
    /// The frames of the packet that is being sent: one, or segments that are one packet. Empty before there is one.
    chains: Vec<Chain>,
    /// What is sent of segments from guest memory.
    ranges: Vec<GuestRange>,
}

/// Why a packet is not sent.
#[derive(Debug, thiserror::Error)]
enum Flaw {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Spoof(#[from] Spoof),
    /// The chain ends before its length. A mistake of ours.
    #[error(transparent)]
    Chain(#[from] OutsideChain),
}

impl Flaw {
    fn reason(&self) -> DropReason {
        match self {
            Self::Header(HeaderError::FrameLength { .. }) => DropReason::BadLength,
            Self::Header(_) | Self::Chain(_) => DropReason::BadHeader,
            Self::Spoof(Spoof::Checksum { .. }) => DropReason::BadHeader,
            Self::Spoof(_) => DropReason::Spoofed,
        }
    }
}

/// The beginning of a packet, copied and judged.
#[derive(Clone)]
struct Head {
    /// Header and what was copied of the frame, of which `len` bytes count.
    bytes: [u8; HEADER + JUDGED],
    len: usize,
    /// The same header.
    header: Header,
}

impl Head {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// What was copied of the frame.
    fn beginning(&self) -> &[u8] {
        self.bytes.get(HEADER..self.len).unwrap_or_default()
    }
}

/// A packet that may be sent.
struct Packet {
    head: Head,
    /// The rest of the frame.
    rest: Lease,
}

impl Transmitter {
    pub(super) fn new(
        queue: Rc<Ordered>,
        doorbell: DoorbellListener,
        host: Rc<Host>,
        pair: u16,
        port: Rc<dyn NetPort>,
    ) -> Self {
        let joins = Versions::of(host.layout.offloads);
        let (chains, ranges) = (Vec::new(), Vec::new());
        Self { queue, doorbell, host, pair, port, joins, misses: 0, chains, ranges }
    }

    /// Serves the queue; ends only if it breaks.
    pub(super) async fn run(mut self) -> QueueError {
        loop {
            if let Err(error) = self.transmit_one().await {
                return error;
            }
        }
    }

    /// Sends the next packet. At every await it is still the driver's.
    async fn transmit_one(&mut self) -> Result<(), QueueError> {
        let chain = self.queue.offered(&mut self.doorbell).await?;
        let begun = MonoTime::now();
        if chain.writable_len() > 0 {
            return self.queue.refuse(&chain, "a part for the device to write");
        }
        let Some(frame) = frame_len(&chain) else {
            return self.queue.refuse(&chain, "no whole header");
        };
        let head = match self.examine(&chain, frame) {
            Ok(head) => head,
            Err(flaw) => return self.refuse(chain, &flaw, begun),
        };
        let Some(rest) = self.lend(&chain, head.len) else {
            return self.queue.refuse(&chain, "too many pieces");
        };
        if self.host.is_link_up() && !self.host.is_settled() {
            let settled = self.queue.wait_for(&mut self.doorbell, self.host.settle()).await?;
            settled.unwrap_or_else(|error| self.host.fail(&error));
        }
        if self.host.is_open(self.pair) {
            self.queue.admit(&mut self.doorbell, Cost::write(frame)).await?;
        }
        self.chains.push(chain);
        let alone = Packet { head, rest };
        let packet = self.join(&alone, frame).unwrap_or(alone);
        let dropped = self.send(&packet).await?;
        if dropped == Some(DropReason::Refused) && self.chains.len() > 1 && self.host.is_open(self.pair) {
            // It may take them one by one.
            self.joins = Versions::NONE;
        }
        self.finish(dropped, begun)
    }

    /// Copies the beginning of a packet, as far as it is judged, and judges it.
    fn examine(&self, chain: &Chain, frame: u64) -> Result<Head, Flaw> {
        let mut head = Head { bytes: [0; HEADER + JUDGED], len: HEADER, header: Header::default() };
        let filter = &self.host.filter;
        let Some((header, beginning)) = head.bytes.split_first_chunk_mut::<HEADER>() else { return Ok(head) };
        chain.copy_out(&self.queue.ram, 0, header)?;
        let valid = Header::parse(header).validate(Rules::new(self.host.features.get()), frame)?;
        *header = valid.bytes();
        if !filter.is_open() || self.joins.may_have(&valid) {
            let judged = usize::try_from(frame).map_or(JUDGED, |frame| frame.min(JUDGED));
            let beginning = beginning.get_mut(..judged).unwrap_or_default();
            chain.copy_out(&self.queue.ram, HEADER as u64, beginning)?;
            if !filter.is_open() {
                filter.judge(beginning)?;
                if valid.leaves_checksum() {
                    filter.judge_checksum(beginning, valid.csum_start, valid.csum_offset)?;
                }
            }
            head.len += judged;
        }
        head.header = valid;
        Ok(head)
    }

    /// Puts the segments that follow into one packet with the first, which is `frame` bytes long: those that wait, and are
    /// admitted at once. `None` if there are none. Where it ends, the next packet begins.
    fn join(&mut self, first: &Packet, frame: u64) -> Option<Packet> {
        let pieces = self.chains.first()?.readable_ranges().len();
        // Frames that the host would not pass on are not made parts of one that it would.
        let fits = self.host.layout.mtu.is_none_or(|mtu| frame <= MIN_FRAME as u64 + u64::from(mtu));
        if !self.host.is_open(self.pair) || pieces > MAX_RANGES || !fits {
            return None;
        }
        let len = usize::try_from(frame).ok()?;
        let mut segments = Segments::of(self.joins, &first.head.header, first.head.beginning(), len)?;
        if self.misses >= MISSES && !self.misses.is_multiple_of(REST) {
            self.misses += 1;
            return None;
        }
        self.ranges.clear();
        self.add_ranges(0, first.head.len);
        while !segments.is_ended() && self.chains.len() < MAX_FRAMES {
            let Some(chain) = self.queue.glimpse(self.chains.len()) else { break };
            let joined = self.follow(&segments, &first.head, &chain);
            let Some((joined, _)) = joined.filter(|(_, cost)| self.queue.try_admit(*cost)) else {
                self.misses = self.misses.saturating_add(1);
                break;
            };
            self.chains.push(chain);
            self.add_ranges(self.chains.len() - 1, HEADER + segments.headers());
            segments = joined;
        }
        if self.chains.len() == 1 {
            return None;
        }
        self.misses = 0;
        let packet = self.whole(first, &segments);
        if packet.is_none() {
            // A mistake of ours: those that follow are looked at, and charged, again.
            self.chains.truncate(1);
        }
        packet
    }

    /// The segments with a frame that may be sent and is the next of them, and what that one costs.
    fn follow(&self, segments: &Segments, first: &Head, chain: &Chain) -> Option<(Segments, Cost)> {
        let frame = frame_len(chain).filter(|_| chain.writable_len() == 0)?;
        let is_twice = self.chains.iter().any(|other| other.head() == chain.head());
        if is_twice || self.ranges.len() + chain.readable_ranges().len() > MAX_RANGES {
            return None;
        }
        let head = self.examine(chain, frame).ok()?;
        let len = usize::try_from(frame).ok()?;
        let joined = segments.and(first.beginning(), &head.header, head.beginning(), len)?;
        Some((joined, Cost::write(frame)))
    }

    /// Notes what is sent of a chain from guest memory: all from byte `from` on.
    fn add_ranges(&mut self, chain: usize, from: usize) {
        let from = from as u64;
        let Some(chain) = self.chains.get(chain) else { return };
        let len = chain.readable_len().saturating_sub(from);
        self.ranges.extend(chain.readable(from, len).unwrap_or_default());
    }

    /// The packet that all segments are, behind the headers of the first.
    fn whole(&self, first: &Packet, segments: &Segments) -> Option<Packet> {
        let rest = self.queue.ram.lease(&self.ranges, LeaseUse::Source).ok()?;
        let mut head = first.head.clone();
        let (header, beginning) = head.bytes.split_first_chunk_mut::<HEADER>()?;
        *header = segments.finish(beginning)?;
        Some(Packet { head, rest })
    }

    /// Lends the packet from byte `from` on to the host; `None` if it is in more pieces than the kernel takes.
    fn lend(&self, chain: &Chain, from: usize) -> Option<Lease> {
        let len = chain.readable_len().checked_sub(from as u64)?;
        let ranges = chain.readable(from as u64, len)?;
        self.queue.ram.lease(&ranges, LeaseUse::Source).ok()
    }

    /// Gives a packet to the host, as soon as it takes one; gives why not, if it is dropped. Cancel-safe.
    async fn send(&mut self, packet: &Packet) -> Result<Option<DropReason>, QueueError> {
        let head = packet.head.bytes();
        let mut waiting = None;
        loop {
            // Whatever was waited for, the link may have gone meanwhile.
            if !self.host.is_link_up() {
                return Ok(Some(DropReason::LinkDown));
            }
            if !self.host.is_open(self.pair) {
                return Ok(Some(DropReason::Refused));
            }
            match self.port.send(head, &packet.rest) {
                Ok(Sent::Taken) => return Ok(None),
                Ok(Sent::Refused) => return Ok(Some(DropReason::Refused)),
                Ok(Sent::Later) => {}
                Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                    return Ok(Some(DropReason::Refused));
                }
                Err(error) => self.host.fail(&error),
            }
            if self.host.is_link_up() {
                waiting.get_or_insert_with(|| InFlight::begin(&self.queue.metrics));
                let ready = self.queue.wait_for(&mut self.doorbell, self.port.writable()).await?;
                ready.map_err(|error| QueueError::Ring(error.to_string()))?;
            }
        }
    }

    /// Drops a packet that the driver should not have sent.
    fn refuse(&mut self, chain: Chain, flaw: &Flaw, begun: MonoTime) -> Result<(), QueueError> {
        let (log, metrics) = (&self.queue.log, &self.queue.metrics);
        guest_error!(log, GuestErrorKind::BadRequest, "{}: a packet is dropped: {flaw}", metrics.id());
        self.chains.push(chain);
        self.finish(Some(flaw.reason()), begun)
    }

    /// Gives all frames of a packet back, which were sent, or dropped for a reason.
    fn finish(&mut self, dropped: Option<DropReason>, begun: MonoTime) -> Result<(), QueueError> {
        let metrics = &self.queue.metrics;
        self.queue.finish(self.chains.iter().map(|chain| (chain, 0)))?;
        let time = MonoTime::now().since(begun);
        for chain in &self.chains {
            let (status, bytes) = match dropped {
                None => (RequestStatus::Ok, frame_len(chain).unwrap_or_default()),
                Some(_) => (RequestStatus::IoError, 0),
            };
            dropped.into_iter().for_each(|reason| metrics.dropped_packets.inc(reason));
            metrics.completed(RequestKind::Transmit, status, bytes, time);
        }
        self.chains.clear();
        Ok(())
    }
}

/// Bytes of a chain's frame; `None` if not even its header is there.
fn frame_len(chain: &Chain) -> Option<u64> {
    chain.readable_len().checked_sub(HEADER as u64)
}

#[cfg(test)]
#[path = "transmit_test.rs"]
mod tests;
