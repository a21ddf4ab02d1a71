//! Kernel image and guest RAM to initial vCPU state.
//!
//! Owns the boot protocols (PVH and the Linux 64-bit entry), the guest-physical [`layout`], page tables,
//! GDT, initial registers, the CPUID policy and the encoding of guest arguments. Everything here is a pure
//! function of its arguments: bytes in, bytes in guest RAM and registers out. Never runs anything, never
//! talks to KVM, never trusts an image.

pub mod args;
pub mod cmdline;
pub mod cpuid;
mod elf;
mod file;
mod initrd;
mod kernel;
pub mod layout;
mod load;
mod paging;
mod params;
mod regs;
#[cfg(test)]
mod testing;

pub use cmdline::CmdlineError;
pub use cpuid::{Backend, CpuidContext};
pub use initrd::{INITRD_MAX, Initrd};
pub use kernel::{IMAGE_MAX, Image, ImageError, Protocol};
pub use load::{BootError, BootRequest, VcpuInit, load};
pub use regs::{BOOT_MSRS, SregsInit};
