//! The driver's side of a virtqueue, on rings in guest memory.

use std::sync::atomic::{Ordering, fence};

use ringlet_io::GuestRam;

use crate::virtio::spec::descriptor::{INDIRECT, NEXT, WRITE};

/// A part of guest memory that a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

impl Buffer {
    /// Memory for the device to read.
    pub const fn readable(gpa: u64, len: u32) -> Self {
        Self { gpa, len, writable: false }
    }

    /// Memory for the device to write.
    pub const fn writable(gpa: u64, len: u32) -> Self {
        Self { gpa, len, writable: true }
    }
}

/// A descriptor as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

impl Descriptor {
    /// Its 16 bytes.
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    /// A chain of buffers in consecutive descriptors from `first` on, of a table of `size`.
    pub fn chain(buffers: &[Buffer], first: u16, size: u16) -> Vec<(u16, Self)> {
        let last = buffers.len() - 1;
        let describe = |(n, buffer): (usize, &Buffer)| {
            let index = first.wrapping_add(n as u16) % size;
            let next = if n == last { 0 } else { first.wrapping_add(n as u16 + 1) % size };
            let flags = if n == last { 0 } else { NEXT } | if buffer.writable { WRITE } else { 0 };
            (index, Self { gpa: buffer.gpa, len: buffer.len, flags, next })
        };
        buffers.iter().enumerate().map(describe).collect()
    }
}

/// An entry of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// A queue as its driver has it.
#[derive(Debug, Clone)]
pub struct DriverQueue {
    /// The memory that the rings are in.
    pub ram: GuestRam,
    /// Number of the queue.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptors.
    pub descriptors: u64,
    /// Guest-physical address of the available ring.
    pub driver: u64,
    /// Guest-physical address of the used ring.
    pub device: u64,
    /// Entries offered so far.
    pub offered: u16,
    /// Entries of the used ring that were taken.
    pub taken: u16,
    /// Where the next chain is built.
    pub next_descriptor: u16,
}

impl DriverQueue {
    /// Bytes that the rings of one queue take at most, from `base` on.
    pub const SPAN: u64 = 0x4000;

    /// A queue whose rings are at `base` (a multiple of 4 KiB) and are cleared.
    pub fn new(ram: &GuestRam, index: u16, size: u16, base: u64) -> Self {
        ram.write(base, &[0; Self::SPAN as usize]).unwrap();
        Self {
            ram: ram.clone(),
            index,
            size,
            descriptors: base,
            driver: base + 0x1000,
            device: base + 0x2000,
            offered: 0,
            taken: 0,
            next_descriptor: 0,
        }
    }

    /// Writes one descriptor of the table.
    pub fn write(&self, index: u16, descriptor: Descriptor) {
        self.ram.write(self.descriptors + 16 * u64::from(index), &descriptor.bytes()).unwrap();
    }

    /// Writes a chain into the next descriptors; gives its head, which is not offered yet.
    pub fn build(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (index, descriptor) in Descriptor::chain(buffers, head, self.size) {
            self.write(index, descriptor);
        }
        self.next_descriptor = head.wrapping_add(buffers.len() as u16) % self.size;
        head
    }

    /// Writes a chain into an indirect table at `table`; gives the head of the chain that points to it.
    pub fn build_indirect(&mut self, buffers: &[Buffer], table: u64) -> u16 {
        for (index, descriptor) in Descriptor::chain(buffers, 0, u16::MAX) {
            self.ram.write(table + 16 * u64::from(index), &descriptor.bytes()).unwrap();
        }
        let head = self.next_descriptor;
        self.write(head, Descriptor { gpa: table, len: 16 * buffers.len() as u32, flags: INDIRECT, next: 0 });
        self.next_descriptor = (head + 1) % self.size;
        head
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        self.ram.write(self.driver + 4 + 2 * slot, &head.to_le_bytes()).unwrap();
        self.set_available(self.offered.wrapping_add(1));
    }

    /// Builds and offers a chain; gives its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.build(buffers);
        self.offer(head);
        head
    }

    /// Sets the index of the available ring.
    pub fn set_available(&mut self, index: u16) {
        fence(Ordering::SeqCst);
        self.ram.write(self.driver + 2, &index.to_le_bytes()).unwrap();
        fence(Ordering::SeqCst);
        self.offered = index;
    }

    /// Sets or clears the flag that asks for no interrupts.
    pub fn set_no_interrupt(&self, wanted: bool) {
        self.ram.write(self.driver, &u16::from(wanted).to_le_bytes()).unwrap();
        fence(Ordering::SeqCst);
    }

    /// EVENT_IDX: asks for an interrupt once the used index passes `event`.
    pub fn set_used_event(&self, event: u16) {
        self.ram.write(self.driver + 4 + 2 * u64::from(self.size), &event.to_le_bytes()).unwrap();
        fence(Ordering::SeqCst);
    }

    /// EVENT_IDX: up to where the device wants no notification.
    pub fn available_event(&self) -> u16 {
        self.read_u16(self.device + 4 + 8 * u64::from(self.size))
    }

    /// Flags of the used ring: 1 if the device wants no notification.
    pub fn used_flags(&self) -> u16 {
        self.read_u16(self.device)
    }

    /// Index of the used ring.
    pub fn used_index(&self) -> u16 {
        let index = self.read_u16(self.device + 2);
        fence(Ordering::SeqCst);
        index
    }

    /// Takes the next used entry, if there is one.
    pub fn take_used(&mut self) -> Option<Used> {
        if self.used_index() == self.taken {
            return None;
        }
        let at = self.device + 4 + 8 * u64::from(self.taken % self.size);
        self.taken = self.taken.wrapping_add(1);
        let head = self.ram.read_u32(at).unwrap();
        Some(Used { head: u16::try_from(head).unwrap(), len: self.ram.read_u32(at + 4).unwrap() })
    }

    fn read_u16(&self, gpa: u64) -> u16 {
        let mut bytes = [0; 2];
        self.ram.read(gpa, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }
}
