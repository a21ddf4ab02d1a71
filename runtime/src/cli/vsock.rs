//! The value of `--vsock`: the host's side of the socket device in one line.
//!
//! Owns the syntax, and what becomes of it with `--count`; ranges are checked where the configuration is.

use std::path::{Path, PathBuf};

use ringlet::{MAX_CID, MAX_CONNECTIONS, MIN_CID, VmConfig, Vsock};

/// The keys.
const KEYS: [&str; 4] = ["uds", "fd", "cid", "connections"];

/// Understands `uds=PATH` and `fd=N`, with options, each after a comma.
pub(super) fn parse(text: &str) -> Result<Vsock, String> {
    let mut vsock = Vsock::new();
    let mut seen = Vec::new();
    for option in text.split(',') {
        let (key, value) = option.split_once('=').map_or((option, ""), |(key, value)| (key, value));
        if seen.contains(&key) {
            return Err(format!("{key} is given twice"));
        }
        seen.push(key);
        apply(&mut vsock, key, value)?;
    }
    if vsock.uds_path.is_none() && vsock.ringlet.fd.is_none() {
        return Err("where does the host listen? Say uds=PATH, or fd=N".into());
    }
    Ok(vsock)
}

fn apply(vsock: &mut Vsock, key: &str, value: &str) -> Result<(), String> {
    match key {
        "" => return Err("it is empty, or there is a comma too many".into()),
        key if value.is_empty() && key.contains('/') => {
            return Err(format!("{key:?} looks like a socket: say uds={key}"));
        }
        key if !KEYS.contains(&key) => {
            return Err(format!("there is no {key:?}; there are {}", KEYS.join(", ")));
        }
        key if value.is_empty() => return Err(format!("{key} needs a value: {key}=…")),
        _ => {}
    }
    let number = |least, most| {
        value.parse::<u32>().map_err(|_| format!("{key}={value}: not a number from {least} to {most}"))
    };
    match key {
        "uds" => vsock.uds_path = Some(value.into()),
        "cid" => vsock.guest_cid = Some(number(MIN_CID, MAX_CID)?),
        "connections" => vsock.ringlet.max_connections = number(1, MAX_CONNECTIONS)?,
        _ => {
            let fd = value.parse().ok().filter(|fd| *fd >= 0);
            vsock.ringlet.fd = Some(fd.ok_or("fd: give the number of an open descriptor")?);
        }
    }
    Ok(())
}

/// Refuses what only one VM can have.
pub(super) fn check_sharing(config: &VmConfig, count: u32) -> Result<(), String> {
    let Some(vsock) = config.vsock.as_ref().filter(|_| count > 1) else { return Ok(()) };
    if vsock.ringlet.fd.is_some() {
        return Err(format!(
            "--count {count}: {count} VMs cannot accept on one descriptor; give a path, of which each VM gets its own"
        ));
    }
    let last = vsock.guest_cid.map(|cid| cid.checked_add(count - 1).filter(|last| *last <= MAX_CID));
    if last == Some(None) {
        return Err(format!("--count {count}: there are not so many addresses from cid on"));
    }
    Ok(())
}

/// What the VM `number`, from 1, of many has of the one that was asked for: a path and an address of its own.
pub(super) fn of_many(config: &mut VmConfig, number: u32) {
    let Some(vsock) = &mut config.vsock else { return };
    vsock.uds_path = vsock.uds_path.as_deref().map(|path| numbered(path, number));
    vsock.guest_cid = vsock.guest_cid.map(|first| first.saturating_add(number - 1));
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(format!("-{number}"));
    path.into()
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
