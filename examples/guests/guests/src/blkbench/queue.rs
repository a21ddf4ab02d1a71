//! A queue of the disk: the kit's ring, or that of the crate `virtio-drivers` (without EVENT_IDX).

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr::with_exposed_provenance_mut;
use core::slice;

use ringlet_guest::virtio::drivers::queue::VirtQueue;
use ringlet_guest::virtio::{Buffer, GuestHal, Ring, Shape, Transport, feature};

use crate::Failure;
use crate::options::Driver;

/// Descriptors of the crate's queue.
const SIZE: usize = 128;
/// Most buffers of a request on it.
const BUFFERS: usize = 8;

const BROKEN: Failure = Failure::Device("the device returned a request that it did not have");

/// A queue that requests are put into by the number of their slot.
pub(crate) enum Queue {
    Ring(Ring),
    Crate(Box<Foreign>),
}

impl Queue {
    pub(crate) fn new(
        transport: &mut Transport,
        driver: Driver,
        index: u16,
        depth: u16,
        buffers: u16,
        features: u64,
    ) -> Result<Self, Failure> {
        match driver {
            Driver::Ring => Ring::new(transport, index, Shape { slots: depth, buffers, features })
                .map(Self::Ring)
                .ok_or(Failure::Usage("--depth exceeds what a queue of the disk holds")),
            Driver::Crate => Foreign::new(transport, index, depth, buffers, features).map(Self::Crate),
        }
    }

    /// Offers the request in `slot`.
    ///
    /// # Safety
    /// As [`Ring::offer`].
    pub(crate) unsafe fn offer(&mut self, slot: u16, buffers: &[Buffer]) -> Result<(), Failure> {
        match self {
            // SAFETY: the caller's promise.
            Self::Ring(ring) => unsafe { ring.offer(slot, buffers) },
            // SAFETY: the caller's promise.
            Self::Crate(queue) => unsafe { queue.offer(slot, buffers)? },
        }
        Ok(())
    }

    /// Shows the disk what was offered; whether it wants to be notified.
    pub(crate) fn publish(&mut self) -> bool {
        match self {
            Self::Ring(ring) => ring.publish(),
            Self::Crate(queue) => core::mem::take(&mut queue.offered) && queue.queue.should_notify(),
        }
    }

    pub(crate) fn has_finished(&self) -> bool {
        match self {
            Self::Ring(ring) => ring.has_finished(),
            Self::Crate(queue) => queue.queue.can_pop(),
        }
    }

    /// A finished request: its slot, and how much was written.
    pub(crate) fn pop(&mut self) -> Result<Option<(u16, u32)>, Failure> {
        match self {
            Self::Ring(ring) => ring.pop().map_err(|_| BROKEN),
            Self::Crate(queue) => queue.pop(),
        }
    }

    /// Asks for an interrupt; whether none is needed because something is finished.
    pub(crate) fn listen(&mut self) -> bool {
        match self {
            Self::Ring(ring) => ring.listen(),
            Self::Crate(queue) => {
                queue.queue.set_dev_notify(true);
                core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
                queue.queue.can_pop()
            }
        }
    }

    /// Asks for no interrupts.
    pub(crate) fn hush(&mut self) {
        match self {
            Self::Ring(ring) => ring.hush(),
            Self::Crate(queue) => queue.queue.set_dev_notify(false),
        }
    }
}

/// The crate's queue. It names requests by their descriptor, and wants the buffers back with that.
pub(crate) struct Foreign {
    queue: VirtQueue<GuestHal, SIZE>,
    /// Which slot a descriptor is the head of.
    slots: [u16; SIZE],
    buffers: Vec<Vec<Buffer>>,
    offered: bool,
}

impl Foreign {
    fn new(
        transport: &mut Transport,
        index: u16,
        depth: u16,
        buffers: u16,
        features: u64,
    ) -> Result<Box<Self>, Failure> {
        let indirect = features & feature::INDIRECT_DESC != 0;
        let needed = usize::from(depth) * if indirect { 1 } else { usize::from(buffers) };
        if needed > SIZE || usize::from(buffers) > BUFFERS {
            return Err(Failure::Usage("--depth or --block-size exceeds what the crate's queue holds"));
        }
        let queue = VirtQueue::new(transport, index, indirect, false)
            .map_err(|_| Failure::Device("the crate's queue has 128 descriptors, the disk's less"))?;
        let buffers = vec![Vec::with_capacity(usize::from(buffers)); usize::from(depth)];
        Ok(Box::new(Self { queue, slots: [0; SIZE], buffers, offered: false }))
    }

    unsafe fn offer(&mut self, slot: u16, buffers: &[Buffer]) -> Result<(), Failure> {
        let kept = &mut self.buffers[usize::from(slot)];
        kept.clear();
        kept.extend_from_slice(buffers);
        // SAFETY: the memory stays valid and untouched until `pop` returns the slot, by the caller's promise.
        let mut slices = unsafe { Slices::of(buffers) };
        // SAFETY: as above.
        let head =
            unsafe { self.queue.add(&slices.inputs[..slices.ins], &mut slices.outputs[..slices.outs]) };
        let head = head.map_err(|_| Failure::Device("the crate's queue is full"))?;
        self.slots[usize::from(head)] = slot;
        self.offered = true;
        Ok(())
    }

    fn pop(&mut self) -> Result<Option<(u16, u32)>, Failure> {
        let Some(head) = self.queue.peek_used() else { return Ok(None) };
        let slot = *self.slots.get(usize::from(head)).ok_or(BROKEN)?;
        // SAFETY: the memory of a request that the device is done with, the same that was offered.
        let len = unsafe {
            let mut slices = Slices::of(&self.buffers[usize::from(slot)]);
            self.queue.pop_used(head, &slices.inputs[..slices.ins], &mut slices.outputs[..slices.outs])
        };
        Ok(Some((slot, len.map_err(|_| BROKEN)?)))
    }
}

/// Buffers as the crate wants them: those that the device reads, and those that it writes.
struct Slices<'a> {
    inputs: [&'a [u8]; BUFFERS],
    ins: usize,
    outputs: [&'a mut [u8]; BUFFERS],
    outs: usize,
}

impl Slices<'_> {
    /// # Safety
    /// The buffers are valid memory that nothing else refers to.
    unsafe fn of(buffers: &[Buffer]) -> Self {
        let mut slices = Self { inputs: Default::default(), ins: 0, outputs: Default::default(), outs: 0 };
        for buffer in buffers {
            let (start, len) = (with_exposed_provenance_mut(buffer.address as usize), buffer.len as usize);
            if buffer.device_writes {
                // SAFETY: valid memory, by the caller's promise.
                slices.outputs[slices.outs] = unsafe { slice::from_raw_parts_mut(start, len) };
                slices.outs += 1;
            } else {
                // SAFETY: valid memory, by the caller's promise.
                slices.inputs[slices.ins] = unsafe { slice::from_raw_parts(start, len) };
                slices.ins += 1;
            }
        }
        slices
    }
}
