//! One redirection entry and the MSI that it stands for.
//!
//! Owns the bit layout of 82093AA, section 3.2.4, and of the MSI address and data of the Intel SDM, volume
//! 3, section 11.11. Pure arithmetic.

/// Delivery modes that are served.
const MODE_FIXED: u8 = 0;
const MODE_LOWEST_PRIORITY: u8 = 1;

const VECTOR: u64 = 0xFF;
const MODE_SHIFT: u32 = 8;
const MODE_MASK: u64 = 0b111;
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION_SHIFT: u32 = 56;

/// Bits that a guest can write: all but delivery status (12), remote-IRR (14) and the reserved 17 to 55.
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

/// First vector that a local APIC accepts in an MSI; those below are reserved for the processor.
const FIRST_VECTOR: u8 = 16;

const MSI_ADDRESS: u64 = 0xFEE0_0000;
const MSI_DESTINATION_SHIFT: u32 = 12;
const MSI_REDIRECTION_HINT: u64 = 1 << 3;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_ASSERT: u32 = 1 << 14;
const MSI_LEVEL: u32 = 1 << 15;

/// Where a pin's interrupts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Msi {
    pub(super) address: u64,
    pub(super) data: u32,
}

/// Why an unmasked entry delivers nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The delivery mode is neither fixed nor lowest priority.
    Mode(u8),
    /// The vector is below 16.
    Vector(u8),
}

/// A redirection entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Entry {
    /// After reset: masked, everything else 0.
    pub(super) const RESET: Self = Self(MASKED);

    /// All bits, as a guest reads them.
    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    /// An entry from saved bits; `None` if it has a bit that no entry can have.
    pub(super) const fn from_saved(bits: u64) -> Option<Self> {
        let entry = Self(bits);
        let possible = bits & !(WRITABLE | REMOTE_IRR) == 0 && (entry.is_level() || !entry.remote_irr());
        if possible { Some(entry) } else { None }
    }

    /// The entry after a guest wrote one of its 32-bit halves. Read-only and reserved bits keep their
    /// values, and an edge entry has no remote-IRR.
    pub(super) const fn written(self, high: bool, value: u32) -> Self {
        let shift = if high { 32 } else { 0 };
        let mask = WRITABLE & (0xFFFF_FFFF << shift);
        let entry = Self(self.0 & !mask | (value as u64) << shift & mask);
        if entry.is_level() { entry } else { entry.with_remote_irr(false) }
    }

    /// The entry with remote-IRR as given.
    pub(super) const fn with_remote_irr(self, set: bool) -> Self {
        Self(if set { self.0 | REMOTE_IRR } else { self.0 & !REMOTE_IRR })
    }

    /// A level interrupt was delivered and the guest has not ended it.
    pub(super) const fn remote_irr(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    /// Level-triggered (else edge-triggered).
    pub(super) const fn is_level(self) -> bool {
        self.0 & LEVEL != 0
    }

    pub(super) const fn vector(self) -> u8 {
        (self.0 & VECTOR) as u8
    }

    const fn mode(self) -> u8 {
        (self.0 >> MODE_SHIFT & MODE_MASK) as u8
    }

    /// Why the entry delivers nothing although it is unmasked.
    pub(super) const fn refused(self) -> Option<Refused> {
        if self.0 & MASKED != 0 {
            None
        } else if !matches!(self.mode(), MODE_FIXED | MODE_LOWEST_PRIORITY) {
            Some(Refused::Mode(self.mode()))
        } else if self.vector() < FIRST_VECTOR {
            Some(Refused::Vector(self.vector()))
        } else {
            None
        }
    }

    /// The message that the entry stands for; `None` if it is masked or refused. Polarity does not matter
    /// here: a device asserts its line or does not.
    pub(super) fn msi(self) -> Option<Msi> {
        if self.0 & MASKED != 0 || self.refused().is_some() {
            return None;
        }
        let mut address = MSI_ADDRESS | (self.0 >> DESTINATION_SHIFT) << MSI_DESTINATION_SHIFT;
        if self.0 & LOGICAL != 0 {
            address |= MSI_LOGICAL;
        }
        if self.mode() == MODE_LOWEST_PRIORITY {
            address |= MSI_REDIRECTION_HINT;
        }
        let trigger = if self.is_level() { MSI_LEVEL | MSI_ASSERT } else { 0 };
        Some(Msi { address, data: u32::from(self.vector()) | u32::from(self.mode()) << MODE_SHIFT | trigger })
    }
}
