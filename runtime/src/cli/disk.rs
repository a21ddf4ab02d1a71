//! The value of `--disk`: a disk in one line.
//!
//! Owns the syntax only; ranges are checked where the configuration is.

use ringlet::{CacheType, Drive, VmConfig};

use super::size;

/// Size of a null disk that does not say.
const NULL_SIZE: u64 = 1 << 30;

/// The keys, and other words for them.
const KEYS: [(&str, &[&str]); 8] = [
    ("path", &["file", "filename", "image"]),
    ("id", &["name", "drive_id"]),
    ("readonly", &["ro", "read-only", "read_only", "is_read_only"]),
    ("direct", &["o_direct"]),
    ("cache", &["cache_type"]),
    ("queues", &["num_queues", "queue"]),
    ("queue_size", &["queue-size", "depth"]),
    ("serial", &["serial_number"]),
];

/// A disk of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskArg {
    /// Without a name, if none was given.
    drive: Drive,
}

/// Understands `path=FILE[,KEY[=VALUE]]…`, `null[:SIZE][,…]` and `memory:SIZE[,…]`.
pub(super) fn parse(text: &str) -> Result<DiskArg, String> {
    let (source, options) = text.split_once(',').map_or((text, None), |(source, rest)| (source, Some(rest)));
    let mut drive = match source.split_once(':') {
        _ if source == "null" => Drive::null("", NULL_SIZE),
        _ if source == "memory" => return Err("a memory disk needs a size: memory:64M".into()),
        Some(("null", size)) => Drive::null("", size::parse(size)?),
        Some(("memory", size)) => Drive::memory("", size::parse(size)?),
        _ => return parse_options(Drive::file("", ""), text).and_then(with_path),
    };
    if let Some(options) = options {
        drive = parse_options(drive, options)?.drive;
        if drive.path_on_host.is_some() {
            return Err("a null or memory disk has no path".into());
        }
    }
    Ok(DiskArg { drive })
}

fn with_path(disk: DiskArg) -> Result<DiskArg, String> {
    match &disk.drive.path_on_host {
        Some(path) if !path.as_os_str().is_empty() => Ok(disk),
        _ => Err("which disk? Say path=FILE, null:SIZE or memory:SIZE".into()),
    }
}

fn parse_options(mut drive: Drive, text: &str) -> Result<DiskArg, String> {
    let mut seen = Vec::new();
    for option in text.split(',') {
        let (key, value) = option.split_once('=').map_or((option, None), |(key, value)| (key, Some(value)));
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
        apply(&mut drive, key, value)?;
    }
    Ok(DiskArg { drive })
}

fn apply(drive: &mut Drive, key: &str, value: Option<&str>) -> Result<(), String> {
    let needed =
        || value.filter(|value| !value.is_empty()).ok_or_else(|| format!("{key} needs a value: {key}=…"));
    let number = || {
        let value = needed()?;
        value.parse().map_err(|_| format!("{key}={value}: not a number that a disk can have"))
    };
    let switch = || match value {
        None | Some("on" | "true") => Ok(true),
        Some("off" | "false") => Ok(false),
        Some(other) => Err(format!("{key}={other}: say on or off")),
    };
    match key {
        "path" => drive.path_on_host = Some(needed()?.into()),
        "id" => drive.drive_id = needed()?.into(),
        "readonly" => drive.is_read_only = switch()?,
        "direct" => drive.ringlet.direct = switch()?,
        "queues" => drive.ringlet.queues = number()?,
        "queue_size" => drive.ringlet.queue_size = number()?,
        "serial" => drive.ringlet.serial = Some(needed()?.into()),
        "cache" => {
            drive.cache_type = match needed()? {
                "writeback" => CacheType::Writeback,
                "unsafe" => CacheType::Unsafe,
                other => return Err(format!("cache={other}: say writeback or unsafe")),
            }
        }
        unknown => return Err(unknown_key(unknown, value)),
    }
    Ok(())
}

fn unknown_key(key: &str, value: Option<&str>) -> String {
    if key.is_empty() {
        return "it is empty, or there is a comma too many".into();
    }
    let alike = |known: &str| key.get(..3).is_some_and(|start| known.starts_with(start));
    let meant = KEYS.iter().find(|(known, others)| others.contains(&key) || alike(known));
    match meant {
        Some((known, _)) => format!("there is no {key:?}; did you mean {known:?}?"),
        None if value.is_none() && (key.contains('/') || key.contains('.')) => {
            format!("{key:?} looks like a file: say path={key}")
        }
        None => {
            let options: Vec<_> =
                KEYS.iter().map(|(known, _)| *known).filter(|known| *known != "path").collect();
            format!(
                "there is no {key:?}; there are path=FILE, null[:SIZE] or memory:SIZE, and then {}",
                options.join(", ")
            )
        }
    }
}

/// Gives `config` the disks of the command line. One with the name of a disk that is there takes its place; one
/// without a name gets the first of disk0, disk1 … that is free.
pub(super) fn add(config: &mut VmConfig, disks: &[DiskArg]) {
    let mut given: Vec<Drive> = disks.iter().map(|disk| disk.drive.clone()).collect();
    for index in 0..given.len() {
        let taken = |id: &String| config.drives.iter().chain(&given).any(|drive| drive.drive_id == *id);
        let free = (0_u32..).map(|n| format!("disk{n}")).find(|id| !taken(id));
        if let Some(drive) = given.get_mut(index).filter(|drive| drive.drive_id.is_empty()) {
            drive.drive_id = free.unwrap_or_default();
        }
    }
    for drive in &mut config.drives {
        if let Some(index) = given.iter().position(|new| new.drive_id == drive.drive_id) {
            *drive = given.remove(index);
        }
    }
    config.drives.append(&mut given);
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
