//! Packets on their way from the guest.
//!
//! Owns nothing: a packet stays in guest memory until the host takes it. Its header, and what a filter judges of the
//! frame, are copied once, checked, and sent from the copy. A packet with a flaw is dropped, counted and given back:
//! the driver made it, and the next may be better.

use std::rc::Rc;

use ringlet_io::net::{HEADER, MAX_HEAD, NetPort, Sent};
use ringlet_io::{Cost, DoorbellListener, Lease, LeaseUse, MonoTime};
use ringlet_metrics::{DropReason, GuestErrorKind, RequestKind, RequestStatus, guest_error};

use super::filter::{JUDGED, Spoof};
use super::header::{Header, HeaderError, Rules};
use super::host::Host;
use crate::virtio::{Chain, InFlight, Ordered, OutsideChain, QueueError};

const _: () = assert!(HEADER + JUDGED <= MAX_HEAD);

/// The task of one transmit queue.
pub(super) struct Transmitter {
    pub(super) queue: Rc<Ordered>,
    pub(super) doorbell: DoorbellListener,
    pub(super) host: Rc<Host>,
    pub(super) pair: u16,
    pub(super) port: Rc<dyn NetPort>,
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

/// A packet that may be sent.
struct Packet {
    /// Header and what was judged, of which `len` bytes count.
    head: [u8; HEADER + JUDGED],
    len: usize,
    /// The rest of the frame.
    rest: Lease,
}

impl Transmitter {
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
        let Some(frame) = chain.readable_len().checked_sub(HEADER as u64) else {
            return self.queue.refuse(&chain, "no whole header");
        };
        let (head, len) = match self.examine(&chain, frame) {
            Ok(head) => head,
            Err(flaw) => return self.refuse(&chain, &flaw, begun),
        };
        let Some(rest) = self.lend(&chain, len) else {
            return self.queue.refuse(&chain, "too many pieces");
        };
        let packet = Packet { head, len, rest };
        if self.host.is_link_up() && !self.host.is_settled() {
            let settled = self.queue.wait_for(&mut self.doorbell, self.host.settle()).await?;
            settled.unwrap_or_else(|error| self.host.fail(&error));
        }
        if self.host.is_open(self.pair) {
            self.queue.admit(&mut self.doorbell, Cost::write(frame)).await?;
        }
        match self.send(&packet).await? {
            None => {
                self.queue.complete(&chain, 0)?;
                self.queue.served(RequestKind::Transmit, frame, begun);
                Ok(())
            }
            Some(reason) => self.drop_packet(&chain, reason, begun),
        }
    }

    /// Copies the beginning of a packet, as far as it is judged, and judges it; gives what is sent of it, and how long
    /// that is.
    fn examine(&self, chain: &Chain, frame: u64) -> Result<([u8; HEADER + JUDGED], usize), Flaw> {
        let mut head = [0; HEADER + JUDGED];
        let judged = match self.host.filter.is_open() {
            true => 0,
            false => usize::try_from(frame).map_or(JUDGED, |frame| frame.min(JUDGED)),
        };
        let copied = head.get_mut(..HEADER + judged).unwrap_or_default();
        chain.copy_out(&self.queue.ram, 0, copied)?;
        if let Some((header, beginning)) = copied.split_first_chunk_mut::<HEADER>() {
            let rules = Rules::new(self.host.features.get());
            let valid = Header::parse(header).validate(rules, frame)?;
            *header = valid.bytes();
            if !self.host.filter.is_open() {
                self.host.filter.judge(beginning)?;
                if valid.leaves_checksum() {
                    self.host.filter.judge_checksum(beginning, valid.csum_start, valid.csum_offset)?;
                }
            }
        }
        Ok((head, HEADER + judged))
    }

    /// Lends the packet from byte `from` on to the host; `None` if it is in more pieces than the kernel takes.
    fn lend(&self, chain: &Chain, from: usize) -> Option<Lease> {
        let len = chain.readable_len().checked_sub(from as u64)?;
        let ranges = chain.readable(from as u64, len)?;
        self.queue.ram.lease(&ranges, LeaseUse::Source).ok()
    }

    /// Gives a packet to the host, as soon as it takes one; gives why not, if it is dropped. Cancel-safe.
    async fn send(&mut self, packet: &Packet) -> Result<Option<DropReason>, QueueError> {
        let head = packet.head.get(..packet.len).unwrap_or_default();
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
    fn refuse(&self, chain: &Chain, flaw: &Flaw, begun: MonoTime) -> Result<(), QueueError> {
        let (log, metrics) = (&self.queue.log, &self.queue.metrics);
        guest_error!(log, GuestErrorKind::BadRequest, "{}: a packet is dropped: {flaw}", metrics.id());
        self.drop_packet(chain, flaw.reason(), begun)
    }

    fn drop_packet(&self, chain: &Chain, reason: DropReason, begun: MonoTime) -> Result<(), QueueError> {
        let metrics = &self.queue.metrics;
        metrics.dropped_packets.inc(reason);
        let time = MonoTime::now().since(begun);
        metrics.completed(RequestKind::Transmit, RequestStatus::IoError, 0, time);
        self.queue.complete(chain, 0)
    }
}

#[cfg(test)]
#[path = "transmit_test.rs"]
mod tests;
