//! Opening a tap: by its name, made if need be, or given as descriptors.
//!
//! Owns the checks: that it is a tap, that packets have the header that a guest needs and nothing before it, that it
//! has as many queues as were asked for and nobody else has any. Runs where a VM is assembled, since every call
//! waits for the kernel's network configuration lock. Never changes whether a tap persists, is up, or has addresses:
//! one that was there before is left as it was found, one that was made goes with its last descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat, major, minor};
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::control::wait_for_closing;
use super::ioctl::{self, NAME_SIZE, TapFlags};
use super::tap_error::TapError;
use super::{HEADER, NetInfo, Offloads};

/// Most queues that a tap has (`MAX_TAP_QUEUES`).
pub const MAX_TAP_QUEUES: u16 = 256;
/// Most packets that [`drop_packets`] takes from a queue: more than there are, unless the tap was told otherwise (500).
const MOST_DROPPED: usize = 4096;
/// Where taps are made and opened.
const TUN_DEVICE: &str = "/dev/net/tun";
/// Its number: what else speaks the same calls (macvtap) has another.
const TUN_NUMBER: (u32, u32) = (10, 200);
/// What every tap must have here.
const NEEDED: TapFlags = TapFlags::TAP.with(TapFlags::NO_PI).with(TapFlags::VNET_HDR);

/// An open tap, ready to be attached. `Send`.
#[derive(Debug)]
pub struct Tap {
    name: String,
    pub(super) queues: Vec<OwnedFd>,
    info: NetInfo,
}

impl Tap {
    /// Opens the tap called `name` with `queue_pairs` (1 to [`MAX_TAP_QUEUES`]) pairs of queues, and makes it if there is
    /// none. Waits for the kernel: not to be called on a shard.
    ///
    /// # Errors
    /// [`TapError`]. Making one, and using one of another user's, takes `CAP_NET_ADMIN`. That somebody else uses it is
    /// always told of a tap with one queue, and of one with several since Linux 6.8.
    pub fn open(name: &str, queue_pairs: u16) -> Result<Self, TapError> {
        match Self::try_open(name, queue_pairs) {
            // It may be that of a VM that has just ended.
            Err(TapError::InUse { .. }) if wait_for_closing() => Self::try_open(name, queue_pairs),
            result => result,
        }
    }

    pub(super) fn try_open(name: &str, queue_pairs: u16) -> Result<Self, TapError> {
        let opening = Opening { name };
        if !is_name(name) {
            return Err(TapError::Name { name: name.to_owned() });
        }
        if !(1..=MAX_TAP_QUEUES).contains(&queue_pairs) {
            return Err(TapError::Queues { name: name.to_owned(), queues: queue_pairs.into() });
        }
        let socket = opening.call("socket", any_socket())?;
        let existed = name_to_index(&socket, name).is_ok();
        let (first, flags) = opening.first(queue_pairs, existed)?;
        let mut queues = vec![first];
        for _ in 1..queue_pairs {
            let queue = opening.device()?;
            let attached = ioctl::attach(queue.as_fd(), name, flags);
            attached.map_err(|error| opening.refused(&error, existed, queue_pairs))?;
            queues.push(queue);
        }
        let in_use = opening.call_io("ETHTOOL_GCHANNELS", ioctl::queues(name, socket.as_fd()))?;
        if in_use.is_some_and(|queues| queues > u32::from(queue_pairs)) {
            return Err(TapError::InUse { name: name.to_owned() });
        }
        opening.finish(queues)
    }

    /// Takes over descriptors of one tap (or macvtap), one a pair of queues, which somebody attached who may. They must
    /// be for nobody else's use, and become non-blocking; packets that wait there are dropped. Waits for the kernel: not
    /// to be called on a shard.
    ///
    /// # Errors
    /// [`TapError`]: among others, the tap has no `IFF_VNET_HDR`.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        let mut name = String::new();
        for (index, fd) in fds.iter().enumerate() {
            let number = fd.as_raw_fd();
            let (its_name, flags) =
                ioctl::interface(fd.as_fd()).map_err(|source| TapError::NotATap { number, source })?;
            let no_prefix = flags.has(TapFlags::NO_PI) && ioctl::has_no_prefix(fd.as_fd()).unwrap_or(true);
            if let Some(missing) = missing_flag(flags, no_prefix, fds.len() > 1) {
                return Err(TapError::Flag { number, name: its_name, missing });
            }
            if index > 0 && its_name != name {
                return Err(TapError::TwoTaps { number, name: its_name, other: name });
            }
            name = its_name;
        }
        let opening = Opening { name: &name };
        if fds.is_empty() || fds.len() > MAX_TAP_QUEUES.into() {
            return Err(TapError::Queues { name: name.clone(), queues: fds.len() });
        }
        for fd in &fds {
            opening.call("FIONBIO", ioctl_fionbio(fd, true))?;
            opening.call("F_SETFD", fcntl_setfd(fd, FdFlags::CLOEXEC))?;
        }
        let tap = opening.finish(fds)?;
        // They may be unfinished in ways that nobody accepted here.
        tap.queues.iter().for_each(drop_packets);
        Ok(tap)
    }

    /// Uses less of what the kernel can leave to the guest and take from it.
    pub fn limit_offloads(&mut self, most: Offloads) {
        self.info.offloads = self.info.offloads.and(most);
    }

    /// The interface's name, where it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it can do.
    pub fn info(&self) -> NetInfo {
        self.info
    }
}

/// A tap that is being opened.
struct Opening<'a> {
    name: &'a str,
}

impl Opening<'_> {
    fn device(&self) -> Result<OwnedFd, TapError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(TUN_DEVICE, flags, Mode::empty())
            .map_err(|error| TapError::Device { name: self.name.to_owned(), source: error.into() })
    }

    /// The first queue, and the flags that the others are to be opened with.
    fn first(&self, queue_pairs: u16, existed: bool) -> Result<(OwnedFd, TapFlags), TapError> {
        let device = self.device()?;
        let many = NEEDED.with(TapFlags::MULTI_QUEUE);
        let flags = if queue_pairs > 1 { many } else { NEEDED };
        match ioctl::attach(device.as_fd(), self.name, flags) {
            Ok(()) => Ok((device, flags)),
            // One queue of a tap that can have more.
            Err(error) if is(&error, Errno::INVAL) && existed && flags == NEEDED => {
                ioctl::attach(device.as_fd(), self.name, many)
                    .map_err(|error| self.refused(&error, existed, queue_pairs))?;
                Ok((device, many))
            }
            Err(error) => Err(self.refused(&error, existed, queue_pairs)),
        }
    }

    /// Why `TUNSETIFF` failed.
    fn refused(&self, error: &std::io::Error, existed: bool, queue_pairs: u16) -> TapError {
        let name = self.name.to_owned();
        match Errno::from_io_error(error) {
            Some(Errno::PERM) if existed => TapError::NotOurs { name },
            Some(Errno::PERM) => TapError::CannotMake { name, multi_queue: queue_pairs > 1 },
            Some(Errno::BUSY) => TapError::InUse { name },
            Some(Errno::INVAL) if existed => TapError::NoSuchTap { name, multi_queue: queue_pairs > 1 },
            code => {
                let source = code.map_or(Errno::IO, |code| code).into();
                TapError::Call { name, call: "TUNSETIFF", source }
            }
        }
    }

    fn finish(&self, queues: Vec<OwnedFd>) -> Result<Tap, TapError> {
        let no_queue = || TapError::Queues { name: self.name.to_owned(), queues: 0 };
        let first = queues.first().ok_or_else(no_queue)?.as_fd();
        let size = libc::c_int::try_from(HEADER).unwrap_or(0);
        self.call_io("TUNSETVNETHDRSZ", ioctl::set_header(first, size))?;
        let info = NetInfo {
            mac: if is_tun(first) { None } else { ioctl::address(first).ok() },
            mtu: self.mtu(first),
            queue_pairs: u16::try_from(queues.len()).unwrap_or(MAX_TAP_QUEUES),
            offloads: self.call_io("TUNSETOFFLOAD", probe_offloads(first))?,
        };
        Ok(Tap { name: self.name.to_owned(), queues, info })
    }

    /// The MTU, if the interface is the one of this name here: a descriptor may be from another network namespace.
    fn mtu(&self, tap: BorrowedFd<'_>) -> Option<u16> {
        let socket = any_socket().ok()?;
        let address = ioctl::address(tap).ok()?;
        (ioctl::address_of(self.name, socket.as_fd()).ok()? == address).then_some(())?;
        let mtu = ioctl::mtu(self.name, socket.as_fd()).ok()?;
        Some(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    fn call<T>(&self, call: &'static str, result: rustix::io::Result<T>) -> Result<T, TapError> {
        self.call_io(call, result.map_err(std::io::Error::from))
    }

    fn call_io<T>(&self, call: &'static str, result: std::io::Result<T>) -> Result<T, TapError> {
        result.map_err(|source| TapError::Call { name: self.name.to_owned(), call, source })
    }
}

/// What may be left unfinished, as the kernel says. Leaves the tap without any.
fn probe_offloads(tap: BorrowedFd<'_>) -> std::io::Result<Offloads> {
    let most = Offloads::ALL;
    let fewer = Offloads { uso4: false, uso6: false, ..most };
    let least = Offloads { checksum: true, ..Offloads::NONE };
    let kinds = [most, fewer, least, Offloads::NONE];
    let works = |offloads: &Offloads| ioctl::set_offloads(tap, offloads.tap_bits()).is_ok();
    let found = kinds.into_iter().find(works).unwrap_or(Offloads::NONE);
    ioctl::set_offloads(tap, Offloads::NONE.tap_bits())?;
    Ok(found)
}

/// Takes what waits in a queue that has headers of [`HEADER`] bytes.
pub(super) fn drop_packets(queue: &OwnedFd) {
    // What does not fit is lost, which is the purpose.
    let mut start = [0; HEADER];
    let dropped = (0..MOST_DROPPED).take_while(|_| rustix::io::read(queue, &mut start).is_ok()).count();
    if dropped > 0 {
        tracing::debug!(dropped, "packets that waited at a tap were dropped: they may be unfinished");
    }
}

fn missing_flag(flags: TapFlags, no_prefix: bool, several: bool) -> Option<&'static str> {
    let wanted = [
        (flags.has(TapFlags::TAP), "IFF_TAP"),
        (no_prefix, "IFF_NO_PI"),
        (flags.has(TapFlags::VNET_HDR), "IFF_VNET_HDR"),
        (flags.has(TapFlags::MULTI_QUEUE) || !several, "IFF_MULTI_QUEUE"),
        (!flags.has(TapFlags::DETACH_QUEUE), "IFF_ATTACH_QUEUE"),
    ];
    wanted.into_iter().find(|(has, _)| !has).map(|(_, flag)| flag)
}

/// True for a name that the kernel takes literally (`dev_valid_name`, and no `%d`), of printable characters.
fn is_name(name: &str) -> bool {
    (1..NAME_SIZE).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}

fn is_tun(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && (major(stat.st_rdev), minor(stat.st_rdev)) == TUN_NUMBER
    })
}

/// A socket to ask about interfaces with.
fn any_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

fn is(error: &std::io::Error, code: Errno) -> bool {
    Errno::from_io_error(error) == Some(code)
}

#[cfg(test)]
#[path = "tap_test.rs"]
mod tests;
