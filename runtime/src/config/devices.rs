//! The devices of a VM: disks, randomness, console; networks and sockets have files of their own.
//!
//! Disks are described as Firecracker does (`drives`); what it has no words for stands under `ringlet` in each.

use std::path::PathBuf;

use ringlet_boot::layout;
use serde::{Deserialize, Serialize};

use super::VmConfig;
use super::firecracker;
use super::net::NetworkInterface;
use super::rate_limiter::RateLimiter;
use super::vsock::{VSOCK_ID, Vsock};
use crate::error::{Error, Result};

/// Longest `drive_id` in bytes.
pub const MAX_DRIVE_ID: usize = 64;
/// Most virtio devices of a VM: what the interrupt controller's pins allow.
pub const MAX_DEVICES: usize = layout::VIRTIO_MMIO_COUNT as usize;
/// Most queues of a disk.
pub const MAX_QUEUES: u16 = 16;
/// Descriptors of a queue, if the configuration does not say.
pub const DEFAULT_QUEUE_SIZE: u16 = 256;
/// Smallest queue: a request is header, data and status, and no chain is longer than its queue.
pub const MIN_QUEUE_SIZE: u16 = 4;
/// Largest queue.
pub const MAX_QUEUE_SIZE: u16 = 256;
/// Longest serial number of a disk in bytes (virtio 1.2, section 5.2.6).
pub const MAX_SERIAL: usize = 20;
/// Largest disk without a file, in bytes (1 TiB).
pub const MAX_VOLATILE_DISK: u64 = 1 << 40;

/// Bytes of a sector: sizes of disks are multiples of this.
const SECTOR: u64 = 512;

/// Name of the source of random numbers.
pub const ENTROPY_ID: &str = "rng0";
/// Name of the virtio console.
pub const CONSOLE_ID: &str = "console0";

/// A disk, in Firecracker's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Drive {
    /// The disk's name: 1 to [`MAX_DRIVE_ID`] letters, digits, `-` and `_`, its own in the VM. Also its serial
    /// number, unless another is given.
    pub drive_id: String,
    /// The file or block device that holds the disk's contents; absent with [`DriveExtras::backend`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// The disk with the root file system, which is told on the kernel's command line. It comes first.
    #[serde(default, deserialize_with = "firecracker::or_default")]
    pub is_root_device: bool,
    /// The guest cannot write.
    #[serde(default, deserialize_with = "firecracker::or_default")]
    pub is_read_only: bool,
    /// What a guest's flush means.
    #[serde(default, deserialize_with = "firecracker::or_default")]
    pub cache_type: CacheType,
    /// Accepted for Firecracker's sake: I/O is always asynchronous, on the engine of the runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<DriveIoEngine>,
    /// The partition with the root file system, if `is_root_device`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Limits of this disk, besides those of all disks of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// What Firecracker has no words for.
    #[serde(default)]
    pub ringlet: DriveExtras,
}

firecracker::known_to_firecracker!(Drive, firecracker::DRIVE);

/// What a guest's flush means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// A flush is answered and does nothing: a crash of the host loses data. For disks that are thrown away.
    Unsafe,
    /// What was written before a completed flush survives a crash of the host; where the guest does not flush, every
    /// write does once it is complete. The default, other than in Firecracker.
    #[default]
    Writeback,
}

/// Firecracker's block engines, which make no difference here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveIoEngine {
    /// Accepted.
    Sync,
    /// Accepted.
    Async,
}

/// What Firecracker's drives have no words for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DriveExtras {
    /// A disk without a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Volatile>,
    /// Past the host's page cache (`O_DIRECT`). Only for a file or block device.
    pub direct: bool,
    /// Number of queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Descriptors of a queue, and so the most requests: a power of two, [`MIN_QUEUE_SIZE`] to [`MAX_QUEUE_SIZE`].
    pub queue_size: u16,
    /// The disk's serial number: 1 to [`MAX_SERIAL`] printable ASCII characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// A null disk leaves what was in the guest's buffer instead of zeroes. For benchmarks only, so it cannot be set
    /// by a configuration file.
    #[serde(skip)]
    pub uninitialized_reads: bool,
}

impl Default for DriveExtras {
    fn default() -> Self {
        Self {
            backend: None,
            direct: false,
            queues: 1,
            queue_size: DEFAULT_QUEUE_SIZE,
            serial: None,
            uninitialized_reads: false,
        }
    }
}

/// A disk that ends with its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Volatile {
    /// In the host's memory, which is taken as it is written.
    Memory {
        /// Bytes: a multiple of 512, at most [`MAX_VOLATILE_DISK`].
        size: u64,
    },
    /// Forgets what is written and reads as zeroes.
    Null {
        /// Bytes: a multiple of 512, at most [`MAX_VOLATILE_DISK`].
        size: u64,
    },
}

/// A source of random numbers (virtio-rng).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Limits of the bytes and requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Drive {
    fn new(id: impl Into<String>) -> Self {
        Self {
            drive_id: id.into(),
            path_on_host: None,
            is_root_device: false,
            is_read_only: false,
            cache_type: CacheType::default(),
            io_engine: None,
            partuuid: None,
            rate_limiter: None,
            ringlet: DriveExtras::default(),
        }
    }

    /// A disk whose contents are those of a file or block device.
    pub fn file(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { path_on_host: Some(path.into()), ..Self::new(id) }
    }

    /// A disk of `size` bytes in memory.
    pub fn memory(id: impl Into<String>, size: u64) -> Self {
        Self::volatile(id, Volatile::Memory { size })
    }

    /// A disk of `size` bytes that forgets what is written and reads as zeroes.
    pub fn null(id: impl Into<String>, size: u64) -> Self {
        Self::volatile(id, Volatile::Null { size })
    }

    fn volatile(id: impl Into<String>, backend: Volatile) -> Self {
        let mut drive = Self::new(id);
        drive.ringlet.backend = Some(backend);
        drive
    }

    /// The guest cannot write.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.is_read_only = true;
        self
    }

    /// Past the host's page cache.
    #[must_use]
    pub fn direct(mut self) -> Self {
        self.ringlet.direct = true;
        self
    }

    /// Number of queues.
    #[must_use]
    pub fn queues(mut self, count: u16) -> Self {
        self.ringlet.queues = count;
        self
    }

    /// Descriptors of a queue.
    #[must_use]
    pub fn queue_size(mut self, size: u16) -> Self {
        self.ringlet.queue_size = size;
        self
    }

    /// What a guest's flush means.
    #[must_use]
    pub fn cache(mut self, cache: CacheType) -> Self {
        self.cache_type = cache;
        self
    }

    /// Limits of this disk.
    #[must_use]
    pub fn rate_limiter(mut self, limiter: RateLimiter) -> Self {
        self.rate_limiter = Some(limiter);
        self
    }

    /// The serial number that the guest sees.
    #[must_use]
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.ringlet.serial = Some(serial.into());
        self
    }

    /// Checks every range that does not depend on the host.
    fn validate(&self) -> Result<()> {
        check_device_id("drive_id", &self.drive_id)?;
        self.validate_source()?;
        if let Some(limiter) = &self.rate_limiter {
            limiter.validate().or_else(|reason| self.refuse("rate_limiter", reason))?;
        }
        let DriveExtras { queues, queue_size, ref serial, .. } = self.ringlet;
        if !(1..=MAX_QUEUES).contains(&queues) {
            return self.refuse("queues", format!("{queues} is not in 1..={MAX_QUEUES}"));
        }
        if !(MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(&queue_size) || !queue_size.is_power_of_two() {
            let rule = format!("{queue_size} is not a power of two in {MIN_QUEUE_SIZE}..={MAX_QUEUE_SIZE}");
            return self.refuse("queue_size", rule);
        }
        let printable = |text: &String| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if let Some(serial) = serial
            && (!(1..=MAX_SERIAL).contains(&serial.len()) || !printable(serial))
        {
            return self
                .refuse("serial", format!("{serial:?} is not 1 to {MAX_SERIAL} printable ASCII characters"));
        }
        let allowed = |c: char| c.is_ascii_hexdigit() || c == '-';
        match &self.partuuid {
            Some(uuid) if uuid.is_empty() || uuid.len() > 64 || !uuid.chars().all(allowed) => {
                self.refuse("partuuid", format!("{uuid:?} is not 1 to 64 hexadecimal digits and `-`"))
            }
            _ => Ok(()),
        }
    }

    fn validate_source(&self) -> Result<()> {
        let DriveExtras { backend, direct, uninitialized_reads, .. } = self.ringlet;
        let size = match (&self.path_on_host, backend) {
            (Some(path), None) if path.as_os_str().is_empty() => {
                return self.refuse("path_on_host", "is empty");
            }
            (Some(_), None) if uninitialized_reads => {
                return self.refuse("uninitialized_reads", "only a null disk can do that");
            }
            (Some(_), None) => return Ok(()),
            (Some(_), Some(_)) => return self.refuse("backend", "a disk with a file has none"),
            (None, None) => return self.refuse("path_on_host", "is missing"),
            (None, Some(Volatile::Memory { .. })) if uninitialized_reads => {
                return self.refuse("uninitialized_reads", "only a null disk can do that");
            }
            (None, Some(Volatile::Memory { size } | Volatile::Null { size })) => size,
        };
        if direct {
            return self.refuse("direct", "only for a file or block device");
        }
        if size == 0 || size > MAX_VOLATILE_DISK || size % SECTOR != 0 {
            let rule =
                format!("{size} is not a multiple of {SECTOR} bytes in {SECTOR}..={MAX_VOLATILE_DISK}");
            return self.refuse("size", rule);
        }
        Ok(())
    }

    fn refuse(&self, field: &'static str, reason: impl AsRef<str>) -> Result<()> {
        Err(Error::config(field, format!("of drive {:?}: {}", self.drive_id, reason.as_ref())))
    }
}

/// How many virtio devices a VM has.
pub(crate) fn count(config: &VmConfig) -> usize {
    let VmConfig { drives, network_interfaces, vsock, entropy, ringlet, .. } = config;
    let single = [vsock.is_some(), entropy.is_some(), ringlet.console];
    drives.len() + network_interfaces.len() + single.into_iter().map(usize::from).sum::<usize>()
}

/// Checks the name of a device that is not given by us.
pub(super) fn check_device_id(field: &'static str, id: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if id.is_empty() || id.len() > MAX_DRIVE_ID || !id.chars().all(allowed) {
        let rule = format!("{id:?} is not 1 to {MAX_DRIVE_ID} letters, digits, `-` or `_`");
        return Err(Error::config(field, rule));
    }
    if [ENTROPY_ID, CONSOLE_ID, VSOCK_ID].contains(&id) {
        return Err(Error::config(field, format!("{id:?} is the name of another device")));
    }
    Ok(())
}

/// Checks the devices of a VM, alone and together.
pub(super) fn validate(config: &VmConfig) -> Result<()> {
    let drives = &config.drives;
    let interfaces = &config.network_interfaces;
    drives.iter().try_for_each(Drive::validate)?;
    interfaces.iter().try_for_each(NetworkInterface::validate)?;
    config.vsock.iter().try_for_each(Vsock::validate)?;
    if let Some(limiter) = config.entropy.and_then(|entropy| entropy.rate_limiter) {
        limiter.validate().map_err(|reason| Error::config("entropy.rate_limiter", reason))?;
    }
    if let Some(limiter) = config.ringlet.console_rate_limiter {
        limiter.validate().map_err(|reason| Error::config("console_rate_limiter", reason))?;
        if !config.ringlet.console {
            return Err(Error::config("console_rate_limiter", "the VM has no virtio console (`console`)"));
        }
    }
    for (index, drive) in drives.iter().enumerate() {
        let id = &drive.drive_id;
        if drives.iter().skip(index + 1).any(|other| other.drive_id == *id) {
            return Err(Error::config("drive_id", format!("{id:?} is the name of two drives")));
        }
    }
    for (index, interface) in interfaces.iter().enumerate() {
        let id = &interface.iface_id;
        let others = interfaces.iter().skip(index + 1).map(|other| &other.iface_id);
        if others.chain(drives.iter().map(|drive| &drive.drive_id)).any(|other| other == id) {
            return Err(Error::config("iface_id", format!("{id:?} is the name of two devices")));
        }
    }
    if drives.iter().filter(|drive| drive.is_root_device).count() > 1 {
        return Err(Error::config("is_root_device", "more than one drive has it"));
    }
    let devices = count(config);
    if devices > MAX_DEVICES {
        let rule = format!("{devices} devices are too many; a VM has interrupts for {MAX_DEVICES}");
        return Err(Error::config("drives", rule));
    }
    Ok(())
}

#[cfg(test)]
#[path = "devices_test.rs"]
mod tests;
