//! A queue of packets that come in.

use alloc::vec::Vec;

use smoltcp::phy;

use super::header::{self, Header};
use super::{Error, checksum, feature};
use crate::virtio::{Buffers, Ring, Shape, Transport, drivers::transport::Transport as _};

/// Bytes of a buffer when a packet may lie in several.
const PIECE: usize = 4096;
/// Most bytes of a packet and its header: what one of TCP can have before it is cut into segments.
const PACKET_MAX: usize = header::LEN + super::ETHERNET + 4 + 65535;
/// Bytes of an Ethernet header: no frame is shorter.
const FRAME_MIN: usize = super::ETHERNET;
/// Buffers that are given back to the device at once.
const BATCH: u16 = 16;

const LIE: Error = Error::Device("the device returned a packet that cannot be");

/// Packets that come in.
#[derive(Debug)]
pub(super) struct Rx {
    queue: u16,
    ring: Ring,
    buffers: Buffers,
    features: u64,
    /// A packet out of several buffers.
    whole: Vec<u8>,
    /// Buffers given back that the device was not told of.
    returned: u16,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
}

/// A packet that came in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Frame {
    /// In one buffer: its slot and how many bytes were written, the header's included.
    Buffer(u16, usize),
    /// In [`Rx::whole`].
    Whole,
}

impl Rx {
    /// Sets the queue of this pair up.
    pub(super) fn new(
        transport: &mut Transport,
        pair: u16,
        features: u64,
        mtu: usize,
    ) -> Result<Self, Error> {
        let queue = 2 * pair;
        let merged = features & feature::MRG_RXBUF != 0;
        let frame = header::LEN + super::frame_len(mtu) + 4;
        let size = if merged { PIECE } else { frame.next_multiple_of(64).max(PIECE) };
        let slots = super::slots(transport, queue, size)?;
        let ring = Ring::new(transport, queue, Shape { slots, buffers: 1, features }).ok_or(Error::Queue)?;
        let buffers = Buffers::new(slots, size).ok_or(Error::Memory)?;
        let mut rx = Self {
            queue,
            ring,
            buffers,
            features,
            whole: Vec::new(),
            returned: 0,
            packets: 0,
            bytes: 0,
            dropped: 0,
        };
        (0..slots).for_each(|slot| rx.give_back(slot));
        Ok(rx)
    }

    /// Hands a buffer to the device, which is told by [`publish`](Self::publish).
    fn give_back(&mut self, slot: u16) {
        let buffer = self.buffers.describe(slot, self.buffers.size(), true);
        // SAFETY: the buffers are there for good; that of a slot is read only after `pop` has returned it, and no longer
        // once this is called.
        unsafe { self.ring.offer(slot, &[buffer]) };
        self.returned += 1;
    }

    /// Shows the device what it was given back, if that is worth it or `all` is wanted.
    pub(super) fn publish(&mut self, transport: &mut Transport, all: bool) {
        if self.returned >= if all { 1 } else { BATCH } {
            self.returned = 0;
            if self.ring.publish() {
                transport.notify(self.queue);
            }
        }
    }

    pub(super) fn listen(&self) -> bool {
        self.ring.listen()
    }

    pub(super) fn hush(&self) {
        self.ring.hush();
    }

    pub(super) fn has_finished(&self) -> bool {
        self.ring.has_finished()
    }

    /// The next packet, if there is one. Those that are too short, or whose checksum is wrong, are dropped.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Error> {
        while let Some((slot, written)) = self.pop()? {
            // SAFETY: the device has just given the buffer back, and says that it wrote so much.
            let bytes = unsafe { self.buffers.written(slot, written) };
            let header = Header::of(bytes).ok_or(LIE)?;
            let merged = self.features & feature::MRG_RXBUF != 0 && header.buffers != 1;
            let frame = if merged {
                self.collect(slot, written, header.buffers)?;
                Frame::Whole
            } else {
                Frame::Buffer(slot, written)
            };
            if self.is_good(frame, header) {
                self.packets += 1;
                self.bytes += self.bytes(frame).len() as u64;
                return Ok(Some(frame));
            }
            self.dropped += 1;
            self.release(frame);
        }
        Ok(None)
    }

    fn pop(&mut self) -> Result<Option<(u16, usize)>, Error> {
        let Some((slot, written)) = self.ring.pop()? else { return Ok(None) };
        let written = written as usize;
        if written <= self.buffers.size() { Ok(Some((slot, written))) } else { Err(LIE) }
    }

    /// Joins a packet out of so many buffers. The device has used all of them before it shows the first (5.1.6.4).
    fn collect(&mut self, slot: u16, written: usize, buffers: u16) -> Result<(), Error> {
        if buffers == 0 || buffers > self.buffers.count() {
            return Err(LIE);
        }
        self.whole.clear();
        self.append(slot, written)?;
        for _ in 1..buffers {
            let (slot, written) = self.pop()?.ok_or(LIE)?;
            self.append(slot, written)?;
        }
        Ok(())
    }

    fn append(&mut self, slot: u16, written: usize) -> Result<(), Error> {
        if self.whole.len() + written > PACKET_MAX {
            return Err(LIE);
        }
        // SAFETY: the device has given the buffer back, and says that it wrote so much.
        self.whole.extend_from_slice(unsafe { self.buffers.written(slot, written) });
        self.give_back(slot);
        Ok(())
    }

    fn is_good(&self, frame: Frame, header: Header) -> bool {
        let bytes = self.bytes(frame);
        let unchecked = self.features & feature::GUEST_CSUM != 0 && !header.checked;
        bytes.len() >= FRAME_MIN && (!unchecked || checksum::holds(bytes))
    }

    /// The packet without its header.
    pub(super) fn bytes(&self, frame: Frame) -> &[u8] {
        let bytes = match frame {
            // SAFETY: `next` yields only what the device has given back, until `release`.
            Frame::Buffer(slot, written) => unsafe { self.buffers.written(slot, written) },
            Frame::Whole => &self.whole,
        };
        bytes.get(header::LEN..).unwrap_or_default()
    }

    fn release(&mut self, frame: Frame) {
        if let Frame::Buffer(slot, _) = frame {
            self.give_back(slot);
        }
    }
}

/// A packet that waits to be looked at.
#[derive(Debug)]
pub(crate) struct RxToken<'a> {
    pub(super) rx: &'a mut Rx,
    pub(super) frame: Frame,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        let result = look(self.rx.bytes(self.frame));
        self.rx.release(self.frame);
        result
    }
}
