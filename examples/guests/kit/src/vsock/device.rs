//! A virtio socket device (virtio 1.2, 5.10): its configuration, and its three queues of packets in, packets out, and events.
//!
//! The queues are `virtio-drivers`' own. EVENT_IDX is left alone: there that crate's queue compares indexes that wrap around
//! as if they did not (see [`Ring`](crate::virtio::Ring)).

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use core::{fmt, slice};

use super::Error;
use super::header::{self, Header};
use crate::boot::Context;
use crate::virtio::drivers::queue::VirtQueue;
use crate::virtio::drivers::transport::{DeviceStatus, Transport as _};
use crate::virtio::{self, Buffers, GuestHal, Line, Transport};

/// Device type (virtio 1.2, 5.10.1).
const SOCKET: u32 = 19;
/// Offset of the guest's address in the configuration (5.10.4).
const GUEST_CID: usize = 0;

/// VIRTIO_VSOCK_F_STREAM (5.10.3); without any feature there are streams too.
const STREAM: u64 = 1;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
/// Descriptors of a queue; every packet is one.
const SLOTS: usize = 64;
const EVENTS: usize = 4;
/// Bytes of a packet with its header.
const PACKET: usize = 32 << 10;
/// Most bytes of data in a packet that is sent.
pub(super) const PAYLOAD: usize = PACKET - header::LEN;
/// Bytes of an event (5.10.6.7).
const EVENT_LEN: usize = 4;
/// `id` of an event: all connections are gone, and the address may be another.
const TRANSPORT_RESET: u32 = 0;

/// A queue whose requests are one buffer each, all of one memory.
struct Packets<const SIZE: usize> {
    queue: Box<VirtQueue<GuestHal, SIZE>>,
    index: u16,
    buffers: Buffers,
    device_writes: bool,
    /// Which buffer a descriptor has, and how long it is.
    given: Vec<Option<(u16, usize)>>,
    /// Buffers that the device does not have; the one used last is used first.
    free: Vec<u16>,
    /// Buffers given that the device was not told of.
    untold: usize,
    notifications: u64,
}

impl<const SIZE: usize> Packets<SIZE> {
    fn new(transport: &mut Transport, index: u16, size: usize, device_writes: bool) -> Result<Self, Error> {
        let queue = VirtQueue::new(transport, index, false, false).map_err(|_| Error::Queue)?;
        Ok(Self {
            queue: Box::new(queue),
            index,
            buffers: Buffers::new(SIZE as u16, size).ok_or(Error::Memory)?,
            device_writes,
            given: vec![None; SIZE],
            free: (0..SIZE as u16).rev().collect(),
            untold: 0,
            notifications: 0,
        })
    }

    /// Gives all buffers to the device, to write.
    fn give_all(&mut self) -> Result<(), Error> {
        while let Some(slot) = self.free.pop() {
            // SAFETY: the device does not have the buffer.
            let len = unsafe { self.buffers.blank(slot, self.buffers.size()) }.len();
            self.give(slot, len)?;
        }
        Ok(())
    }

    /// Gives a free buffer to the device: its first `len` bytes, in which something was written before.
    fn give(&mut self, slot: u16, len: usize) -> Result<(), Error> {
        let start = self.buffers.start(slot);
        let added = if self.device_writes {
            // SAFETY: the buffer is there for good, within its memory, and not touched before `take` has returned it.
            unsafe { self.queue.add(&[], &mut [slice::from_raw_parts_mut(start, len)]) }
        } else {
            // SAFETY: as above.
            unsafe { self.queue.add(&[slice::from_raw_parts(start, len)], &mut []) }
        };
        let token = added.map_err(|_| Error::Device("its queue has no room for what it gave back"))?;
        self.given[usize::from(token)] = Some((slot, len));
        self.untold += 1;
        Ok(())
    }

    /// A buffer that the device has given back, and how many bytes it says that it wrote.
    fn take(&mut self) -> Result<Option<(u16, usize)>, Error> {
        const LIE: Error = Error::Device("the device returned a buffer that it did not have");
        let Some(token) = self.queue.peek_used() else { return Ok(None) };
        let given = self.given.get_mut(usize::from(token)).and_then(Option::take);
        let (slot, len) = given.ok_or(LIE)?;
        let start = self.buffers.start(slot);
        let used = if self.device_writes {
            // SAFETY: this is the buffer that `give` gave with this token.
            unsafe { self.queue.pop_used(token, &[], &mut [slice::from_raw_parts_mut(start, len)]) }
        } else {
            // SAFETY: as above.
            unsafe { self.queue.pop_used(token, &[slice::from_raw_parts(start, len)], &mut []) }
        };
        let written = used.map_err(|_| LIE)? as usize;
        let most = if self.device_writes { len } else { 0 };
        if written > most {
            return Err(Error::Device("the device says that it wrote more than there was room for"));
        }
        Ok(Some((slot, written)))
    }

    /// Tells the device of what it was given, if it is so much, and if the device wants to know.
    fn tell(&mut self, transport: &mut Transport, least: usize) {
        if self.untold < least {
            return;
        }
        self.untold = 0;
        // What was offered is to be seen before it is read whether the device looks.
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            transport.notify(self.index);
            self.notifications += 1;
        }
    }

    /// Asks for interrupts; whether there is something already, which no interrupt may tell.
    fn listen(&mut self) -> bool {
        self.queue.set_dev_notify(true);
        fence(Ordering::SeqCst);
        self.queue.can_pop()
    }

    fn hush(&mut self) {
        self.queue.set_dev_notify(false);
    }
}

/// A socket device that is up.
pub(super) struct Device {
    transport: Transport,
    line: Line,
    receive: Packets<SLOTS>,
    transmit: Packets<SLOTS>,
    events: Packets<EVENTS>,
    pub(super) cid: u64,
    pub(super) interrupts: u64,
}

impl Device {
    pub(super) fn open(context: &Context) -> Result<Self, Error> {
        let slot = virtio::find(context, SOCKET).next().ok_or(Error::NoDevice)?;
        let mut transport =
            slot.open().map_err(|_| Error::Device("the device is not one that the driver knows"))?;
        virtio::negotiate(&mut transport, STREAM)
            .map_err(|_| Error::Device("the device does not accept features that it offered"))?;
        let mut device = Self {
            cid: cid(&transport)?,
            line: slot.line(),
            receive: Packets::new(&mut transport, RECEIVE, PACKET, true)?,
            transmit: Packets::new(&mut transport, TRANSMIT, PACKET, false)?,
            events: Packets::new(&mut transport, EVENT, EVENT_LEN, true)?,
            transport,
            interrupts: 0,
        };
        virtio::finish(&mut device.transport);
        device.receive.give_all()?;
        device.events.give_all()?;
        device.hush();
        device.tell();
        Ok(device)
    }

    /// Has `look` look at the next packet that came, if there is one. One that is no packet is the device's fault.
    pub(super) fn next<R>(
        &mut self,
        look: impl FnOnce(&Header, &[u8]) -> Result<R, Error>,
    ) -> Result<Option<R>, Error> {
        let Some((slot, written)) = self.receive.take()? else { return Ok(None) };
        // SAFETY: the device has just given the buffer back, and says that it wrote so much.
        let bytes = unsafe { self.receive.buffers.written(slot, written) };
        let header = Header::of(bytes).ok_or(Error::Device("the device returned less than a header"))?;
        let payload = &bytes[header::LEN..];
        if payload.len() != header.len as usize {
            return Err(Error::Device("a packet is not as long as its header says"));
        }
        let result = look(&header, payload)?;
        self.receive.give(slot, PACKET)?;
        Ok(Some(result))
    }

    /// Whether a packet can be sent now.
    pub(super) fn has_room(&mut self) -> Result<bool, Error> {
        while let Some((slot, _)) = self.transmit.take()? {
            self.transmit.free.push(slot);
        }
        Ok(!self.transmit.free.is_empty())
    }

    /// Sends the packet that `fill` writes, if it writes one: `len` bytes, and their header. There has to be room.
    pub(super) fn send(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Option<Header>,
    ) -> Result<bool, Error> {
        let Some(slot) = self.transmit.free.pop() else { return Ok(false) };
        // SAFETY: the device does not have the buffer.
        let bytes = unsafe { self.transmit.buffers.blank(slot, header::LEN + len) };
        let (head, payload) = bytes.split_at_mut(header::LEN);
        let Some(header) = fill(payload) else {
            self.transmit.free.push(slot);
            return Ok(false);
        };
        head.copy_from_slice(&header.bytes());
        self.transmit.give(slot, header::LEN + len)?;
        Ok(true)
    }

    /// Whether the device has said that all connections are gone; the address is read anew.
    pub(super) fn was_reset(&mut self) -> Result<bool, Error> {
        let mut was_reset = false;
        while let Some((slot, written)) = self.events.take()? {
            // SAFETY: the device has just given the buffer back, and says that it wrote so much.
            let event = unsafe { self.events.buffers.written(slot, written) };
            let id = event.first_chunk().map(|id| u32::from_le_bytes(*id));
            let id = id.ok_or(Error::Device("the device returned less than an event"))?;
            was_reset |= id == TRANSPORT_RESET;
            self.events.give(slot, EVENT_LEN)?;
        }
        if was_reset {
            self.cid = cid(&self.transport)?;
        }
        Ok(was_reset)
    }

    /// Tells the device of all that was sent, and given back once that is worth it.
    pub(super) fn tell(&mut self) {
        let Self { transport, receive, transmit, events, .. } = self;
        transmit.tell(transport, 1);
        // As long as it was told of half of them, it has buffers, or this driver has packets to look at.
        receive.tell(transport, SLOTS / 2);
        events.tell(transport, 1);
    }

    /// Asks for an interrupt when there is something to do; whether there is already. `starved`: packets wait for room.
    pub(super) fn listen(&mut self, starved: bool) -> bool {
        let ready = self.receive.listen() | self.events.listen();
        ready | (starved && self.transmit.listen())
    }

    /// Halts until an interrupt came, of the device or another; then asks for no more of the device's.
    pub(super) fn wait(&mut self) -> Result<(), Error> {
        let taken = self.line.wait();
        self.interrupts += u64::from(taken);
        let about_packets =
            self.receive.queue.can_pop() || self.transmit.queue.can_pop() || self.events.queue.can_pop();
        self.hush();
        // What an interrupt without a packet is about only the registers know, which costs an exit.
        if taken > 0
            && !about_packets
            && self.transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET)
        {
            return Err(Error::Device("the device broke down, and asks for a reset"));
        }
        Ok(())
    }

    pub(super) fn hush(&mut self) {
        self.receive.hush();
        self.transmit.hush();
        self.events.hush();
    }

    /// How often the device was told of something.
    pub(super) fn notifications(&self) -> u64 {
        self.receive.notifications + self.transmit.notifications + self.events.notifications
    }
}

/// The guest's address.
fn cid(transport: &Transport) -> Result<u64, Error> {
    let half = |offset: usize| transport.read_config_space::<u32>(GUEST_CID + offset);
    let short = |_| Error::Device("the configuration is too short");
    let cid = u64::from(half(0).map_err(short)?) | u64::from(half(4).map_err(short)?) << 32;
    // Those below are the hypervisor's, the loopback's and the host's; the last one is anybody's (5.10.4).
    if (3..u64::from(u32::MAX)).contains(&cid) {
        Ok(cid)
    } else {
        Err(Error::Device("the address is no guest's"))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("cid", &self.cid).finish_non_exhaustive()
    }
}
