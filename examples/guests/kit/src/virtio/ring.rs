//! A split queue (virtio 1.2, 2.7) for many requests at once.
//!
//! `virtio-drivers` has one too, which is right for a few requests. Under EVENT_IDX it compares indexes that wrap
//! around as if they did not, so a batch across the wrap is never announced, and it cannot leave interrupts out; its
//! size is fixed at compile time, and each indirect table is an allocation. Here a request is a *slot*, chosen by the
//! caller, which has its descriptors for good.

use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use alloc::vec;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_drivers::transport::Transport as _;

use super::{Transport, feature};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// `avail.flags`: don't interrupt. `used.flags`: don't notify.
const SUPPRESS: u16 = 1;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
const ALIGN: usize = 4096;

/// One piece of a request's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its first byte.
    pub address: u64,
    /// Its length in bytes, not 0.
    pub len: u32,
    /// Whether the device writes it, or reads it.
    pub device_writes: bool,
}

/// What a queue has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Requests at once.
    pub slots: u16,
    /// Most buffers of a request.
    pub buffers: u16,
    /// The features that were negotiated.
    pub features: u64,
}

/// The device returned a request that it did not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(
    /// The descriptor that it named.
    pub u32,
);

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A queue that a device serves. Its memory is the device's for good: dropping it frees none of that.
#[derive(Debug)]
pub struct Ring {
    memory: NonNull<u8>,
    len: usize,
    shape: Shape,
    /// Descriptors; a power of two.
    size: u16,
    /// Descriptors of a slot in the queue's own table.
    stride: u16,
    /// Requests offered so far, seen by the device or not.
    offered: u16,
    /// What the device was last shown.
    published: u16,
    /// Requests taken back so far.
    taken: u16,
    busy: Vec<bool>,
}

// SAFETY: owns its memory; nothing is tied to a processor.
unsafe impl Send for Ring {}

impl Ring {
    /// Sets queue `index` up, of the smallest size that holds `shape`. `None` if the device's queue is not that large.
    #[must_use]
    pub fn new(transport: &mut Transport, index: u16, shape: Shape) -> Option<Self> {
        let indirect = shape.features & feature::INDIRECT_DESC != 0;
        let stride = if indirect { 1 } else { shape.buffers };
        // No chain may be longer than its queue, not even an indirect one (2.7.5.3.1).
        let size = shape.slots.checked_mul(stride)?.max(shape.buffers).checked_next_power_of_two()?;
        if shape.slots == 0 || u32::from(size) > transport.max_queue_size(index) {
            return None;
        }
        let tables = if indirect { usize::from(shape.slots) * usize::from(shape.buffers) } else { 0 };
        let len = Self::tables_at(size) + tables * DESCRIPTOR;
        let layout = Layout::from_size_align(len, ALIGN).ok()?;
        // SAFETY: the layout is not empty.
        let memory =
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        let ring = Self {
            memory,
            len,
            shape,
            size,
            stride,
            offered: 0,
            published: 0,
            taken: 0,
            busy: vec![false; usize::from(shape.slots)],
        };
        let base = memory.expose_provenance().get() as u64;
        let (driver, device) = (base + Self::driver_at(size) as u64, base + Self::device_at(size) as u64);
        transport.queue_set(index, size.into(), base, driver, device);
        Some(ring)
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    fn driver_at(size: u16) -> usize {
        usize::from(size) * DESCRIPTOR
    }

    /// The used ring, on a cache line of its own.
    fn device_at(size: u16) -> usize {
        (Self::driver_at(size) + 6 + 2 * usize::from(size)).next_multiple_of(64)
    }

    fn tables_at(size: u16) -> usize {
        (Self::device_at(size) + 6 + 8 * usize::from(size)).next_multiple_of(64)
    }

    fn event_idx(&self) -> bool {
        self.shape.features & feature::EVENT_IDX != 0
    }

    /// A 16-bit field that the device also sees.
    fn field(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset < self.len);
        // SAFETY: within the queue's memory, even, and only ever accessed as an atomic.
        unsafe { self.memory.add(offset).cast::<AtomicU16>().as_ref() }
    }

    fn avail_flags(&self) -> &AtomicU16 {
        self.field(Self::driver_at(self.size))
    }

    fn avail_index(&self) -> &AtomicU16 {
        self.field(Self::driver_at(self.size) + 2)
    }

    fn avail_entry(&self, index: u16) -> &AtomicU16 {
        self.field(Self::driver_at(self.size) + 4 + 2 * usize::from(index % self.size))
    }

    fn used_event(&self) -> &AtomicU16 {
        self.field(Self::driver_at(self.size) + 4 + 2 * usize::from(self.size))
    }

    fn used_flags(&self) -> &AtomicU16 {
        self.field(Self::device_at(self.size))
    }

    fn used_index(&self) -> &AtomicU16 {
        self.field(Self::device_at(self.size) + 2)
    }

    fn avail_event(&self) -> &AtomicU16 {
        self.field(Self::device_at(self.size) + 4 + 8 * usize::from(self.size))
    }

    /// Writes descriptor `index` of the table at `table`.
    fn describe(&self, table: usize, index: u16, descriptor: Descriptor) {
        let offset = table + usize::from(index) * DESCRIPTOR;
        debug_assert!(offset + DESCRIPTOR <= self.len);
        // SAFETY: within the queue's memory, aligned; the device does not read the descriptors of a free slot.
        unsafe { self.memory.add(offset).cast::<Descriptor>().write_volatile(descriptor) };
    }

    /// Offers request `slot`, which is free, as these buffers. The device is shown it by [`publish`](Self::publish).
    ///
    /// # Panics
    /// If the slot is not free, or there are more buffers than the shape says, or none.
    ///
    /// # Safety
    /// The buffers stay valid, and are not touched, until [`pop`](Self::pop) returns the slot.
    pub unsafe fn offer(&mut self, slot: u16, buffers: &[Buffer]) {
        assert!(!buffers.is_empty() && buffers.len() <= usize::from(self.shape.buffers), "too many buffers");
        let busy = core::mem::replace(&mut self.busy[usize::from(slot)], true);
        assert!(!busy, "slot {slot} is not free");
        let head = slot * self.stride;
        let indirect = self.shape.features & feature::INDIRECT_DESC != 0;
        let row = usize::from(slot) * usize::from(self.shape.buffers) * DESCRIPTOR;
        let (table, first) = if indirect { (Self::tables_at(self.size) + row, 0) } else { (0, head) };
        for (index, buffer) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if buffer.device_writes { WRITE } else { 0 };
            let next = if last { 0 } else { index + 1 };
            self.describe(table, index, Descriptor { address: buffer.address, len: buffer.len, flags, next });
        }
        if indirect {
            let address = (self.memory.expose_provenance().get() + table) as u64;
            let len = (buffers.len() * DESCRIPTOR) as u32;
            self.describe(0, head, Descriptor { address, len, flags: INDIRECT, next: 0 });
        }
        self.avail_entry(self.offered).store(head, Ordering::Relaxed);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows the device what was offered; whether it wants to be notified.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        if self.offered == self.published {
            return false;
        }
        self.avail_index().store(self.offered, Ordering::Release);
        fence(Ordering::SeqCst);
        let before = core::mem::replace(&mut self.published, self.offered);
        if self.event_idx() {
            let event = self.avail_event().load(Ordering::Relaxed);
            let since_event = self.offered.wrapping_sub(event).wrapping_sub(1);
            return since_event < self.offered.wrapping_sub(before);
        }
        self.used_flags().load(Ordering::Relaxed) & SUPPRESS == 0
    }

    /// Requests that were offered and not taken back.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.offered.wrapping_sub(self.taken)
    }

    /// Whether a finished request waits to be taken.
    #[must_use]
    pub fn has_finished(&self) -> bool {
        self.used_index().load(Ordering::Acquire) != self.taken
    }

    /// Takes a finished request back: its slot, and how many bytes the device says it wrote.
    ///
    /// # Errors
    /// The device returned what it did not have; the queue cannot be used any further.
    pub fn pop(&mut self) -> Result<Option<(u16, u32)>, Broken> {
        if !self.has_finished() {
            return Ok(None);
        }
        let offset = Self::device_at(self.size) + 4 + 8 * usize::from(self.taken % self.size);
        // SAFETY: within the queue's memory, aligned; the device wrote it before it moved the index.
        let [id, len] = unsafe { self.memory.add(offset).cast::<[u32; 2]>().read_volatile() };
        let slot =
            u16::try_from(id).ok().filter(|id| id.is_multiple_of(self.stride)).map(|id| id / self.stride);
        let busy = slot.and_then(|slot| self.busy.get_mut(usize::from(slot)));
        let (Some(slot), Some(busy @ true)) = (slot, busy) else { return Err(Broken(id)) };
        *busy = false;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some((slot, len)))
    }

    /// Asks for an interrupt at the next finished request; whether one is finished already, which no interrupt may tell.
    #[must_use]
    pub fn listen(&self) -> bool {
        self.listen_for(1)
    }

    /// Asks for an interrupt when `count` requests are finished, of those that the device has: at least 1, and at the
    /// next one without EVENT_IDX. Whether so many are already, which no interrupt may tell.
    #[must_use]
    pub fn listen_for(&self, count: u16) -> bool {
        if self.event_idx() {
            self.used_event().store(self.taken.wrapping_add(count.max(1) - 1), Ordering::Relaxed);
        } else {
            self.avail_flags().store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        let finished = self.used_index().load(Ordering::Acquire).wrapping_sub(self.taken);
        finished >= if self.event_idx() { count.max(1) } else { 1 }
    }

    /// Asks for no interrupts; the device may send some.
    pub fn hush(&self) {
        if self.event_idx() {
            self.used_event().store(self.taken.wrapping_sub(1), Ordering::Relaxed);
        } else {
            self.avail_flags().store(SUPPRESS, Ordering::Relaxed);
        }
    }
}
