//! The queue of packets that go out.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::phy;

use super::{Error, checksum, feature, header};
use crate::virtio::{Buffers, Ring, Shape, Transport, drivers::transport::Transport as _};

const QUEUE: u16 = 1;
/// Packets that the device is shown at once.
const BATCH: u16 = 16;
/// The longest frame that the stack makes whatever the MTU is: an answer about an error over IPv6 (RFC 4443, 2.4).
const ANSWER_MAX: usize = super::ETHERNET + 1280;

/// Packets that go out.
#[derive(Debug)]
pub(super) struct Tx {
    ring: Ring,
    buffers: Buffers,
    features: u64,
    /// Slots that the device does not have; the one used last is used first.
    free: Vec<u16>,
    /// How many there are.
    slots: u16,
    /// Packets that the device was not shown.
    waiting: u16,
    /// Whether a packet found no free slot since the last look.
    starved: bool,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
    pub(super) notifications: u64,
}

impl Tx {
    pub(super) fn new(transport: &mut Transport, features: u64, mtu: usize) -> Result<Self, Error> {
        let frame = super::frame_len(mtu).max(ANSWER_MAX);
        let size = (header::LEN + frame).next_multiple_of(64).max(2048);
        let slots = super::slots(transport, QUEUE, size)?;
        let ring = Ring::new(transport, QUEUE, Shape { slots, buffers: 1, features }).ok_or(Error::Queue)?;
        ring.hush();
        Ok(Self {
            ring,
            buffers: Buffers::new(slots, size).ok_or(Error::Memory)?,
            features,
            free: (0..slots).rev().collect(),
            slots,
            waiting: 0,
            starved: false,
            packets: 0,
            bytes: 0,
            dropped: 0,
            notifications: 0,
        })
    }

    /// Takes back what the device has sent.
    pub(super) fn reclaim(&mut self) -> Result<(), Error> {
        while let Some((slot, _)) = self.ring.pop()? {
            self.free.push(slot);
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
        if self.waiting >= if all { 1 } else { BATCH } {
            self.waiting = 0;
            if self.ring.publish() {
                transport.notify(QUEUE);
                self.notifications += 1;
            }
        }
    }

    /// Asks for an interrupt when there is room again for half of what the queue holds, all of which the device has;
    /// whether there is by now. Room for one packet would be filled at once, and each time be waited for.
    pub(super) fn listen(&self) -> bool {
        self.ring.listen_for(self.slots.div_ceil(2))
    }

    pub(super) fn hush(&self) {
        self.ring.hush();
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
        let bytes = unsafe { self.buffers.blank(slot, whole) };
        let (header, frame) = bytes.split_at_mut(header::LEN);
        let result = fill(frame);
        let delegated = self.features & feature::CSUM != 0;
        let checksum = if delegated { checksum::delegate(frame) } else { None };
        header.copy_from_slice(&header::of_sent(checksum));
        let buffer = self.buffers.describe(slot, whole, false);
        // SAFETY: the buffer is there for good, and written to only when the slot is free again.
        unsafe { self.ring.offer(slot, &[buffer]) };
        self.waiting += 1;
        self.packets += 1;
        self.bytes += len as u64;
        result
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
