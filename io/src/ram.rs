//! Guest RAM: one sealed memfd, mapped shared, reached only by bounds-checked volatile copies.
//!
//! Owns the memfd, its mappings and the bitmap of pages that the *host* wrote (KVM's dirty log does not
//! see those). Never hands out a reference or a slice into guest memory: the guest may change any byte
//! at any moment, so every access is a copy.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion,
};

use crate::lease::LeaseUse;

/// The vm-memory type behind [`GuestRam::memory`].
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;
type Region = GuestRegionMmap<AtomicBitmap>;

/// Page size of x86-64 in bytes; RAM regions are multiples of it.
pub const PAGE_SIZE: u64 = 4096;
/// Size in bytes of the huge pages that [`Backing::Huge2M`] uses.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// What kind of pages back guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Ordinary 4 KiB pages, allocated by the kernel when first touched.
    #[default]
    Pages4K,
    /// 2 MiB pages from the host's hugetlb pool (`vm.nr_hugepages`).
    Huge2M,
}

impl Backing {
    /// Granularity in bytes of region addresses and lengths.
    pub const fn page_size(self) -> u64 {
        match self {
            Self::Pages4K => PAGE_SIZE,
            Self::Huge2M => HUGE_PAGE_SIZE,
        }
    }

    /// What an error is likely to be about.
    const fn hint(self) -> &'static str {
        match self {
            Self::Pages4K => " (is there less memory than that, or a limit on addresses, `ulimit -v`?)",
            Self::Huge2M => " (are enough huge pages free? `sysctl -w vm.nr_hugepages=N` makes N of 2 MiB)",
        }
    }
}

/// Why guest RAM could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// A region is empty, misaligned, or overlaps another.
    #[error("guest RAM region {gpa:#x}+{len:#x}: {reason}")]
    Region {
        /// Guest-physical start of the region.
        gpa: u64,
        /// Length of the region in bytes.
        len: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The memfd could not be created, sized or sealed.
    #[error("guest RAM of {size} bytes: {step}: {source}{hint}")]
    Create {
        /// Total size asked for, in bytes.
        size: u64,
        /// The system call that failed.
        step: &'static str,
        /// What the kernel said.
        source: std::io::Error,
        /// What to do about it (may be empty).
        hint: &'static str,
    },
    /// The memfd could not be mapped.
    #[error("guest RAM region {gpa:#x}+{len:#x} cannot be mapped: {source}{hint}")]
    Map {
        /// Guest-physical start of the region.
        gpa: u64,
        /// Length of the region in bytes.
        len: u64,
        /// What vm-memory said.
        source: vm_memory::mmap::MmapRegionError,
        /// What to do about it (may be empty).
        hint: &'static str,
    },
    /// An access leaves guest RAM.
    #[error("guest range {gpa:#x}+{len:#x} is not in guest RAM")]
    OutOfBounds {
        /// Guest-physical start of the access.
        gpa: u64,
        /// Length of the access in bytes.
        len: u64,
    },
    /// A lease has more pieces than the kernel takes.
    #[error("a lease of {pieces} pieces: the kernel takes at most 1024 in one operation")]
    TooManyPieces {
        /// How many pieces there are after splitting at region borders.
        pieces: usize,
    },
    /// An access leaves a lease.
    #[error("bytes {at}+{len} are not in a lease of {size} bytes")]
    OutsideLease {
        /// The first byte, counted from the lease's start.
        at: u64,
        /// Length of the access in bytes.
        len: u64,
        /// Length of the lease in bytes.
        size: u64,
    },
    /// Leased memory was to be used the other way round.
    #[error("the lease is no {wanted:?}")]
    LeaseUse {
        /// The use that was tried.
        wanted: LeaseUse,
    },
}

/// One contiguous piece of guest RAM, as KVM's memory slots want it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRegion {
    /// Guest-physical start.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the region is mapped in this process. Only for handing to the kernel: it is an address, not a pointer.
    pub host_addr: u64,
    /// Offset of the region in the memfd, in bytes.
    pub file_offset: u64,
}

/// Guest memory of one VM. Cloning shares it; it is unmapped when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct GuestRam {
    memory: Arc<GuestMemory>,
    file: Arc<File>,
    size: u64,
}

impl GuestRam {
    /// Makes zero-filled guest RAM of the given `(guest-physical start, length)` regions, which must be sorted,
    /// disjoint and multiples of the backing's page size.
    pub fn new(regions: &[(u64, u64)], backing: Backing) -> Result<Self, RamError> {
        let size = check_regions(regions, backing)?;
        let file = Arc::new(sealed_memfd(size, backing)?);
        let mut mapped = Vec::with_capacity(regions.len());
        let mut offset = 0;
        for &(gpa, len) in regions {
            mapped.push(map_region(&file, offset, (gpa, len), backing)?);
            offset += len;
        }
        let memory = GuestMemory::from_regions(mapped).map_err(|_| RamError::Region {
            gpa: regions.first().map_or(0, |r| r.0),
            len: size,
            reason: "the regions are not sorted and disjoint",
        })?;
        Ok(Self { memory: Arc::new(memory), file, size })
    }

    /// Total size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The regions in ascending guest-physical order.
    pub fn regions(&self) -> impl Iterator<Item = RamRegion> + '_ {
        self.memory.iter().map(|region| RamRegion {
            gpa: region.start_addr().0,
            len: region.len(),
            host_addr: region.as_ptr() as u64,
            file_offset: region.file_offset().map_or(0, FileOffset::start),
        })
    }

    /// True if every byte of `gpa..gpa + len` is RAM. Adjacent regions count as one; an empty range is inside
    /// if its address is.
    pub fn contains(&self, gpa: u64, len: u64) -> bool {
        match usize::try_from(len) {
            Ok(0) => self.memory.address_in_range(GuestAddress(gpa)),
            Ok(len) => self.memory.check_range(GuestAddress(gpa), len),
            Err(_) => false,
        }
    }

    /// Copies guest bytes out into `buf`. Fails, having copied nothing, if any of them is not in RAM.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), RamError> {
        let len = buf.len();
        if let Some((region, at)) = self.in_one_region(gpa, len) {
            return region.read_slice(buf, at).map_err(|_| out_of_bounds(gpa, len));
        }
        self.check(gpa, len)?;
        self.memory.read_slice(buf, GuestAddress(gpa)).map_err(|_| out_of_bounds(gpa, len))
    }

    /// Copies `buf` into guest RAM and marks its pages dirty. Fails, having written nothing, if any byte is not
    /// in RAM.
    pub fn write(&self, gpa: u64, buf: &[u8]) -> Result<(), RamError> {
        if let Some((region, at)) = self.in_one_region(gpa, buf.len()) {
            return region.write_slice(buf, at).map_err(|_| out_of_bounds(gpa, buf.len()));
        }
        self.check(gpa, buf.len())?;
        self.memory.write_slice(buf, GuestAddress(gpa)).map_err(|_| out_of_bounds(gpa, buf.len()))
    }

    /// Reads a little-endian 32-bit value.
    pub fn read_u32(&self, gpa: u64) -> Result<u32, RamError> {
        let mut bytes = [0; 4];
        self.read(gpa, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian 64-bit value.
    pub fn read_u64(&self, gpa: u64) -> Result<u64, RamError> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a little-endian 32-bit value.
    pub fn write_u32(&self, gpa: u64, value: u32) -> Result<(), RamError> {
        self.write(gpa, &value.to_le_bytes())
    }

    /// Writes a little-endian 64-bit value.
    pub fn write_u64(&self, gpa: u64, value: u64) -> Result<(), RamError> {
        self.write(gpa, &value.to_le_bytes())
    }

    /// The backend for crates that walk guest memory themselves (linux-loader, virtio-queue). Everything else
    /// uses the copies above.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The mappings, for what has to keep them.
    pub(crate) fn shared(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The sealed memfd, for handing guest RAM to another process.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes the set of pages (4 KiB) that the host wrote since the last call, as guest-physical addresses in
    /// ascending order, and clears it. Guest writes are in KVM's own log, not here.
    pub fn take_host_dirty(&self) -> Vec<u64> {
        let mut pages = Vec::new();
        for region in self.memory.iter() {
            let start = region.start_addr().0;
            for (word, mut bits) in region.get_mmap().bitmap().get_and_reset().into_iter().enumerate() {
                while bits != 0 {
                    let page = word as u64 * 64 + u64::from(bits.trailing_zeros());
                    pages.push(start + page * PAGE_SIZE);
                    bits &= bits - 1;
                }
            }
        }
        pages
    }

    /// The region that has all of a range, as nearly always one does: the region is then looked for once.
    fn in_one_region(&self, gpa: u64, len: usize) -> Option<(&Region, MemoryRegionAddress)> {
        let (region, at) = self.memory.to_region_addr(GuestAddress(gpa))?;
        (region.len().checked_sub(at.0)? >= len as u64).then_some((region, at))
    }

    fn check(&self, gpa: u64, len: usize) -> Result<(), RamError> {
        if self.contains(gpa, len as u64) { Ok(()) } else { Err(out_of_bounds(gpa, len)) }
    }
}

fn out_of_bounds(gpa: u64, len: usize) -> RamError {
    RamError::OutOfBounds { gpa, len: len as u64 }
}

/// Validates the regions and returns their total size in bytes.
fn check_regions(regions: &[(u64, u64)], backing: Backing) -> Result<u64, RamError> {
    let page = backing.page_size();
    let mut end = 0;
    let mut size = 0u64;
    for &(gpa, len) in regions {
        let error = |reason| RamError::Region { gpa, len, reason };
        if len == 0 || gpa % page != 0 || len % page != 0 {
            return Err(error(
                "start and length must be multiples of the page size, and the length not zero",
            ));
        }
        if gpa < end {
            return Err(error("the regions are not sorted and disjoint"));
        }
        end = gpa.checked_add(len).ok_or_else(|| error("it ends beyond the 64-bit address space"))?;
        size = size.checked_add(len).ok_or_else(|| error("the total size overflows"))?;
    }
    if size == 0 || i64::try_from(size).is_err() {
        return Err(RamError::Region { gpa: 0, len: size, reason: "the total size is out of range" });
    }
    Ok(size)
}

fn sealed_memfd(size: u64, backing: Backing) -> Result<File, RamError> {
    let error = |step, source: rustix::io::Errno| RamError::Create {
        size,
        step,
        source: source.into(),
        hint: backing.hint(),
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let flags = match backing {
        Backing::Pages4K => flags,
        Backing::Huge2M => flags | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
    };
    let fd = rustix::fs::memfd_create("ringlet-ram", flags).map_err(|e| error("memfd_create", e))?;
    rustix::fs::ftruncate(&fd, size).map_err(|e| error("ftruncate", e))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|e| error("F_ADD_SEALS", e))?;
    Ok(File::from(fd))
}

fn map_region(
    file: &Arc<File>,
    offset: u64,
    (gpa, len): (u64, u64),
    backing: Backing,
) -> Result<GuestRegionMmap<AtomicBitmap>, RamError> {
    let invalid = |reason| RamError::Region { gpa, len, reason };
    let bytes = usize::try_from(len).map_err(|_| invalid("it is larger than the address space"))?;
    let offset = FileOffset::from_arc(Arc::clone(file), offset);
    let flags = libc::MAP_SHARED
        | match backing {
            Backing::Pages4K => libc::MAP_NORESERVE,
            // Reserved here and now: a huge page that is not there when it is touched is a SIGBUS.
            Backing::Huge2M => 0,
        };
    let mapping = MmapRegion::build(Some(offset), bytes, libc::PROT_READ | libc::PROT_WRITE, flags)
        .map_err(|source| RamError::Map { gpa, len, source, hint: backing.hint() })?;
    GuestRegionMmap::new(mapping, GuestAddress(gpa))
        .ok_or_else(|| invalid("it ends beyond the address space"))
}

#[cfg(test)]
#[path = "ram_test.rs"]
mod tests;
