//! The socket device of a VM, in Firecracker's words (`vsock`); what it has no words for stands under `ringlet`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ringlet_io::limiter::Limits;
use serde::{Deserialize, Serialize};

use super::firecracker;
use super::rate_limiter::RateLimiter;
use crate::error::{Error, Result};

/// Name of the socket device.
pub const VSOCK_ID: &str = "vsock0";
/// Smallest address of a guest: those below are the hypervisor's, the loopback's and the host's (virtio 1.2, section
/// 5.10.4).
pub const MIN_CID: u32 = 3;
/// Largest address of a guest.
pub const MAX_CID: u32 = u32::MAX - 1;
/// Most connections of a socket device at once.
pub const MAX_CONNECTIONS: u32 = 10_000;
/// Longest `uds_path` in bytes: what the address of a Unix socket has room for. The paths of the host's ports are longer by
/// `_` and the port's digits.
pub const MAX_UDS_PATH: usize = 107;

/// Stream sockets between the guest and the host, in Firecracker's words. Without a path and a descriptor, only this process
/// has connections with the guest ([`Vm::vsock_connect`](crate::Vm::vsock_connect),
/// [`Vm::vsock_listen`](crate::Vm::vsock_listen)).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address (CID), [`MIN_CID`] to [`MAX_CID`]; one that no other VM of the runtime has if absent. VMs may
    /// have the same if they are told to, as under Firecracker, where it is often 3: it names the device to its guest (virtio
    /// 1.2, section 5.10.4), and who is connected to is said by the path, the descriptor or the [`Vm`](crate::Vm). Nothing goes
    /// from one VM to another by it. `ringlet run --count` gives VMs consecutive ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_cid: Option<u32>,
    /// Where the host listens: a Unix stream socket, made with the VM and removed with it. Whoever connects and writes
    /// `CONNECT <port>\n` is connected to that port of the guest, after `OK <host port>\n`. A connection of the guest to a port
    /// of the host goes to the socket at this path with `_<port>` behind it. At most [`MAX_UDS_PATH`] bytes. A socket that is
    /// made cannot have such a name itself: the guest of a VM whose path is the front of it could connect to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uds_path: Option<PathBuf>,
    /// What Firecracker has no words for.
    #[serde(default)]
    pub ringlet: VsockExtras,
}

firecracker::known_to_firecracker!(Vsock, firecracker::VSOCK);

/// What Firecracker's socket device has no words for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VsockExtras {
    /// A descriptor of this process instead of a socket that is made: a Unix stream socket that listens. With
    /// `uds_path`, that is only where the guest's connections go. It stays open, but becomes close-on-exec, and what is open
    /// there, for whoever else has it, non-blocking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// Most connections at once, 1 to [`MAX_CONNECTIONS`].
    pub max_connections: u32,
    /// Limits of what the guest receives: a packet is one operation, its bytes are the data's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl Default for VsockExtras {
    fn default() -> Self {
        Self { fd: None, max_connections: MAX_CONNECTIONS, rx_rate_limiter: None, tx_rate_limiter: None }
    }
}

impl Vsock {
    /// Connections with this process only, under an address that no other VM of the runtime has.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the host listens, and where the guest's connections go.
    #[must_use]
    pub fn uds(mut self, path: impl Into<PathBuf>) -> Self {
        self.uds_path = Some(path.into());
        self
    }

    /// A listening Unix stream socket of this process, which stays open, but becomes close-on-exec; what is open there, for
    /// whoever else has it, becomes non-blocking.
    #[must_use]
    pub fn fd(mut self, fd: i32) -> Self {
        self.ringlet.fd = Some(fd);
        self
    }

    /// The guest's address, [`MIN_CID`] to [`MAX_CID`].
    #[must_use]
    pub fn cid(mut self, cid: u32) -> Self {
        self.guest_cid = Some(cid);
        self
    }

    /// Most connections at once, 1 to [`MAX_CONNECTIONS`].
    #[must_use]
    pub fn max_connections(mut self, count: u32) -> Self {
        self.ringlet.max_connections = count;
        self
    }

    /// Limits of what the guest receives and sends.
    #[must_use]
    pub fn rate_limiters(mut self, received: RateLimiter, sent: RateLimiter) -> Self {
        (self.ringlet.rx_rate_limiter, self.ringlet.tx_rate_limiter) = (Some(received), Some(sent));
        self
    }

    /// The limits that the device's level is to have: what is received is read, what is sent is written.
    pub(crate) fn limits(&self) -> Limits {
        let unit = |limiter: Option<RateLimiter>| limiter.unwrap_or_default().limits().total;
        let VsockExtras { rx_rate_limiter, tx_rate_limiter, .. } = self.ringlet;
        Limits { read: unit(rx_rate_limiter), write: unit(tx_rate_limiter), ..Limits::default() }
    }

    /// Checks every range that does not depend on the host.
    pub(super) fn validate(&self) -> Result<()> {
        if let Some(cid) = self.guest_cid.filter(|cid| !(MIN_CID..=MAX_CID).contains(cid)) {
            let range = format!("{cid} is not in {MIN_CID}..={MAX_CID}");
            return Err(Error::config("guest_cid", range));
        }
        if let Some(path) = &self.uds_path {
            let len = path.as_os_str().as_bytes().len();
            if !(1..=MAX_UDS_PATH).contains(&len) {
                let rule = format!("{} has {len} bytes, not 1 to {MAX_UDS_PATH}", path.display());
                return Err(Error::config("uds_path", rule));
            }
            if self.ringlet.fd.is_none() && is_of_a_port(path) {
                let rule = format!(
                    "{} ends like the socket of a host's port (`_` and a number), which the guest of another VM could reach; \
                     give it another name",
                    path.display()
                );
                return Err(Error::config("uds_path", rule));
            }
        }
        let VsockExtras { fd, max_connections, rx_rate_limiter, tx_rate_limiter } = self.ringlet;
        if fd.is_some_and(|fd| fd < 0) {
            return Err(Error::config("fd", "of vsock: a descriptor is 0 or more"));
        }
        if !(1..=MAX_CONNECTIONS).contains(&max_connections) {
            let range = format!("{max_connections} is not in 1..={MAX_CONNECTIONS}");
            return Err(Error::config("max_connections", range));
        }
        let limiters = [("rx_rate_limiter", rx_rate_limiter), ("tx_rate_limiter", tx_rate_limiter)];
        limiters.into_iter().try_for_each(|(field, limiter)| {
            let valid = limiter.map_or(Ok(()), |limiter| limiter.validate());
            valid.map_err(|why| Error::config(field, format!("of vsock: {why}")))
        })
    }
}

/// Whether a path may be that of a port of the host: another socket's path with `_<port>` behind it.
fn is_of_a_port(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let digits = name.rsplit(|byte| *byte == b'_').next().filter(|digits| digits.len() < name.len());
    digits.and_then(|digits| str::from_utf8(digits).ok()).is_some_and(|digits| {
        // As the number is written, that is: without a sign or a zero in front.
        digits.parse::<u32>().is_ok_and(|port| port.to_string() == digits)
    })
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
