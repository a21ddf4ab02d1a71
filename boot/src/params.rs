//! What a guest is told at its entry: `boot_params` (Linux 64-bit) or `hvm_start_info` (PVH).
//!
//! Owns the memory map and both structures; they are written by linux-loader's configurators.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams, Error as ConfiguratorError};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use ringlet_io::GuestRam;
use vm_memory::GuestAddress;

use crate::layout::{
    BOOT_PARAMS_ADDR, CMDLINE_ADDR, CMDLINE_SIZE, IMAGE_START, LOW_RAM_END, MEMMAP_ADDR, MODLIST_ADDR,
    START_INFO_ADDR,
};

/// Type of a memory-map entry, the same number in e820 and PVH tables (ACPI 6.5 table 15.374).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MemoryKind {
    Ram = 1,
    Reserved = 2,
}

/// One entry of the memory map that a guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryRange {
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) kind: MemoryKind,
}

/// What the guest finds besides its image.
#[derive(Debug, Clone)]
pub(crate) struct GuestInfo {
    pub(crate) memory: Vec<MemoryRange>,
    /// Length of the command line without its NUL.
    pub(crate) cmdline_len: usize,
    /// Address and length; below 4 GiB.
    pub(crate) initrd: Option<(u32, u32)>,
}

/// The memory map of a VM with RAM from 0 to `low_end` (above 1 MiB) and the given regions above 4 GiB.
pub(crate) fn memory_map(low_end: u64, high: &[(u64, u64)]) -> Vec<MemoryRange> {
    let range = |addr, end: u64, kind| MemoryRange { addr, len: end.saturating_sub(addr), kind };
    let mut map = vec![
        range(0, LOW_RAM_END, MemoryKind::Ram),
        range(LOW_RAM_END, IMAGE_START, MemoryKind::Reserved),
        range(IMAGE_START, low_end, MemoryKind::Ram),
    ];
    map.extend(high.iter().map(|&(addr, len)| MemoryRange { addr, len, kind: MemoryKind::Ram }));
    map
}

/// Writes the zero page.
pub(crate) fn write_linux64(ram: &GuestRam, info: &GuestInfo) -> Result<(), ConfiguratorError> {
    let params = BootParams::new(&linux64(info), GuestAddress(BOOT_PARAMS_ADDR));
    LinuxBootConfigurator::write_bootparams(&params, ram.memory())
}

fn linux64(info: &GuestInfo) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = 0xAA55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    // "Undefined" boot loader (Linux Documentation/arch/x86/boot.rst, type_of_loader).
    params.hdr.type_of_loader = 0xFF;
    params.hdr.kernel_alignment = 0x20_0000;
    params.hdr.cmd_line_ptr = CMDLINE_ADDR as u32;
    params.hdr.cmdline_size = info.cmdline_len.min(CMDLINE_SIZE as usize - 1) as u32;
    if let Some((addr, len)) = info.initrd {
        params.hdr.ramdisk_image = addr;
        params.hdr.ramdisk_size = len;
    }
    let mut table = params.e820_table;
    let mut entries = 0;
    for (slot, range) in table.iter_mut().zip(&info.memory) {
        *slot = boot_e820_entry { addr: range.addr, size: range.len, r#type: range.kind as u32 };
        entries += 1;
    }
    params.e820_table = table;
    params.e820_entries = entries;
    params
}

/// Writes the start info, its memory map and its module list.
pub(crate) fn write_pvh(ram: &GuestRam, info: &GuestInfo) -> Result<(), ConfiguratorError> {
    let memmap: Vec<hvm_memmap_table_entry> = info.memory.iter().map(memmap_entry).collect();
    let mut start = hvm_start_info {
        magic: 0x336E_C578,
        version: 1,
        cmdline_paddr: CMDLINE_ADDR,
        memmap_paddr: MEMMAP_ADDR,
        memmap_entries: memmap.len() as u32,
        ..Default::default()
    };
    let module = info.initrd.map(|(addr, len)| hvm_modlist_entry {
        paddr: u64::from(addr),
        size: u64::from(len),
        ..Default::default()
    });
    if module.is_some() {
        start.nr_modules = 1;
        start.modlist_paddr = MODLIST_ADDR;
    }
    let mut params = BootParams::new(&start, GuestAddress(START_INFO_ADDR));
    params.set_sections(&memmap, GuestAddress(MEMMAP_ADDR));
    if let Some(module) = module {
        params.set_modules(&[module], GuestAddress(MODLIST_ADDR));
    }
    PvhBootConfigurator::write_bootparams(&params, ram.memory())
}

fn memmap_entry(range: &MemoryRange) -> hvm_memmap_table_entry {
    hvm_memmap_table_entry { addr: range.addr, size: range.len, type_: range.kind as u32, reserved: 0 }
}

#[cfg(test)]
#[path = "params_test.rs"]
mod tests;
