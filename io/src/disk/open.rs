//! Opening the file or block device behind a disk.
//!
//! Owns the checks: what it is, that nobody else uses it, how large it is, how direct I/O must be aligned. Runs
//! where a VM is assembled, since looking up a path may wait; the result is plain data and a descriptor. The
//! descriptor is an open file description of its own, never a duplicate: its lock and its I/O belong to one disk.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, Stat, StatxFlags, fallocate,
    fcntl_getfl, fcntl_setfl, flock, fstat, ioctl_blksszget, seek, statx,
};
use rustix::io::Errno;

use super::{DiskInfo, SECTOR};

/// Largest alignment of direct I/O that is believed, in bytes.
const MAX_ALIGNMENT: u32 = 64 << 10;

/// How a file is opened as a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Only reads. Several read-only disks may share a file.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

/// Why a file cannot be a disk. Each message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// It cannot be opened.
    #[error("disk {}: {source}{}", path.display(), open_remedy(source, *read_only))]
    Open {
        /// The file.
        path: PathBuf,
        /// True if it was to be read only.
        read_only: bool,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is neither a regular file nor a block device.
    #[error("disk {}: it is {what}; give a regular file or a block device", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Another disk, here or in another process, has it open.
    #[error("disk {}: it is in use by {}; {}", path.display(), in_use_by(*read_only), in_use_remedy(*read_only))]
    InUse {
        /// The file.
        path: PathBuf,
        /// True if it was to be read only, so that a writer stands in the way.
        read_only: bool,
    },
    /// It cannot be locked, so two writers could not be kept apart.
    #[error("disk {}: it cannot be locked (flock): {source}; put it on a file system with locks", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A disk cannot have this size.
    #[error(
        "disk {}: {size} bytes are no multiple of {unit}, or none; `truncate -s %{unit} {}` rounds up, \
         `truncate -s SIZE` sets a size", path.display(), path.display()
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What it must be a multiple of, in bytes.
        unit: u64,
    },
    /// Direct I/O is not possible.
    #[error("disk {}: no direct I/O here ({reason}); leave out `direct`", path.display())]
    Direct {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A call failed that should not.
    #[error("disk {}: {call}: {source}", path.display())]
    Call {
        /// The file.
        path: PathBuf,
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn open_remedy(error: &io::Error, read_only: bool) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; `truncate -s 1G FILE` makes an empty disk of 1 GiB",
        io::ErrorKind::PermissionDenied if read_only => "; give this user the right to read it",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; give this user the right to write it, or use it with `readonly`"
        }
        io::ErrorKind::ResourceBusy => {
            "; it is mounted, part of another device, or the disk of another VM: free it first"
        }
        _ => "",
    }
}

fn in_use_by(read_only: bool) -> &'static str {
    if read_only { "a disk that writes to it" } else { "another disk" }
}

fn in_use_remedy(read_only: bool) -> &'static str {
    if read_only {
        "stop the VM that writes, or open it with `readonly` in both"
    } else {
        "stop the other VM, give this one a copy, or open it with `readonly` in both"
    }
}

/// What direct I/O asks of memory, offsets and lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Addresses, in bytes.
    pub(super) memory: u32,
    /// Offsets in the file, and lengths, in bytes.
    pub(super) offset: u32,
}

/// An open, locked file or block device, ready to be a disk. `Send`.
#[derive(Debug)]
pub struct DiskFile {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) info: DiskInfo,
    /// `None`: through the page cache.
    pub(super) direct: Option<Alignment>,
    pub(super) block_device: bool,
}

impl DiskFile {
    /// Opens and locks a file or block device. May wait: not to be called on a shard.
    ///
    /// Its size must be a multiple of 512 bytes (of the block size with [`DiskOptions::direct`]) and not 0.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(path: impl AsRef<Path>, options: DiskOptions) -> Result<Self, DiskError> {
        let opening = Opening { path: path.as_ref(), options };
        let (fd, stat) = opening.open()?;
        let block_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        opening.lock(&fd)?;
        opening.set_flags(&fd)?;
        let logical = if block_device { opening.call("BLKSSZGET", ioctl_blksszget(&fd))? } else { 512 };
        let direct = if options.direct { Some(opening.alignment(&fd, block_device, logical)?) } else { None };
        let block_size = direct.map_or(logical, |direct| direct.offset.max(logical));
        let size = opening.call("its size", size_of_disk(&fd))?;
        check_size(opening.path, size, direct)?;
        let info = DiskInfo {
            size,
            block_size: block_size.max(512),
            read_only: options.read_only,
            discard: !options.read_only && can_discard(&fd, &stat, size),
            write_zeroes: !options.read_only,
        };
        Ok(Self { fd, path: opening.path.to_owned(), info, direct, block_device })
    }

    /// What the disk will be able to do.
    pub fn info(&self) -> DiskInfo {
        self.info
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A file that is being opened.
struct Opening<'a> {
    path: &'a Path,
    options: DiskOptions,
}

impl Opening<'_> {
    fn open(&self) -> Result<(OwnedFd, Stat), DiskError> {
        // Neither a FIFO nor a terminal shall make us wait, or be ours. EXCL: no device that is mounted.
        let mode = if self.options.read_only { OFlags::RDONLY } else { OFlags::RDWR | OFlags::EXCL };
        let flags = mode | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match rustix::fs::open(self.path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ISDIR) => return Err(self.not_a_disk(FileType::Directory)),
            Err(Errno::NXIO) => return Err(self.not_a_disk(FileType::Socket)),
            Err(error) => {
                let read_only = self.options.read_only;
                return Err(DiskError::Open { path: self.path.into(), read_only, source: error.into() });
            }
        };
        let stat = self.call("fstat", fstat(&fd))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => Ok((fd, stat)),
            other => Err(self.not_a_disk(other)),
        }
    }

    fn not_a_disk(&self, sort: FileType) -> DiskError {
        let what = match sort {
            FileType::Directory => "a folder",
            FileType::CharacterDevice => "a character device",
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket or a device without a driver",
            _ => "something else",
        };
        DiskError::NotADisk { path: self.path.into(), what }
    }

    /// One writer, or any number of readers; the lock goes with the open file description.
    fn lock(&self, fd: &OwnedFd) -> Result<(), DiskError> {
        let read_only = self.options.read_only;
        let how = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(fd, how) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(DiskError::InUse { path: self.path.into(), read_only }),
            Err(error) => Err(DiskError::Lock { path: self.path.into(), source: error.into() }),
        }
    }

    /// What `open` could not say yet: a disk's I/O may wait, and may go past the page cache.
    fn set_flags(&self, fd: &OwnedFd) -> Result<(), DiskError> {
        let mut flags = self.call("F_GETFL", fcntl_getfl(fd))? - OFlags::NONBLOCK;
        flags.set(OFlags::DIRECT, self.options.direct);
        match fcntl_setfl(fd, flags) {
            Err(Errno::INVAL) if self.options.direct => {
                Err(self.no_direct("the file system knows no O_DIRECT".to_owned()))
            }
            result => self.call("F_SETFL", result),
        }
    }

    /// What the kernel says about direct I/O (Linux 6.1), else what works everywhere: the block size of a device,
    /// 4096 for a file.
    fn alignment(&self, fd: &OwnedFd, block_device: bool, logical: u32) -> Result<Alignment, DiskError> {
        let known = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            .ok()
            .filter(|stat| stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
        let guess = if block_device { logical } else { 4096 };
        let (memory, offset) =
            known.map_or((guess, guess), |stat| (stat.stx_dio_mem_align, stat.stx_dio_offset_align));
        if offset == 0 {
            return Err(self.no_direct("the kernel says that this file cannot".to_owned()));
        }
        let memory = memory.max(1);
        if [memory, offset].iter().any(|value| !value.is_power_of_two() || *value > MAX_ALIGNMENT) {
            return Err(self.no_direct(format!("an alignment of {memory} and {offset} bytes")));
        }
        Ok(Alignment { memory, offset })
    }

    fn no_direct(&self, reason: String) -> DiskError {
        DiskError::Direct { path: self.path.into(), reason }
    }

    fn call<T>(&self, call: &'static str, result: rustix::io::Result<T>) -> Result<T, DiskError> {
        result.map_err(|error| DiskError::Call { path: self.path.into(), call, source: error.into() })
    }
}

/// Bytes of a file or block device. Moves the file's position, which nobody uses.
pub(super) fn size_of_disk(fd: &OwnedFd) -> rustix::io::Result<u64> {
    seek(fd, SeekFrom::End(0))
}

/// Refuses a size that is 0 or not made of whole sectors, or of whole blocks for direct I/O: a part at the end
/// would be lost, or written to only by making the file longer.
pub(super) fn check_size(path: &Path, size: u64, direct: Option<Alignment>) -> Result<(), DiskError> {
    let unit = direct.map_or(SECTOR, |direct| u64::from(direct.offset).max(SECTOR));
    if size == 0 || !size.is_multiple_of(unit) {
        return Err(DiskError::Size { path: path.to_owned(), size, unit });
    }
    Ok(())
}

/// True if holes can be punched: tried behind the end of a file, where there is nothing; asked for a device.
fn can_discard(fd: &OwnedFd, stat: &Stat, size: u64) -> bool {
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        return device_zeroes(stat.st_rdev);
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let behind = size.next_multiple_of(1 << 20);
    fallocate(fd, flags, behind, 1 << 20).is_ok()
}

/// True if the device can zero (and so punch) ranges by itself. A partition's queue is its disk's.
fn device_zeroes(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    ["queue", "../queue"].iter().any(|queue| {
        let file = format!("/sys/dev/block/{major}:{minor}/{queue}/write_zeroes_max_bytes");
        fs::read_to_string(file).is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|most| most > 0))
    })
}

#[cfg(test)]
#[path = "open_test.rs"]
mod tests;
