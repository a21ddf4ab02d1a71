//! The value of `--limit`: what a VM may use, as `KEY=VALUE,…`.
//!
//! Owns the syntax only; ranges are checked where the configuration is.

use std::time::Duration;

use ringlet::{CpuMax, DEFAULT_CPU_PERIOD_US, DiskLimits, LimitsConfig, NetLimits, TenantLimits};

/// The keys, in the order in which they are named.
const KEYS: [&str; 15] = [
    "cpu.max",
    "cpu.weight",
    "disk.rbps",
    "disk.wbps",
    "disk.riops",
    "disk.wiops",
    "disk.bps",
    "disk.iops",
    "disk.weight",
    "net.rx.bps",
    "net.rx.pps",
    "net.tx.bps",
    "net.tx.pps",
    "net.weight",
    "buffers.max",
];

/// Limits of one `--limit`, to be laid over those that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LimitArg(Vec<Limit>);

/// One key with its value; `None` takes a limit away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    CpuMax(Option<CpuMax>),
    CpuWeight(u32),
    Disk(Disk, Option<u64>),
    DiskWeight(u32),
    Net(Net, Option<u64>),
    NetWeight(u32),
    BuffersMax(Option<u64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disk {
    ReadBytes,
    WrittenBytes,
    Reads,
    Writes,
    Bytes,
    Requests,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Net {
    ReceivedBytes,
    ReceivedPackets,
    SentBytes,
    SentPackets,
}

impl LimitArg {
    /// True if a tenant can have all of it.
    pub(super) fn is_for_tenants(&self) -> bool {
        let is_shared = |limit: &Limit| match limit {
            Limit::Disk(..) | Limit::DiskWeight(_) | Limit::Net(..) | Limit::NetWeight(_) => true,
            Limit::CpuMax(_) | Limit::CpuWeight(_) | Limit::BuffersMax(_) => false,
        };
        self.0.iter().all(is_shared)
    }

    /// Lays limits of a tenant over those that it has.
    pub(super) fn add_to_tenant(&self, limits: &mut TenantLimits) {
        let mut all = LimitsConfig::default().disk(limits.disk).net(limits.net);
        add(&mut all, std::slice::from_ref(self));
        *limits = TenantLimits { disk: all.disk, net: all.net };
    }
}

/// Understands `KEY=VALUE[,KEY=VALUE]…`.
pub(super) fn parse(text: &str) -> Result<LimitArg, String> {
    let mut limits = Vec::new();
    let mut seen = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| wants_value(part))?;
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
        limits.push(limit(key, value).map_err(|why| format!("{key}={value}: {why}"))?);
    }
    Ok(LimitArg(limits))
}

fn wants_value(part: &str) -> String {
    match part {
        "" => "it is empty, or there is a comma too many".into(),
        key if KEYS.contains(&key) => format!("{key} needs a value: {key}=…"),
        key => unknown(key),
    }
}

fn limit(key: &str, value: &str) -> Result<Limit, String> {
    let disk = |meter, thousand| Ok(Limit::Disk(meter, unless_max(value, |value| rate(value, thousand))?));
    let net = |meter, thousand| Ok(Limit::Net(meter, unless_max(value, |value| rate(value, thousand))?));
    match key {
        "cpu.max" => Ok(Limit::CpuMax(cpu_max(value)?)),
        "cpu.weight" => weight(value).map(Limit::CpuWeight),
        "disk.weight" => weight(value).map(Limit::DiskWeight),
        "net.weight" => weight(value).map(Limit::NetWeight),
        "net.rx.bps" => net(Net::ReceivedBytes, 1024),
        "net.rx.pps" => net(Net::ReceivedPackets, 1000),
        "net.tx.bps" => net(Net::SentBytes, 1024),
        "net.tx.pps" => net(Net::SentPackets, 1000),
        "buffers.max" => unless_max(value, |value| rate(value, 1024)).map(Limit::BuffersMax),
        "disk.rbps" => disk(Disk::ReadBytes, 1024),
        "disk.wbps" => disk(Disk::WrittenBytes, 1024),
        "disk.riops" => disk(Disk::Reads, 1000),
        "disk.wiops" => disk(Disk::Writes, 1000),
        "disk.bps" => disk(Disk::Bytes, 1024),
        "disk.iops" => disk(Disk::Requests, 1000),
        key => Err(unknown(key)),
    }
}

fn weight(value: &str) -> Result<u32, String> {
    value.parse().map_err(|_| "not a number from 1 to 10000".into())
}

fn unknown(key: &str) -> String {
    format!("there is no limit {key:?}; there are {}", KEYS.join(", "))
}

/// `max` is no limit, as in cgroup v2.
fn unless_max<T>(value: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if value == "max" { Ok(None) } else { parse(value).map(Some) }
}

/// `QUOTA[/PERIOD]`; `max[/PERIOD]` is no limit.
fn cpu_max(value: &str) -> Result<Option<CpuMax>, String> {
    let (quota, period) =
        value.split_once('/').map_or((value, None), |(quota, period)| (quota, Some(period)));
    let period_us = period.map_or(Ok(DEFAULT_CPU_PERIOD_US), microseconds)?;
    let quota_us = unless_max(quota, microseconds)?;
    Ok(quota_us.map(|quota_us| CpuMax { quota_us, period_us }))
}

fn microseconds(text: &str) -> Result<u64, String> {
    let time: Duration =
        humantime::parse_duration(text).map_err(|e| format!("{e}; write 50ms or 50ms/100ms"))?;
    match u64::try_from(time.as_micros()) {
        Ok(micros) if time.subsec_nanos().is_multiple_of(1000) => Ok(micros),
        _ => Err("not a number of microseconds".into()),
    }
}

/// A number with a suffix K, M, G or T, or without: powers of `thousand`.
fn rate(text: &str, thousand: u64) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|_| "not a whole number with or without a suffix, such as 10M".to_owned())?;
    let power = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "K" | "k" => 1,
        "M" | "m" => 2,
        "G" | "g" => 3,
        "T" | "t" => 4,
        "KiB" | "MiB" | "GiB" | "TiB" if thousand == 1024 => return super::size::parse(text),
        other => return Err(format!("{other:?} is not one of the suffixes K, M, G, T")),
    };
    thousand.checked_pow(power).and_then(|unit| number.checked_mul(unit)).ok_or_else(|| "is too large".into())
}

/// Lays the limits of the command line over `limits`; of several for one key the last counts.
pub(super) fn add(limits: &mut LimitsConfig, args: &[LimitArg]) {
    for limit in args.iter().flat_map(|LimitArg(limits)| limits) {
        match *limit {
            Limit::CpuMax(max) => limits.cpu.max = max,
            Limit::CpuWeight(weight) => limits.cpu.weight = Some(weight),
            Limit::DiskWeight(weight) => limits.disk.weight = Some(weight),
            Limit::NetWeight(weight) => limits.net.weight = Some(weight),
            Limit::BuffersMax(max) => limits.buffers.max = max,
            Limit::Disk(meter, rate) => *disk_rate(&mut limits.disk, meter) = rate,
            Limit::Net(meter, rate) => *net_rate(&mut limits.net, meter) = rate,
        }
    }
}

fn disk_rate(disk: &mut DiskLimits, meter: Disk) -> &mut Option<u64> {
    match meter {
        Disk::ReadBytes => &mut disk.rbps,
        Disk::WrittenBytes => &mut disk.wbps,
        Disk::Reads => &mut disk.riops,
        Disk::Writes => &mut disk.wiops,
        Disk::Bytes => &mut disk.bps,
        Disk::Requests => &mut disk.iops,
    }
}

fn net_rate(net: &mut NetLimits, meter: Net) -> &mut Option<u64> {
    match meter {
        Net::ReceivedBytes => &mut net.rx.bps,
        Net::ReceivedPackets => &mut net.rx.pps,
        Net::SentBytes => &mut net.tx.bps,
        Net::SentPackets => &mut net.tx.pps,
    }
}

#[cfg(test)]
#[path = "limit_test.rs"]
mod tests;
