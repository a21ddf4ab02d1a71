//! Guest images: read once, validated once, loaded many times.
//!
//! Owns an image's bytes and what the pre-pass found in them. Never runs or interprets the image's code.

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use linux_loader::loader::elf::Elf as ElfLoader;
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use ringlet_io::GuestRam;

use crate::elf::{self, Elf, Problem};
use crate::file::{self, FileError, printable};

/// Largest image file in bytes.
pub const IMAGE_MAX: u64 = 512 << 20;

/// How an image is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Xen's PVH entry: 32-bit protected mode without paging, EBX = `hvm_start_info`
    /// (Xen docs/misc/pvh.pandoc).
    Pvh,
    /// Linux's 64-bit entry at the ELF entry point: long mode, RSI = `boot_params`
    /// (Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
    Linux64,
}

impl Protocol {
    /// `"pvh"` or `"linux64"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pvh => "pvh",
            Self::Linux64 => "linux64",
        }
    }
}

/// Why a file is no image that can be booted. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file could not be opened or read.
    #[error("{name}: {step}: {source}")]
    Io {
        /// The file.
        name: String,
        /// What cannot be done.
        step: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The path does not lead to a regular file.
    #[error("{name}: it is {kind}; only regular files are read")]
    NotRegular {
        /// The file.
        name: String,
        /// What it is instead.
        kind: &'static str,
    },
    /// The file is larger than is read.
    #[error("{name}: it has {len} bytes; at most {limit} are read")]
    TooLarge {
        /// The file.
        name: String,
        /// Its length in bytes (or how far it was read, if it grew).
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// There is nothing in the file.
    #[error("{name}: the file is empty")]
    Empty {
        /// The file.
        name: String,
    },
    /// The content breaks a rule.
    #[error("{name}: {field} is {value}; {rule}")]
    Invalid {
        /// The file.
        name: String,
        /// The field, with its program header if it is in one.
        field: String,
        /// Its value.
        value: String,
        /// The limit or rule that it breaks.
        rule: String,
    },
}

impl ImageError {
    pub(crate) fn file(path: &Path, limit: u64, error: FileError) -> Self {
        let name = printable(&path.to_string_lossy());
        match error {
            FileError::Io(step, source) => Self::Io { name, step, source },
            FileError::NotRegular(kind) => Self::NotRegular { name, kind },
            FileError::TooLarge(len) => Self::TooLarge { name, len, limit },
        }
    }

    fn invalid(name: &str, problem: Problem) -> Self {
        let Problem { field, value, rule } = problem;
        Self::Invalid { name: printable(name), field, value, rule }
    }
}

/// A validated image. Cloning shares its bytes.
#[derive(Debug, Clone)]
pub struct Image(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    bytes: Bytes,
    elf: Elf,
}

enum Bytes {
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.get().len())
    }
}

impl Image {
    /// Reads and validates the image file at `path`: a regular file of at most [`IMAGE_MAX`] bytes.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let bytes = file::read(path, IMAGE_MAX).map_err(|error| ImageError::file(path, IMAGE_MAX, error))?;
        Self::from_bytes(&path.to_string_lossy(), bytes)
    }

    /// Validates an image that is a part of this program.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self, ImageError> {
        Self::new(name, Bytes::Static(bytes))
    }

    /// Validates an image in memory. `name` is what messages call it.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, ImageError> {
        Self::new(name, Bytes::Owned(bytes))
    }

    fn new(name: &str, bytes: Bytes) -> Result<Self, ImageError> {
        if bytes.get().is_empty() {
            return Err(ImageError::Empty { name: printable(name) });
        }
        let elf = elf::parse(bytes.get()).map_err(|problem| ImageError::invalid(name, problem))?;
        Ok(Self(Arc::new(Inner { name: printable(name), bytes, elf })))
    }

    /// Name or path, with control characters escaped.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Size of the image file in bytes.
    pub fn len(&self) -> usize {
        self.0.bytes.get().len()
    }

    /// False: an empty file is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The protocol that is used unless a [`BootRequest`](crate::BootRequest) asks for another: PVH if the image
    /// has the note, else Linux 64-bit.
    pub fn protocol(&self) -> Protocol {
        if self.supports(Protocol::Pvh) { Protocol::Pvh } else { Protocol::Linux64 }
    }

    /// True if the image can be entered by `protocol`.
    pub fn supports(&self, protocol: Protocol) -> bool {
        self.entry(protocol).is_some()
    }

    /// Guest-physical entry address under `protocol`, below 4 GiB.
    pub fn entry(&self, protocol: Protocol) -> Option<u64> {
        match protocol {
            Protocol::Pvh => self.0.elf.pvh_entry.map(u64::from),
            Protocol::Linux64 => self.0.elf.linux64_entry,
        }
    }

    /// One past the last guest-physical byte that the image occupies, bss included. A VM needs at least this much
    /// RAM, and beyond it room for its initrd in whole pages.
    pub fn memory_end(&self) -> u64 {
        self.0.elf.end()
    }

    /// The image's segments, ascending by address.
    pub(crate) fn segments(&self) -> &[elf::Segment] {
        &self.0.elf.segments
    }

    /// Copies the file-backed part of every segment into RAM. The rest of a segment is left as it is: fresh RAM
    /// is zero.
    pub(crate) fn copy_to(&self, ram: &GuestRam) -> Result<(), LoaderError> {
        let mut file = Cursor::new(self.0.bytes.get());
        ElfLoader::load(ram.memory(), None, &mut file, None).map(|_| ())
    }
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
