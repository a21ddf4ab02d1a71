//! Virtio devices over MMIO: where they are, their transport, and their interrupts.
//!
//! The transport and the drivers for simple devices are those of the crate `virtio-drivers`, here as [`drivers`].
//! [`Ring`] is a queue for many requests at once, on the same transport. Nothing here is touched before the program
//! asks: a guest without virtio pays nothing.

#[cfg(any(feature = "net", feature = "vsock"))]
mod buffers;
mod ring;

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::ptr::{NonNull, with_exposed_provenance_mut};

#[cfg(any(feature = "net", feature = "vsock"))]
pub(crate) use buffers::Buffers;
pub use ring::{Broken, Buffer, Ring, Shape};
pub use virtio_drivers as drivers;
use virtio_drivers::transport::mmio::{MmioError, MmioTransport};
use virtio_drivers::transport::{DeviceStatus, Transport as _};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::boot::Context;
use crate::ioapic::Trigger;
use crate::memory::Span;
use crate::{cmdline, interrupts, ioapic, lapic, mmio, paging};

/// The registers of a device.
pub type Transport = MmioTransport<'static>;

/// What `MagicValue` reads: "virt".
const MAGIC: u32 = 0x7472_6976;
/// The version of the transport that is not legacy.
const VERSION: u32 = 2;
/// Where the processor takes the interrupt of pin 0; the other pins follow.
const FIRST_LINE_VECTOR: u8 = 0x50;
/// Pins that get a vector of their own.
const LINES: u32 = 0x40;

/// Register offsets (virtio 1.2, 4.2.2).
pub mod register {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const SHM_SEL: u64 = 0x0ac;
    pub const SHM_LEN: u64 = 0x0b0;
    pub const SHM_BASE: u64 = 0x0b8;
    pub const QUEUE_RESET: u64 = 0x0c0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Features that do not depend on the device (virtio 1.2, 6).
pub mod feature {
    /// Chains may be in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Each side says at which index it wants to be told.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The device is not a legacy one.
    pub const VERSION_1: u64 = 1 << 32;
    /// A queue can be reset by itself.
    pub const RING_RESET: u64 = 1 << 40;
}

/// Where the command line says that a device may be: `virtio_mmio.device=SIZE@ADDR:IRQ`, as Linux has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// First byte of its registers.
    pub address: u64,
    /// Size of its registers in bytes.
    pub size: u64,
    /// Pin of the I/O APIC.
    pub pin: u32,
}

impl Slot {
    /// Reads `SIZE@ADDR:IRQ`, and ignores the number that may follow. Sizes below that of the registers, and addresses
    /// that are not aligned, are nobody's.
    fn parse(text: &str) -> Option<Self> {
        let (size, place) = text.split_once('@')?;
        let mut place = place.split(':');
        let slot = Self {
            size: cmdline::size(size)?,
            address: cmdline::size(place.next()?)?,
            pin: u32::try_from(cmdline::size(place.next()?)?).ok()?,
        };
        (slot.size >= register::CONFIG && slot.address.is_multiple_of(8)).then_some(slot)
    }

    /// Reads a register.
    #[must_use]
    pub fn read(self, offset: u64) -> u32 {
        // SAFETY: a register of the device that the command line names; reading one changes no memory.
        unsafe { mmio::read(self.address + offset) }
    }

    /// Writes a register.
    ///
    /// # Safety
    /// The device may be made to write memory that Rust uses.
    pub unsafe fn write(self, offset: u64, value: u32) {
        // SAFETY: the caller's promise.
        unsafe { mmio::write(self.address + offset, value) };
    }

    /// The type of the device (virtio 1.2, 5); `None` if there is none, or only a legacy one.
    #[must_use]
    pub fn device(self) -> Option<u32> {
        let ours = self.read(register::MAGIC_VALUE) == MAGIC && self.read(register::VERSION) == VERSION;
        Some(self.read(register::DEVICE_ID)).filter(|&id| ours && id != 0)
    }

    /// The transport of the device. Dropping it resets the device.
    ///
    /// # Errors
    /// There is no device, or none that `virtio-drivers` knows.
    pub fn open(self) -> Result<Transport, MmioError> {
        paging::map(Span::of(self.address, self.size));
        let header = NonNull::new(with_exposed_provenance_mut(self.address as usize))
            .ok_or(MmioError::MmioRegionTooSmall)?;
        // SAFETY: registers of a device, mapped, aligned (checked by `parse`), and there for good.
        unsafe { Transport::new(header, self.size as usize) }
    }

    /// Has the device's interrupts sent to this processor.
    #[must_use]
    pub fn line(self) -> Line {
        let line = Line { vector: FIRST_LINE_VECTOR + (self.pin % LINES) as u8, slot: self };
        ioapic::route(self.pin, line.vector, lapic::id() as u8, Trigger::Edge);
        line
    }
}

/// The places of devices, in the command line's order.
pub fn slots(context: &Context) -> impl Iterator<Item = Slot> + use<> {
    cmdline::words(context.cmdline())
        .filter_map(|word| Slot::parse(word.strip_prefix("virtio_mmio.device=")?))
}

/// The places where there is a device of this type (virtio 1.2, 5).
pub fn find(context: &Context, device: u32) -> impl Iterator<Item = Slot> + use<> {
    slots(context).filter(move |slot| slot.device() == Some(device))
}

/// The interrupt line of a device, on this processor.
#[derive(Debug)]
pub struct Line {
    vector: u8,
    slot: Slot,
}

impl Line {
    /// Halts until an interrupt came, of this line or another (a timer's); returns how many came on this line. That
    /// buffers were used is acknowledged, so they must be looked for after this call.
    #[must_use]
    pub fn wait(&self) -> u32 {
        interrupts::wait();
        let taken = self.take();
        if taken > 0 {
            self.acknowledge();
        }
        taken
    }

    /// How many interrupts came on this line since the last call.
    #[must_use]
    pub fn take(&self) -> u32 {
        interrupts::take(self.vector)
    }

    /// Acknowledges used buffers, without asking first whether there are any: that would be an exit.
    fn acknowledge(&self) {
        // SAFETY: tells the device that the driver knows; no memory is involved.
        unsafe { self.slot.write(register::INTERRUPT_ACK, 1) };
    }

    /// Acknowledges that the configuration changed: before it is looked at. Until then, a device whose line stays up
    /// while anything is to be acknowledged interrupts no more.
    pub fn acknowledge_change(&self) {
        // SAFETY: as above.
        unsafe { self.slot.write(register::INTERRUPT_ACK, 2) };
    }
}

/// Why a device did not come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// The device does not accept these features.
    Features(
        /// What it offered.
        u64,
    ),
}

/// Resets the device and negotiates: takes those of `wanted` that it offers, and returns them. Queues come next, then
/// [`finish`].
///
/// # Errors
/// The device is a legacy one, or refuses what it offered.
pub fn negotiate(transport: &mut Transport, wanted: u64) -> Result<u64, SetupError> {
    const BEGUN: DeviceStatus = DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER);
    transport.set_status(DeviceStatus::empty());
    transport.set_status(BEGUN);
    let offered = transport.read_device_features();
    let taken = offered & (wanted | feature::VERSION_1);
    transport.write_driver_features(taken);
    transport.set_status(BEGUN | DeviceStatus::FEATURES_OK);
    let accepted = transport.get_status().contains(DeviceStatus::FEATURES_OK);
    if accepted && taken & feature::VERSION_1 != 0 { Ok(taken) } else { Err(SetupError::Features(offered)) }
}

/// Sets the device going: [`negotiate`] was done and its queues are set up.
pub fn finish(transport: &mut Transport) {
    transport.finish_init();
}

/// What `virtio-drivers` needs of its surroundings: memory of the heap, at addresses that mean the same to the device.
#[derive(Debug)]
pub struct GuestHal;

fn pages(count: usize) -> Option<Layout> {
    Layout::from_size_align(count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok().filter(|layout| layout.size() > 0)
}

// SAFETY: memory is the heap's, page-aligned, zeroed, exclusive until freed; the address space is an identity mapping.
unsafe impl Hal for GuestHal {
    fn dma_alloc(count: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: `pages` yields no empty layout.
        let start = pages(count).and_then(|layout| NonNull::new(unsafe { alloc_zeroed(layout) }));
        start.map_or((0, NonNull::dangling()), |start| (start.expose_provenance().get() as u64, start))
    }

    unsafe fn dma_dealloc(_: PhysAddr, start: NonNull<u8>, count: usize) -> i32 {
        let Some(layout) = pages(count) else { return -1 };
        // SAFETY: `dma_alloc` allocated it with this layout.
        unsafe { dealloc(start.as_ptr(), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, size: usize) -> NonNull<u8> {
        paging::map(Span::of(address, size as u64));
        NonNull::new(with_exposed_provenance_mut(address as usize)).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().expose_provenance().get() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
