//! A queue of packets that come in.

use alloc::vec::Vec;
use core::ops::Range;

use smoltcp::phy;

use super::cut::Cut;
use super::header::{self, Header};
use super::{Error, checksum, feature};
use crate::virtio::{Buffers, Ring, Shape, Transport, drivers::transport::Transport as _};

/// Bytes of a buffer when a packet may lie in several.
const PIECE: usize = 4096;
/// Most bytes of a packet and its header: what one of TCP, or of datagrams of UDP, can have before it is cut.
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
    /// A packet of whose datagrams not all were looked at.
    cut: Option<(Place, Cut)>,
    /// Buffers given back that the device was not told of.
    returned: u16,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
}

/// Where a packet that came in lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In one buffer: its slot and how many bytes were written, the header's included.
    Buffer(u16, usize),
    /// In [`Rx::whole`].
    Whole,
}

/// A packet that came in, or a datagram of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    place: Place,
    /// From where to where behind the header of the packet.
    start: usize,
    end: usize,
    /// Nothing else of the packet is to be looked at.
    is_last: bool,
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
            cut: None,
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

    /// Asks for an interrupt when something comes in; whether there is something already.
    pub(super) fn listen(&self) -> bool {
        self.cut.is_some() || self.ring.listen()
    }

    pub(super) fn hush(&self) {
        self.ring.hush();
    }

    pub(super) fn has_finished(&self) -> bool {
        self.cut.is_some() || self.ring.has_finished()
    }

    /// The next packet, or datagram of one, if there is one. Those that are too short, whose checksum is wrong, or which are
    /// not the datagrams that they should be, are dropped.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Error> {
        let mut next = self.next_datagram();
        while next.is_none() {
            let Some((slot, written)) = self.pop()? else { return Ok(None) };
            // SAFETY: the device has just given the buffer back, and says that it wrote so much.
            let bytes = unsafe { self.buffers.written(slot, written) };
            let header = Header::of(bytes).ok_or(LIE)?;
            let merged = self.features & feature::MRG_RXBUF != 0 && header.buffers != 1;
            let place = if merged {
                self.collect(slot, written, header.buffers)?;
                Place::Whole
            } else {
                Place::Buffer(slot, written)
            };
            next = self.look_at(place, header);
            if next.is_none() {
                self.dropped += 1;
                self.release(place);
            }
        }
        if let Some(frame) = next {
            self.packets += 1;
            self.bytes += (frame.end - frame.start) as u64;
        }
        Ok(next)
    }

    /// What there is to see of a packet first.
    fn look_at(&mut self, place: Place, header: Header) -> Option<Frame> {
        let frame = self.packet(place);
        let unchecked = self.features & feature::GUEST_CSUM != 0 && !header.checked;
        if frame.len() < FRAME_MIN || unchecked && !checksum::holds(frame) {
            return None;
        }
        let cuts = self.features & (feature::GUEST_USO4 | feature::GUEST_USO6) != 0;
        match header.datagram_size.filter(|_| cuts) {
            None => Some(Frame { place, start: 0, end: frame.len(), is_last: true }),
            Some(size) => {
                self.cut = Some((place, Cut::of(frame, size)?));
                self.next_datagram()
            }
        }
    }

    /// The next datagram of the packet that is being cut.
    fn next_datagram(&mut self) -> Option<Frame> {
        let (place, cut) = self.cut.as_mut()?;
        let place = *place;
        let bytes = match place {
            // SAFETY: the device has given the buffer back, and says that it wrote so much; it gets it again only after
            // the last datagram.
            Place::Buffer(slot, written) => unsafe { self.buffers.ours(slot, written) },
            Place::Whole => &mut self.whole,
        };
        let datagram = bytes.get_mut(header::LEN..).and_then(|frame| cut.next(frame));
        debug_assert!(
            datagram.is_some(),
            "the packet has not become shorter, and is forgotten with its last datagram"
        );
        let is_last = datagram.is_none() || cut.is_done();
        if is_last {
            self.cut = None;
        }
        datagram.map(|Range { start, end }| Frame { place, start, end, is_last })
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

    /// A packet without its header.
    fn packet(&self, place: Place) -> &[u8] {
        let bytes = match place {
            // SAFETY: `next` yields only what the device has given back, until `release`.
            Place::Buffer(slot, written) => unsafe { self.buffers.written(slot, written) },
            Place::Whole => &self.whole,
        };
        bytes.get(header::LEN..).unwrap_or_default()
    }

    /// What there is to see.
    pub(super) fn bytes(&self, frame: Frame) -> &[u8] {
        self.packet(frame.place).get(frame.start..frame.end).unwrap_or_default()
    }

    fn release(&mut self, place: Place) {
        if let Place::Buffer(slot, _) = place {
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
        if self.frame.is_last {
            self.rx.release(self.frame.place);
        }
        result
    }
}
