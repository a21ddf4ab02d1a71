//! Port and MMIO buses: which device answers at which address.
//!
//! Owns the map from address ranges to devices, and what a guest sees where nothing answers: reads give
//! all-ones, writes go nowhere, both are counted and guest-logged. Never holds a lock: a bus is built
//! before the VM runs and only read afterwards; each device guards itself.

use std::fmt;
use std::sync::Arc;

use ringlet_metrics::{GuestErrorKind, GuestLog, guest_error};

use crate::error::GuestError;

/// What the vCPU thread has to do after an access, once every lock is released.
#[must_use = "an access may ask for something to be done"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing: run the guest again.
    None,
    /// The serial output is full and the byte was not taken: wait until there is room, then repeat the
    /// very same access.
    WaitForSerial,
    /// The guest ended with this exit code.
    Exit(u32),
    /// The guest asked for a reset.
    Reset,
    /// The guest says that it is up.
    Ready,
    /// The interrupt routes changed: install them ([`Ioapic::install_routes`](crate::Ioapic::install_routes)).
    Routes,
    /// The shard has something to do first: wait for it, as [`Wait`] says.
    Wait(Wait),
}

/// What a vCPU does when its wait for the shard is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The access is done: run the guest again.
    Done,
    /// The access was not taken, because another vCPU's is under way: make the very same access again.
    Repeat,
}

/// A vCPU's wait for its shard. The device calls the wake-up function that it was given whenever
/// [`Wait::is_over`] may have become true; a shard that has gone also makes it true.
#[derive(Clone)]
pub struct Wait {
    over: Arc<dyn Fn() -> bool + Send + Sync>,
    then: Then,
}

impl Wait {
    /// A wait until `over` is true. `over` is called with no lock of the device held, and must not wait.
    pub fn new(over: Arc<dyn Fn() -> bool + Send + Sync>, then: Then) -> Self {
        Self { over, then }
    }

    /// True once the vCPU may go on; stays true.
    pub fn is_over(&self) -> bool {
        (self.over)()
    }

    /// What the vCPU does then.
    pub const fn then(&self) -> Then {
        self.then
    }
}

impl PartialEq for Wait {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.over, &other.over) && self.then == other.then
    }
}

impl Eq for Wait {}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("over", &self.is_over()).field("then", &self.then).finish()
    }
}

/// A device on a bus. Called by vCPU threads, any number of them at once.
pub trait BusDevice: Send + Sync {
    /// Name for logs.
    fn name(&self) -> &str;

    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` bytes from the start of the device, little-endian.
    /// The whole access lies inside the device's range. On an error the contents of `data` do not matter.
    ///
    /// # Errors
    /// What the guest did wrong; the bus answers all-ones, counts and logs it.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<Action, GuestError>;

    /// Writes `data.len()` bytes (1, 2, 4 or 8) at `offset` bytes from the start of the device, little-endian.
    /// The whole access lies inside the device's range.
    ///
    /// # Errors
    /// What the guest did wrong; the bus counts and logs it.
    fn write(&self, offset: u64, data: &[u8]) -> Result<Action, GuestError>;
}

/// Which address space a bus serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusKind {
    /// x86 I/O ports, 0 to 0xFFFF.
    Port,
    /// Guest-physical addresses.
    Mmio,
}

impl BusKind {
    /// Highest address of the space.
    const fn last(self) -> u64 {
        match self {
            Self::Port => 0xFFFF,
            Self::Mmio => u64::MAX,
        }
    }

    /// How an access that no device claims is counted.
    const fn unknown(self) -> GuestErrorKind {
        match self {
            Self::Port => GuestErrorKind::UnknownPort,
            Self::Mmio => GuestErrorKind::UnknownMmio,
        }
    }
}

impl fmt::Display for BusKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "port",
            Self::Mmio => "address",
        })
    }
}

/// Why a device cannot be put on a bus. A mistake of whoever assembles the VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or leaves the address space.
    #[error("{device}: range {base:#x}+{len:#x} is empty or outside the {kind} space")]
    Range {
        /// Name of the device.
        device: String,
        /// First address.
        base: u64,
        /// Length in bytes (ports).
        len: u64,
        /// The address space.
        kind: BusKind,
    },
    /// Another device is there already.
    #[error("{device}: range {base:#x}+{len:#x} overlaps {other}")]
    Overlap {
        /// Name of the device.
        device: String,
        /// First address.
        base: u64,
        /// Length in bytes (ports).
        len: u64,
        /// Name of the device that is there.
        other: String,
    },
}

/// One device's place; `last` is inclusive so that a range may end at the top of the space.
struct Range {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address: sorted, disjoint ranges.
pub struct Bus {
    kind: BusKind,
    ranges: Vec<Range>,
}

impl Bus {
    /// An empty bus.
    pub const fn new(kind: BusKind) -> Self {
        Self { kind, ranges: Vec::new() }
    }

    /// Puts `device` at the addresses `base` to `base + len - 1`. The same device may have several ranges;
    /// offsets count from the start of each.
    ///
    /// # Errors
    /// If the range is empty, leaves the address space, or overlaps another device's.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let name = || device.name().to_owned();
        let last = len.checked_sub(1).and_then(|rest| base.checked_add(rest));
        let Some(last) = last.filter(|last| *last <= self.kind.last()) else {
            return Err(BusError::Range { device: name(), base, len, kind: self.kind });
        };
        let index = self.ranges.partition_point(|range| range.last < base);
        if let Some(next) = self.ranges.get(index).filter(|next| next.base <= last) {
            return Err(BusError::Overlap {
                device: name(),
                base,
                len,
                other: next.device.name().to_owned(),
            });
        }
        self.ranges.insert(index, Range { base, last, device });
        Ok(())
    }

    /// A read by the guest: fills `data` (1, 2, 4 or 8 bytes) in any case, with all-ones if nothing accepts
    /// the access.
    pub fn read(&self, addr: u64, data: &mut [u8], log: &GuestLog) -> Action {
        let width = data.len();
        let Some((range, offset)) = self.find(addr, width) else {
            data.fill(0xFF);
            let kind = self.unclaimed(width);
            guest_error!(log, kind, "read of {} bytes at {} {addr:#x}: no device", width, self.kind);
            return Action::None;
        };
        range.device.read(offset, data).unwrap_or_else(|error| {
            data.fill(0xFF);
            let name = range.device.name();
            guest_error!(
                log,
                error.kind(),
                "{name}: read of {width} bytes at {} {addr:#x}: {error}",
                self.kind
            );
            error.action()
        })
    }

    /// A write by the guest of `data` (1, 2, 4 or 8 bytes); ignored if nothing accepts it.
    pub fn write(&self, addr: u64, data: &[u8], log: &GuestLog) -> Action {
        let width = data.len();
        let Some((range, offset)) = self.find(addr, width) else {
            let (kind, value) = (self.unclaimed(width), Value(data));
            guest_error!(log, kind, "write of {value} ({width} bytes) at {} {addr:#x}: no device", self.kind);
            return Action::None;
        };
        range.device.write(offset, data).unwrap_or_else(|error| {
            let (name, value) = (range.device.name(), Value(data));
            guest_error!(
                log,
                error.kind(),
                "{name}: write of {value} ({width} bytes) at {} {addr:#x}: {error}",
                self.kind
            );
            error.action()
        })
    }

    /// The range that holds the whole access, and the offset in it. An access that runs over the end of a
    /// device, or around the end of the address space, is nobody's.
    fn find(&self, addr: u64, width: usize) -> Option<(&Range, u64)> {
        if !known_width(width) {
            return None;
        }
        let last = addr.checked_add(width as u64 - 1)?;
        let range = self.ranges.get(self.ranges.partition_point(|range| range.last < addr))?;
        (range.base <= addr && last <= range.last).then_some((range, addr.wrapping_sub(range.base)))
    }

    /// How an access that [`Bus::find`] did not place is counted.
    const fn unclaimed(&self, width: usize) -> GuestErrorKind {
        if known_width(width) { self.kind.unknown() } else { GuestErrorKind::BadWidth }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.ranges.iter();
        let entries =
            entries.map(|range| (format!("{:#x}..={:#x}", range.base, range.last), range.device.name()));
        f.debug_map().entries(entries).finish()
    }
}

/// The widths in bytes that an x86 processor accesses.
const fn known_width(width: usize) -> bool {
    matches!(width, 1 | 2 | 4 | 8)
}

/// Little-endian bytes printed as a number; at most the first 8.
pub(crate) struct Value<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0.iter().take(8).rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        write!(f, "{value:#x}")
    }
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;
