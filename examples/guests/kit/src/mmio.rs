//! Memory-mapped registers, at their physical addresses.

use core::ptr::with_exposed_provenance_mut;

use crate::memory::Span;
use crate::paging;

/// A type that a register may have.
pub trait Register: Copy + sealed::Sealed {}

impl Register for u8 {}
impl Register for u16 {}
impl Register for u32 {}
impl Register for u64 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// A pointer to the register, mapped if it was not. Addresses beyond 64 GiB are not reached: the access faults.
fn pointer<T: Register>(address: u64) -> *mut T {
    if !paging::is_mapped(address) {
        paging::map(Span::of(address, size_of::<T>() as u64));
    }
    with_exposed_provenance_mut(address as usize)
}

/// Reads a register.
///
/// # Safety
/// `address` must be a device register, or memory that Rust does not use; reading it may have effects.
#[must_use]
pub unsafe fn read<T: Register>(address: u64) -> T {
    // SAFETY: mapped above; the rest is the caller's promise. Registers are read by one access of their width.
    unsafe { pointer::<T>(address).read_volatile() }
}

/// Writes a register.
///
/// # Safety
/// `address` must be a device register, or memory that Rust does not use; what the device then does is the caller's
/// affair.
pub unsafe fn write<T: Register>(address: u64, value: T) {
    // SAFETY: as in `read`.
    unsafe { pointer::<T>(address).write_volatile(value) };
}
