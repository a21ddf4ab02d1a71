//! Limits of what a VM may use, in cgroup v2's words.

use std::time::Duration;

use ringlet_io::limiter::{DEFAULT_WEIGHT, Limits, PerUnit, TokenBucket, WEIGHTS};
use serde::{Deserialize, Serialize};

use super::MAX_VCPUS;
use super::net_limits::NetLimits;
use crate::cpu::DEFAULT_CPU_WEIGHT;
use crate::error::{Error, Result};

/// Shortest period of `cpu.max` in microseconds, and smallest quota, as in the kernel.
pub const MIN_CPU_PERIOD_US: u64 = 1_000;
/// Longest period of `cpu.max` in microseconds, as in the kernel.
pub const MAX_CPU_PERIOD_US: u64 = 1_000_000;
/// The period of a quota that comes without one, in microseconds, as in the kernel.
pub const DEFAULT_CPU_PERIOD_US: u64 = 100_000;
/// Largest `cpu.weight`; the smallest is 1.
pub const MAX_CPU_WEIGHT: u32 = 10_000;
/// Largest quota of `cpu.max` in microseconds: every vCPU that a VM can have, for the longest period.
pub const MAX_CPU_QUOTA_US: u64 = MAX_CPU_PERIOD_US * MAX_VCPUS as u64;

/// Largest `disk.weight`; the smallest is 1.
pub const MAX_WEIGHT: u32 = *WEIGHTS.end();

/// Smallest `buffers.max` in bytes: what the serial port of a VM without devices takes. What a VM with devices takes is
/// said when it is made with too little.
pub const MIN_BUFFERS_MAX: u64 = 128 << 10;

/// What a VM may use of the host. What is left out is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// CPU time.
    #[serde(skip_serializing_if = "CpuLimits::is_default")]
    pub cpu: CpuLimits,
    /// All disks together.
    #[serde(skip_serializing_if = "DiskLimits::is_default")]
    pub disk: DiskLimits,
    /// All network interfaces together.
    #[serde(skip_serializing_if = "NetLimits::is_default")]
    pub net: NetLimits,
    /// Memory that the host holds for it besides guest RAM.
    #[serde(skip_serializing_if = "BufferLimits::is_default")]
    pub buffers: BufferLimits,
}

/// Limits of what the host buffers for a VM: output on its way, requests in flight, copies for direct I/O, saved state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BufferLimits {
    /// Bytes at most, [`MIN_BUFFERS_MAX`] or more; what the VM's devices can take at most, if absent, so that nothing is
    /// held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
}

/// Limits of CPU time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuLimits {
    /// Most CPU time of all vCPUs and devices together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<CpuMax>,
    /// Share of CPUs that others want too: 1 to [`MAX_CPU_WEIGHT`]; [`DEFAULT_CPU_WEIGHT`] if absent. It is given to the
    /// vCPU threads as a nice value; to go above the present one takes a privilege.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// `cpu.max`: so much CPU time in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuMax {
    /// CPU time in microseconds, [`MIN_CPU_PERIOD_US`] to [`MAX_CPU_QUOTA_US`]; more than the period is more than one
    /// CPU.
    pub quota_us: u64,
    /// In so much time, in microseconds: [`MIN_CPU_PERIOD_US`] to [`MAX_CPU_PERIOD_US`]; [`DEFAULT_CPU_PERIOD_US`] if
    /// absent.
    #[serde(default = "default_period")]
    pub period_us: u64,
}

/// Limits of all disks of a VM together, for each second: 1 or more. Each is a token bucket that holds a tenth of a second
/// of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskLimits {
    /// Bytes read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rbps: Option<u64>,
    /// Bytes written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wbps: Option<u64>,
    /// Reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub riops: Option<u64>,
    /// Writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wiops: Option<u64>,
    /// Bytes read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps: Option<u64>,
    /// Reads and writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Share of what the tenant may use (of a tenant: of what the host may use), beside others that want it too: 1 to
    /// [`MAX_WEIGHT`]; 100 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// Whom a VM belongs to. All VMs of a runtime that name the same tenant have its limits together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantConfig {
    /// The tenant's name: 1 to [`MAX_NAME`](super::MAX_NAME) letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What all its VMs may use together.
    #[serde(default, skip_serializing_if = "TenantLimits::is_default")]
    pub limits: TenantLimits,
}

/// Limits of all VMs of a tenant together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantLimits {
    /// All their disks.
    #[serde(skip_serializing_if = "DiskLimits::is_default")]
    pub disk: DiskLimits,
    /// All their network interfaces.
    #[serde(skip_serializing_if = "NetLimits::is_default")]
    pub net: NetLimits,
}

impl TenantLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl TenantConfig {
    /// Checks name and ranges.
    pub(crate) fn validate(&self) -> Result<()> {
        super::check_name("tenant.name", &self.name)?;
        self.limits.disk.validate("tenant.limits.disk")?;
        self.limits.net.validate("tenant.limits.net")
    }
}

const fn default_period() -> u64 {
    DEFAULT_CPU_PERIOD_US
}

impl LimitsConfig {
    /// Nothing is limited.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// At most `quota_us` microseconds of CPU time in each `period_us` microseconds.
    #[must_use]
    pub fn cpu_max(mut self, quota_us: u64, period_us: u64) -> Self {
        self.cpu.max = Some(CpuMax { quota_us, period_us });
        self
    }

    /// The share of CPUs that others want too.
    #[must_use]
    pub fn cpu_weight(mut self, weight: u32) -> Self {
        self.cpu.weight = Some(weight);
        self
    }

    /// What all disks together may do.
    #[must_use]
    pub fn disk(mut self, disk: DiskLimits) -> Self {
        self.disk = disk;
        self
    }

    /// What all network interfaces together may do.
    #[must_use]
    pub fn net(mut self, net: NetLimits) -> Self {
        self.net = net;
        self
    }

    /// At most so many bytes of buffers.
    #[must_use]
    pub fn buffers_max(mut self, bytes: u64) -> Self {
        self.buffers.max = Some(bytes);
        self
    }

    /// Checks every range.
    pub fn validate(&self) -> Result<()> {
        self.disk.validate("limits.disk")?;
        self.net.validate("limits.net")?;
        self.buffers.validate()?;
        self.cpu.validate()
    }
}

impl BufferLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn validate(&self) -> Result<()> {
        match self.max {
            Some(max) if max < MIN_BUFFERS_MAX => {
                let rule = format!("{max} bytes are too few; no VM takes less than {MIN_BUFFERS_MAX}");
                Err(Error::config("buffers.max", rule))
            }
            _ => Ok(()),
        }
    }
}

impl CpuLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The weight, or the one of a VM that does not say.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.unwrap_or(DEFAULT_CPU_WEIGHT)
    }

    fn validate(&self) -> Result<()> {
        let check = |field, value: u64, least: u64, most: u64| {
            let range = || Error::config(field, format!("{value} is not in {least}..={most}"));
            (least..=most).contains(&value).then_some(()).ok_or_else(range)
        };
        if let Some(CpuMax { quota_us, period_us }) = self.max {
            check("cpu.max.quota_us", quota_us, MIN_CPU_PERIOD_US, MAX_CPU_QUOTA_US)?;
            check("cpu.max.period_us", period_us, MIN_CPU_PERIOD_US, MAX_CPU_PERIOD_US)?;
        }
        check("cpu.weight", self.weight().into(), 1, MAX_CPU_WEIGHT.into())
    }
}

impl DiskLimits {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The limits that the disks' level is to have.
    pub(crate) fn limits(&self) -> Limits {
        let Self { rbps, wbps, riops, wiops, bps, iops, .. } = *self;
        let unit = |operations: Option<u64>, bytes: Option<u64>| PerUnit {
            operations: operations.map(bucket),
            bytes: bytes.map(bucket),
        };
        Limits { read: unit(riops, rbps), write: unit(wiops, wbps), total: unit(iops, bps) }
    }

    /// The weight, or the one of who does not say.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.unwrap_or(DEFAULT_WEIGHT)
    }

    /// Checks every range; the limits are `field` of the configuration.
    pub(crate) fn validate(&self, field: &'static str) -> Result<()> {
        let Self { rbps, wbps, riops, wiops, bps, iops, .. } = *self;
        if !(1..=MAX_WEIGHT).contains(&self.weight()) {
            return Err(Error::config(field, format!("weight {} is not in 1..={MAX_WEIGHT}", self.weight())));
        }
        let rates = [
            ("rbps", rbps),
            ("wbps", wbps),
            ("riops", riops),
            ("wiops", wiops),
            ("bps", bps),
            ("iops", iops),
        ];
        match rates.into_iter().find(|(_, value)| *value == Some(0)) {
            Some((rate @ ("wbps" | "wiops"), _)) => Err(Error::config(
                field,
                format!("{rate} is 0: no write would ever pass; make the disks read-only, or say 1 or more"),
            )),
            Some((rate, _)) => {
                Err(Error::config(field, format!("{rate} is 0: nothing would ever pass; say 1 or more")))
            }
            None => Ok(()),
        }
    }
}

/// A bucket for a rate: a tenth of a second of it, or another part from a sixteenth to a fourth that makes the rate exact;
/// else a tenth, and the rate is at most a nanosecond in a refill time less.
pub(super) fn bucket(per_second: u64) -> TokenBucket {
    const SECOND: u64 = 1_000_000_000;
    // Of what divides a second.
    let parts =
        [10, 8, 16, 5, 4].into_iter().find(|&parts| per_second >= parts && per_second.is_multiple_of(parts));
    if let Some(parts) = parts {
        return TokenBucket::new(per_second / parts, Duration::from_nanos(SECOND / parts));
    }
    let size = (per_second / 10).max(1);
    let nanos = (u128::from(size) * u128::from(SECOND)).div_ceil(u128::from(per_second.max(1)));
    TokenBucket::new(size, Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}

#[cfg(test)]
#[path = "limits_test.rs"]
mod tests;
