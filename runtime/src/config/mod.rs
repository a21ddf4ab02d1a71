//! What a VM is to be: a builder for programs, and the JSON of Firecracker's `--config-file` for everybody else.
//!
//! The JSON uses Firecracker's names for what Firecracker has (`boot-source`, `machine-config`, `drives`,
//! `network-interfaces`, `vsock`, `entropy`);
//! what is only Ringlet's stands under `ringlet`. Unknown fields are errors, and so are Firecracker's that ask for what
//! Ringlet does not have, so that nothing asked for is silently missing.

mod boot;
mod devices;
mod firecracker;
mod limits;
mod net;
mod net_limits;
mod rate_limiter;
mod vsock;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
pub use boot::{BootProtocol, BootSource, ImageRef};
pub(crate) use devices::count as device_count;
pub use devices::{
    CONSOLE_ID, CacheType, DEFAULT_QUEUE_SIZE, Drive, DriveExtras, DriveIoEngine, ENTROPY_ID, Entropy,
    MAX_DEVICES, MAX_DRIVE_ID, MAX_QUEUE_SIZE, MAX_QUEUES, MAX_SERIAL, MAX_VOLATILE_DISK, MIN_QUEUE_SIZE,
    Volatile,
};
pub use limits::{
    BufferLimits, CpuLimits, CpuMax, DEFAULT_CPU_PERIOD_US, DiskLimits, LimitsConfig, MAX_CPU_PERIOD_US,
    MAX_CPU_QUOTA_US, MAX_CPU_WEIGHT, MAX_WEIGHT, MIN_BUFFERS_MAX, MIN_CPU_PERIOD_US, TenantConfig,
    TenantLimits,
};
pub use net::{
    AntiSpoof, MAX_IFACE_ID, MAX_PUBLISHED, MAX_QUEUE_PAIRS, MIN_NET_MTU, MacAddress, NetExtras,
    NetworkInterface, Passt, Pinning,
};
pub use net_limits::{NetLimits, NetRates};
pub use rate_limiter::{Bucket, RateLimiter};
pub use vsock::{MAX_CID, MAX_CONNECTIONS, MAX_UDS_PATH, MIN_CID, VSOCK_ID, Vsock, VsockExtras};

/// Smallest guest RAM in MiB: an image is loaded from 1 MiB up, and has to have room.
pub const MIN_MEMORY_MIB: u32 = 4;
/// Largest guest RAM in MiB (1 TiB).
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// Most vCPUs of a VM, as in Firecracker.
pub const MAX_VCPUS: u32 = 32;
/// Longest name of a VM in bytes.
pub const MAX_NAME: usize = 64;

/// Longest time for devices to complete what is under way, in milliseconds: less than an event loop waits for its VMs.
pub const MAX_DRAIN_TIMEOUT_MS: u64 = 8_000;

/// Time for devices to complete what is under way, of a VM that does not say.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Guest RAM of a VM that does not say, in MiB.
const DEFAULT_MEMORY_MIB: u32 = 128;

/// A configuration file may not be larger than this, in bytes.
const MAX_CONFIG_FILE: u64 = 1 << 20;

/// The configuration of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmConfig {
    /// What is booted.
    pub boot_source: BootSource,
    /// The machine it is booted on.
    #[serde(default, deserialize_with = "firecracker::or_default")]
    pub machine_config: MachineConfig,
    /// Disks, in the order in which the guest finds them (a root device comes first).
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "firecracker::or_default")]
    pub drives: Vec<Drive>,
    /// Network interfaces, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "firecracker::or_default")]
    pub network_interfaces: Vec<NetworkInterface>,
    /// Stream sockets between guest and host, if there are to be any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// A source of random numbers, if there is to be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
    /// What Firecracker has no words for.
    #[serde(default)]
    pub ringlet: Extras,
}

firecracker::known_to_firecracker!(VmConfig, firecracker::SECTIONS);

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    #[serde(default = "one")]
    pub vcpu_count: u32,
    /// Guest RAM in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    #[serde(default = "default_memory")]
    pub mem_size_mib: u32,
    /// Pages behind guest RAM.
    #[serde(default, deserialize_with = "firecracker::or_default")]
    pub huge_pages: HugePages,
}

firecracker::known_to_firecracker!(MachineConfig, firecracker::MACHINE);

/// Pages behind guest RAM, in Firecracker's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Ordinary 4 KiB pages.
    #[default]
    None,
    /// 2 MiB pages from the host's hugetlb pool; guest RAM must be a multiple of 2 MiB.
    #[serde(rename = "2M")]
    TwoM,
}

/// What Firecracker's configuration has no words for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extras {
    /// The VM's name: 1 to [`MAX_NAME`] letters, digits, `-`, `_` and `.`; chosen by the runtime if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The guest program's arguments, behind the command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The VM is ended this long after its start, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The boot protocol, if the image's own choice is not wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_protocol: Option<BootProtocol>,
    /// A virtio console beside the serial port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub console: bool,
    /// Limits of what goes through the virtio console, in both directions together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_rate_limiter: Option<RateLimiter>,
    /// How long the devices may take to complete what is under way when the VM pauses or ends, in milliseconds, 1 to
    /// [`MAX_DRAIN_TIMEOUT_MS`]; 5,000 if absent. What takes longer is cancelled, and the VM cannot go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_timeout_ms: Option<u64>,
    /// What the VM may use of the host.
    #[serde(default, skip_serializing_if = "LimitsConfig::is_default")]
    pub limits: LimitsConfig,
    /// Whom it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantConfig>,
}

const fn one() -> u32 {
    1
}

const fn default_memory() -> u32 {
    DEFAULT_MEMORY_MIB
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self { vcpu_count: 1, mem_size_mib: DEFAULT_MEMORY_MIB, huge_pages: HugePages::None }
    }
}

impl VmConfig {
    /// A VM that boots `image` with one vCPU and 128 MiB.
    pub fn new(image: impl Into<ImageRef>) -> Self {
        let kernel_image_path = image.into();
        Self {
            boot_source: BootSource { kernel_image_path, initrd_path: None, boot_args: None },
            machine_config: MachineConfig::default(),
            drives: Vec::new(),
            network_interfaces: Vec::new(),
            vsock: None,
            entropy: None,
            ringlet: Extras::default(),
        }
    }

    /// Reads a configuration file: JSON, at most 1 MiB.
    pub fn from_file(path: &Path) -> Result<Self> {
        let error = |reason: String| Error::ConfigFile { path: path.display().to_string(), reason };
        let text = read_bounded(path, MAX_CONFIG_FILE).map_err(|e| error(e.to_string()))?;
        let config: Self = serde_json::from_slice(&text).map_err(|e| match e.is_data() {
            true => error(e.to_string()),
            false => error(format!("is not JSON: {e}")),
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Guest RAM in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.machine_config.mem_size_mib = mib;
        self
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(mut self, count: u32) -> Self {
        self.machine_config.vcpu_count = count;
        self
    }

    /// Pages behind guest RAM.
    #[must_use]
    pub fn huge_pages(mut self, pages: HugePages) -> Self {
        self.machine_config.huge_pages = pages;
        self
    }

    /// The kernel's command line.
    #[must_use]
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.boot_source.boot_args = Some(cmdline.into());
        self
    }

    /// A file that is put into guest RAM for the kernel.
    #[must_use]
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.boot_source.initrd_path = Some(path.into());
        self
    }

    /// The guest program's arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.ringlet.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// The VM's name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.ringlet.name = Some(name.into());
        self
    }

    /// Ends the VM this long after its start.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.ringlet.timeout_ms = Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// The boot protocol to use instead of the image's own choice.
    #[must_use]
    pub fn boot_protocol(mut self, protocol: BootProtocol) -> Self {
        self.ringlet.boot_protocol = Some(protocol);
        self
    }

    /// One more disk.
    #[must_use]
    pub fn drive(mut self, drive: Drive) -> Self {
        self.drives.push(drive);
        self
    }

    /// One more network interface.
    #[must_use]
    pub fn network_interface(mut self, interface: NetworkInterface) -> Self {
        self.network_interfaces.push(interface);
        self
    }

    /// Stream sockets between guest and host.
    #[must_use]
    pub fn vsock(mut self, vsock: Vsock) -> Self {
        self.vsock = Some(vsock);
        self
    }

    /// A source of random numbers.
    #[must_use]
    pub fn entropy(mut self) -> Self {
        self.entropy = Some(Entropy::default());
        self
    }

    /// A virtio console beside the serial port.
    #[must_use]
    pub fn console(mut self) -> Self {
        self.ringlet.console = true;
        self
    }

    /// Limits of what goes through the virtio console.
    #[must_use]
    pub fn console_rate_limiter(mut self, limiter: RateLimiter) -> Self {
        self.ringlet.console_rate_limiter = Some(limiter);
        self
    }

    /// How long the devices may take to complete what is under way.
    #[must_use]
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.ringlet.drain_timeout_ms = Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Whom the VM belongs to.
    #[must_use]
    pub fn tenant(mut self, tenant: TenantConfig) -> Self {
        self.ringlet.tenant = Some(tenant);
        self
    }

    /// What the VM may use of the host.
    #[must_use]
    pub fn limits(mut self, limits: LimitsConfig) -> Self {
        self.ringlet.limits = limits;
        self
    }

    /// The time that the devices have to complete what is under way.
    pub(crate) fn drain_limit(&self) -> Duration {
        self.ringlet.drain_timeout_ms.map_or(DEFAULT_DRAIN_TIMEOUT, Duration::from_millis)
    }

    /// Checks every range that does not depend on the host or the image.
    pub fn validate(&self) -> Result<()> {
        let MachineConfig { vcpu_count, mem_size_mib, huge_pages } = self.machine_config;
        if !(1..=MAX_VCPUS).contains(&vcpu_count) {
            return Err(Error::config("vcpu_count", format!("{vcpu_count} is not in 1..={MAX_VCPUS}")));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&mem_size_mib) {
            let range = format!("{mem_size_mib} MiB is not in {MIN_MEMORY_MIB}..={MAX_MEMORY_MIB}");
            return Err(Error::config("mem_size_mib", range));
        }
        if huge_pages == HugePages::TwoM && mem_size_mib % 2 != 0 {
            return Err(Error::config("mem_size_mib", "must be even with 2 MiB pages"));
        }
        if self.ringlet.timeout_ms == Some(0) {
            return Err(Error::config("timeout_ms", "must be at least 1"));
        }
        if let Some(limit) = self.ringlet.drain_timeout_ms
            && !(1..=MAX_DRAIN_TIMEOUT_MS).contains(&limit)
        {
            let range = format!("{limit} is not in 1..={MAX_DRAIN_TIMEOUT_MS}");
            return Err(Error::config("drain_timeout_ms", range));
        }
        self.ringlet.limits.validate()?;
        self.ringlet.tenant.iter().try_for_each(TenantConfig::validate)?;
        self.ringlet.name.as_deref().map_or(Ok(()), |name| check_name("name", name))?;
        devices::validate(self)
    }
}

fn check_name(field: &'static str, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        let rule = format!("{name:?} is not 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`");
        return Err(Error::config(field, rule));
    }
    Ok(())
}

/// Reads a regular file of at most `limit` bytes.
fn read_bounded(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, ErrorKind, Read};
    use std::os::unix::fs::OpenOptionsExt;
    // Non-blocking, so that a FIFO is refused below instead of waited for.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
