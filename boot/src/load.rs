//! Loading: one validated image and one request into one VM's fresh RAM.
//!
//! Everything is checked before the first byte is written, so a failed load leaves RAM untouched (unless RAM
//! itself fails).

use kvm_bindings::kvm_regs;
use linux_loader::configurator::Error as ConfiguratorError;
use linux_loader::loader::Error as LoaderError;
use ringlet_io::{GuestRam, RamError};

use crate::cmdline::{self, CmdlineError};
use crate::initrd::Initrd;
use crate::kernel::{Image, Protocol};
use crate::layout::{
    CMDLINE_ADDR, IMAGE_START, MAX_VCPUS, MEMMAP_MAX, MMIO_GAP_END, MMIO_GAP_START, PAGE_SIZE,
};
use crate::params::{self, GuestInfo};
use crate::regs::SregsInit;
use crate::{paging, regs};

/// What to boot and with which parameters.
#[derive(Debug, Clone, Copy)]
pub struct BootRequest<'a> {
    /// The image.
    pub image: &'a Image,
    /// Entry to use; `None` is [`Image::protocol`].
    pub protocol: Option<Protocol>,
    /// Options for the guest: printable ASCII, without the word `--` and with an even number of `"`.
    pub cmdline: &'a str,
    /// Arguments for the guest, any text; they follow the options, encoded as [`crate::args`] says.
    pub args: &'a [String],
    /// Initial RAM disk; placed at the top of low RAM.
    pub initrd: Option<&'a Initrd>,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
}

/// State of the boot vCPU at the guest's first instruction. Further vCPUs wait for a start-up IPI and need only
/// [`BOOT_MSRS`](crate::BOOT_MSRS) and their CPUID.
#[derive(Debug, Clone, PartialEq)]
pub struct VcpuInit {
    /// The entry that was taken.
    pub protocol: Protocol,
    /// General registers, for KVM_SET_REGS.
    pub regs: kvm_regs,
    /// Special registers, to be applied between KVM_GET_SREGS and KVM_SET_SREGS.
    pub sregs: SregsInit,
}

/// Why an image cannot be loaded into a VM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The image has no such entry.
    #[error("{image}: it has no {} entry", protocol.as_str())]
    Protocol {
        /// The image.
        image: String,
        /// The protocol that was asked for.
        protocol: Protocol,
    },
    /// The number of vCPUs is out of range.
    #[error("{vcpus} vCPUs; a VM has between 1 and {MAX_VCPUS}")]
    Vcpus {
        /// The number asked for.
        vcpus: u32,
    },
    /// RAM is not laid out as [`crate::layout`] says.
    #[error("guest RAM region {gpa:#x}+{len:#x}: {rule}")]
    RamLayout {
        /// Guest-physical start of the region.
        gpa: u64,
        /// Its length in bytes.
        len: u64,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The image does not fit into RAM.
    #[error(
        "{image}: program header {segment} ends at {end:#x}; low RAM ends at {ram_end:#x} (give the VM more memory)"
    )]
    ImageTooLarge {
        /// The image.
        image: String,
        /// Index of the program header.
        segment: u16,
        /// One past the last byte of its segment.
        end: u64,
        /// One past the last byte of RAM below 4 GiB.
        ram_end: u64,
    },
    /// The initrd does not fit between the image and the end of low RAM.
    #[error(
        "{initrd}: it has {len} bytes; {room} are free between the image and the end of low RAM (give the VM more memory)"
    )]
    InitrdTooLarge {
        /// The initrd.
        initrd: String,
        /// Its length in bytes.
        len: u64,
        /// Bytes that are free for it, in whole pages.
        room: u64,
    },
    /// The command line cannot be built.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// Copying the image failed.
    #[error("{image}: copying it into guest RAM: {source}")]
    Copy {
        /// The image.
        image: String,
        /// What linux-loader said.
        source: LoaderError,
    },
    /// Writing the boot parameters failed.
    #[error("writing boot parameters: {0}")]
    Params(#[from] ConfiguratorError),
    /// Writing to guest RAM failed.
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// Loads what `request` says into `ram`, which must be fresh (zero) and laid out by
/// [`layout::ram_regions`](crate::layout::ram_regions), and returns the boot vCPU's initial state.
///
/// Writes only the image's segments, the initrd and the boot structures below
/// [`BOOT_AREA_END`](crate::layout::BOOT_AREA_END).
pub fn load(ram: &GuestRam, request: &BootRequest<'_>) -> Result<VcpuInit, BootError> {
    let (protocol, entry) = choose_entry(request)?;
    if request.vcpus == 0 || request.vcpus > MAX_VCPUS {
        return Err(BootError::Vcpus { vcpus: request.vcpus });
    }
    let memory = Memory::of(ram)?;
    memory.check_image(request.image)?;
    let initrd = request.initrd.map(|initrd| memory.place_initrd(request.image, initrd)).transpose()?;
    let cmdline = cmdline::build(request.cmdline, request.args)?;

    request
        .image
        .copy_to(ram)
        .map_err(|source| BootError::Copy { image: request.image.name().into(), source })?;
    if let (Some(initrd), Some((addr, _))) = (request.initrd, initrd) {
        ram.write(u64::from(addr), initrd.bytes())?;
    }
    let info = GuestInfo {
        memory: params::memory_map(memory.low_end, &memory.high),
        cmdline_len: cmdline.len(),
        initrd,
    };
    write_cmdline(ram, cmdline)?;
    regs::write_gdt(ram, protocol)?;
    let cr3 = match protocol {
        Protocol::Pvh => {
            params::write_pvh(ram, &info)?;
            0
        }
        Protocol::Linux64 => {
            params::write_linux64(ram, &info)?;
            paging::write_identity_map(ram, memory.low_end)?
        }
    };
    Ok(VcpuInit { protocol, regs: regs::general(protocol, entry), sregs: SregsInit::new(protocol, cr3) })
}

fn choose_entry(request: &BootRequest<'_>) -> Result<(Protocol, u64), BootError> {
    let protocol = request.protocol.unwrap_or_else(|| request.image.protocol());
    match request.image.entry(protocol) {
        Some(entry) => Ok((protocol, entry)),
        None => Err(BootError::Protocol { image: request.image.name().into(), protocol }),
    }
}

fn write_cmdline(ram: &GuestRam, cmdline: String) -> Result<(), RamError> {
    let mut bytes = cmdline.into_bytes();
    bytes.push(0);
    ram.write(CMDLINE_ADDR, &bytes)
}

/// Where a VM has RAM.
struct Memory {
    /// RAM reaches from 0 to here; at most 3 GiB.
    low_end: u64,
    /// Regions above 4 GiB.
    high: Vec<(u64, u64)>,
}

impl Memory {
    fn of(ram: &GuestRam) -> Result<Self, BootError> {
        let mut memory = Self { low_end: 0, high: Vec::new() };
        for region in ram.regions() {
            let end = region.gpa.saturating_add(region.len);
            let wrong = |rule| BootError::RamLayout { gpa: region.gpa, len: region.len, rule };
            if region.gpa >= MMIO_GAP_END {
                memory.high.push((region.gpa, region.len));
            } else if region.gpa == memory.low_end && end <= MMIO_GAP_START {
                memory.low_end = end;
            } else {
                return Err(wrong("low RAM must be one piece from 0 and end at 3 GiB or below"));
            }
            // Three entries of the memory map describe low RAM.
            if memory.high.len() + 3 > MEMMAP_MAX {
                return Err(wrong("it is one region too many for the memory map"));
            }
        }
        if memory.low_end <= IMAGE_START {
            let rule = "RAM must reach beyond the first MiB";
            return Err(BootError::RamLayout { gpa: 0, len: memory.low_end, rule });
        }
        Ok(memory)
    }

    fn check_image(&self, image: &Image) -> Result<(), BootError> {
        match image.segments().iter().find(|segment| segment.end() > self.low_end) {
            None => Ok(()),
            Some(segment) => Err(BootError::ImageTooLarge {
                image: image.name().into(),
                segment: segment.index,
                end: segment.end(),
                ram_end: self.low_end,
            }),
        }
    }

    /// Address and length of the initrd: page-aligned, at the top of low RAM, above the image.
    fn place_initrd(&self, image: &Image, initrd: &Initrd) -> Result<(u32, u32), BootError> {
        let len = initrd.bytes().len() as u64;
        let page_down = |addr: u64| addr & !(PAGE_SIZE - 1);
        let floor = image.memory_end().next_multiple_of(PAGE_SIZE);
        let place = self.low_end.checked_sub(len).map(page_down).filter(|&addr| addr >= floor);
        let narrowed = place.and_then(|addr| Some((u32::try_from(addr).ok()?, u32::try_from(len).ok()?)));
        narrowed.ok_or_else(|| BootError::InitrdTooLarge {
            initrd: initrd.name().into(),
            len,
            room: page_down(self.low_end.saturating_sub(floor)),
        })
    }
}

#[cfg(test)]
#[path = "load_test.rs"]
mod tests;
