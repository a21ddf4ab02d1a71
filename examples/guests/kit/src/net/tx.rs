//! Packets that go out: one memory for all, and a queue for each pair.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::phy;

use super::segments::Segments;
use super::{Error, checksum, feature, flow, header};
use crate::virtio::{Buffers, Ring, Shape, Transport, drivers::transport::Transport as _};

/// Packets that the device is shown at once.
const BATCH: u16 = 16;
/// The longest frame that the stack makes whatever the MTU is: an answer about an error over IPv6 (RFC 4443, 2.4).
const ANSWER_MAX: usize = super::ETHERNET + 1280;

/// A queue.
#[derive(Debug)]
struct Lane {
    queue: u16,
    ring: Ring,
    /// Packets that the device was not shown.
    waiting: u16,
    packets: u64,
}

/// A datagram that the device was not offered yet, since the next may be added to it.
#[derive(Debug)]
struct Open {
    slot: u16,
    lane: usize,
    segments: Segments,
}

/// Packets that go out.
#[derive(Debug)]
pub(super) struct Tx {
    lanes: Vec<Lane>,
    /// How many of them are used, from the first on.
    in_use: u16,
    buffers: Buffers,
    features: u64,
    open: Option<Open>,
    /// Slots that the device does not have; the one used last is used first.
    free: Vec<u16>,
    /// Whether a packet found no free slot since the last look.
    starved: bool,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
    pub(super) notifications: u64,
}

impl Lane {
    fn new(transport: &mut Transport, pair: u16, shape: Shape) -> Result<Self, Error> {
        let queue = 2 * pair + 1;
        let ring = Ring::new(transport, queue, shape).ok_or(Error::Queue)?;
        ring.hush();
        Ok(Self { queue, ring, waiting: 0, packets: 0 })
    }

    /// Asks for an interrupt when the device has sent so much of what it has; whether it has by now.
    fn listen(&self, part: impl FnOnce(u16) -> u16) -> bool {
        let in_flight = self.ring.in_flight();
        in_flight > 0 && self.ring.listen_for(part(in_flight))
    }
}

impl Tx {
    /// Sets the queues of so many pairs up.
    pub(super) fn new(
        transport: &mut Transport,
        pairs: u16,
        features: u64,
        mtu: usize,
    ) -> Result<Self, Error> {
        let frame = super::frame_len(mtu).max(ANSWER_MAX);
        let size = (header::LEN + frame).next_multiple_of(64).max(2048);
        let slots = super::slots(transport, 1, size)?;
        let shape = Shape { slots, buffers: 1, features };
        let lanes = (0..pairs).map(|pair| Lane::new(transport, pair, shape)).collect::<Result<_, _>>()?;
        Ok(Self {
            lanes,
            in_use: 1,
            buffers: Buffers::new(slots, size).ok_or(Error::Memory)?,
            features,
            open: None,
            free: (0..slots).rev().collect(),
            starved: false,
            packets: 0,
            bytes: 0,
            dropped: 0,
            notifications: 0,
        })
    }

    /// How many queues are used.
    pub(super) fn lanes_in_use(&self) -> u16 {
        self.in_use
    }

    /// Uses so many queues from now on, as far as there are so many.
    pub(super) fn use_lanes(&mut self, count: u16) {
        self.in_use = count.clamp(1, self.lanes.len() as u16);
    }

    /// What each queue has taken so far.
    pub(super) fn packets_of_lanes(&self) -> impl Iterator<Item = u64> {
        self.lanes.iter().map(|lane| lane.packets)
    }

    /// Takes back what the device has sent.
    pub(super) fn reclaim(&mut self) -> Result<(), Error> {
        for lane in &mut self.lanes {
            while let Some((slot, _)) = lane.ring.pop()? {
                self.free.push(slot);
            }
        }
        Ok(())
    }

    /// Whether a packet can be sent; if not, the end of one is to be waited for.
    pub(super) fn has_room(&mut self) -> Result<bool, Error> {
        if self.free.is_empty() {
            self.reclaim()?;
        }
        self.starved = self.free.is_empty();
        Ok(!self.starved)
    }

    /// Whether packets wait for room, and there is none by now.
    pub(super) fn is_starved(&self) -> bool {
        self.starved && self.free.is_empty()
    }

    /// Shows the device what is to be sent, if that is worth it or `all` is wanted.
    pub(super) fn publish(&mut self, transport: &mut Transport, all: bool) {
        if all {
            self.close();
        }
        for lane in &mut self.lanes {
            if lane.waiting >= if all { 1 } else { BATCH } {
                lane.waiting = 0;
                if lane.ring.publish() {
                    transport.notify(lane.queue);
                    self.notifications += 1;
                }
            }
        }
    }

    /// Asks for an interrupt when there is room again for half of what a queue has, now that the device has all slots;
    /// whether there is by now. Room for one packet would be filled at once, and each time be waited for.
    pub(super) fn listen(&self) -> bool {
        let half = |lane: &Lane| lane.listen(|in_flight| in_flight.div_ceil(2));
        self.lanes.iter().fold(false, |room, lane| half(lane) | room)
    }

    /// Whether the queues that are not used are empty; if not, an interrupt comes when one is.
    pub(super) fn has_left(&mut self) -> Result<bool, Error> {
        self.reclaim()?;
        let unused = self.lanes.iter().skip(self.in_use.into());
        // One that has come back by now is taken back by the next look.
        let busy = unused.filter(|lane| lane.ring.in_flight() > 0 && !lane.listen(|in_flight| in_flight));
        Ok(busy.count() == 0)
    }

    pub(super) fn hush(&self) {
        self.lanes.iter().for_each(|lane| lane.ring.hush());
    }

    /// Sends a frame of `len` bytes that `fill` writes.
    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let whole = header::LEN + len;
        let slot = if whole <= self.buffers.size() { self.free.pop() } else { None };
        let Some(slot) = slot else {
            self.dropped += 1;
            return fill(&mut vec![0; len]);
        };
        // SAFETY: the slot is free.
        let frame = unsafe { self.buffers.blank(slot, whole) }.split_at_mut(header::LEN).1;
        let result = fill(frame);
        let lane = if self.in_use == 1 { 0 } else { flow::of(frame) as usize % usize::from(self.in_use) };
        let segments = if self.features & feature::HOST_USO != 0 { Segments::of(frame) } else { None };
        self.lanes[lane].packets += 1;
        self.packets += 1;
        self.bytes += len as u64;
        match segments {
            Some(_) if self.joins(slot, whole) => self.free.push(slot),
            Some(segments) => {
                self.close();
                // SAFETY: the device does not have the slot.
                unsafe { self.buffers.blank_rest(slot, whole) };
                self.open = Some(Open { slot, lane, segments });
            }
            None => {
                self.close();
                self.offer(slot, lane, len, None);
            }
        }
        result
    }

    /// Adds a datagram to the one before, if that is possible; `whole` are its bytes and those of its header.
    fn joins(&mut self, slot: u16, whole: usize) -> bool {
        let Some(open) = &mut self.open else { return false };
        // SAFETY: the device has neither of the two; the first was blanked as a whole, the second written so far.
        let (buffer, next) = unsafe { self.buffers.pair(open.slot, (slot, whole)) };
        open.segments.add(&mut buffer[header::LEN..], &next[header::LEN..])
    }

    /// Offers the device the datagrams to which others might have been added.
    fn close(&mut self) {
        let Some(Open { slot, lane, segments }) = self.open.take() else { return };
        self.offer(slot, lane, segments.len(), Some(segments));
    }

    /// Offers the device a frame of `len` bytes that lies in this slot.
    fn offer(&mut self, slot: u16, lane: usize, len: usize, segments: Option<Segments>) {
        let whole = header::LEN + len;
        // SAFETY: the device does not have the slot, and so much was written.
        let (header, frame) = unsafe { self.buffers.ours(slot, whole) }.split_at_mut(header::LEN);
        let sizes = segments.and_then(|segments| segments.finish(frame));
        let delegated = self.features & feature::CSUM != 0;
        let checksum = if delegated { checksum::delegate(frame) } else { None };
        header.copy_from_slice(&header::of_sent(checksum, sizes));
        let buffer = self.buffers.describe(slot, whole, false);
        let lane = &mut self.lanes[lane];
        // SAFETY: the buffer is there for good, and written to only when the slot is free again.
        unsafe { lane.ring.offer(slot, &[buffer]) };
        lane.waiting += 1;
    }
}

/// Room for one packet.
#[derive(Debug)]
pub(crate) struct TxToken<'a> {
    pub(super) tx: &'a mut Tx,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.tx.send(len, fill)
    }
}
