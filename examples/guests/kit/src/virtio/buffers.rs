//! Memory that packets lie in: one piece of the same size for each slot of a queue. For drivers of packets only, the
//! network's and the socket's.

use alloc::alloc::{Layout, alloc};
use core::ptr::NonNull;
use core::slice;

use super::Buffer;

/// The memory of a queue's packets: the device's for good, as the queue is.
#[derive(Debug)]
pub(crate) struct Buffers {
    start: NonNull<u8>,
    count: u16,
    size: usize,
}

// SAFETY: owns its memory; nothing is tied to a processor.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Memory for `count` packets of `size` bytes, not touched: pages that no packet reaches cost the host nothing.
    pub(crate) fn new(count: u16, size: usize) -> Option<Self> {
        let layout = Layout::from_size_align(usize::from(count) * size, 4096).ok()?;
        if layout.size() == 0 {
            return None;
        }
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        start.expose_provenance();
        Some(Self { start, count, size })
    }

    /// Bytes of each.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// The first `len` bytes of a buffer, for a queue.
    pub(crate) fn describe(&self, slot: u16, len: usize, device_writes: bool) -> Buffer {
        debug_assert!(len <= self.size);
        Buffer { address: self.at(slot).addr().get() as u64, len: len as u32, device_writes }
    }

    /// The first byte of a buffer. Nothing is there that was not written: see [`blank`](Self::blank).
    #[cfg(feature = "vsock")]
    pub(crate) fn start(&self, slot: u16) -> *mut u8 {
        self.at(slot).as_ptr()
    }

    fn at(&self, slot: u16) -> NonNull<u8> {
        assert!(slot < self.count, "no such buffer");
        // SAFETY: within the allocation.
        unsafe { self.start.add(usize::from(slot) * self.size) }
    }

    /// What the device wrote.
    ///
    /// # Safety
    /// The device has written the first `len` bytes of this buffer, and has given it back.
    pub(crate) unsafe fn written(&self, slot: u16, len: usize) -> &[u8] {
        // SAFETY: within the buffer; the rest is the caller's promise.
        unsafe { slice::from_raw_parts(self.at(slot).as_ptr(), len.min(self.size)) }
    }

    /// The first `len` bytes, to be changed.
    ///
    /// # Safety
    /// The device does not have this buffer, and so much of it was written or blanked.
    #[cfg(feature = "net")]
    pub(crate) unsafe fn ours(&mut self, slot: u16, len: usize) -> &mut [u8] {
        // SAFETY: within the buffer; the rest is the caller's promise.
        unsafe { slice::from_raw_parts_mut(self.at(slot).as_ptr(), len.min(self.size)) }
    }

    /// All of a buffer, to be changed, and the first bytes of another one.
    ///
    /// # Safety
    /// The device has neither, and both were written or blanked, so far as they are given.
    #[cfg(feature = "net")]
    pub(crate) unsafe fn pair(&mut self, slot: u16, (other, len): (u16, usize)) -> (&mut [u8], &[u8]) {
        assert!(slot != other, "one buffer twice");
        // SAFETY: within two different buffers; the rest is the caller's promise.
        unsafe { (slice::from_raw_parts_mut(self.at(slot).as_ptr(), self.size), self.written(other, len)) }
    }

    /// Zeroes all behind the first `len` bytes.
    ///
    /// # Safety
    /// The device does not have this buffer.
    #[cfg(feature = "net")]
    pub(crate) unsafe fn blank_rest(&mut self, slot: u16, len: usize) {
        let len = len.min(self.size);
        // SAFETY: within the buffer, which is nobody else's by the caller's promise.
        unsafe { self.at(slot).add(len).write_bytes(0, self.size - len) };
    }

    /// The first `len` bytes to write, zeroed.
    ///
    /// # Safety
    /// The device does not have this buffer.
    pub(crate) unsafe fn blank(&mut self, slot: u16, len: usize) -> &mut [u8] {
        let len = len.min(self.size);
        // SAFETY: within the buffer, which is nobody else's by the caller's promise.
        unsafe {
            self.at(slot).write_bytes(0, len);
            slice::from_raw_parts_mut(self.at(slot).as_ptr(), len)
        }
    }
}
