//! The calls of a tap that have no safe wrapper (`linux/if_tun.h`, netdevice(7)).
//!
//! Owns the layout of what they take. Decides nothing. All may wait: those that change a tap, for the kernel's network
//! configuration lock.

#![expect(unsafe_code, reason = "the ioctls of taps have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Bytes of an interface's name, with the zero at its end.
pub(super) const NAME_SIZE: usize = libc::IFNAMSIZ;

/// `linux/ethtool.h`.
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Another descriptor of what the process has open under this number: for descriptors that were inherited and are known
/// by their numbers only. The old one stays open, too, but programs that the process starts from now on do not inherit
/// it. Does not wait.
///
/// # Errors
/// There is none of this number, or no other to be had.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes and gives numbers; a number that is not open is an error.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so nobody else owns it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    // SAFETY: takes numbers; the flag is one of the number, and what is open stays as it is.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(copy)
}

/// What kind of tap it is, and what of its queues: the 16 bits of `ifr_flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TapFlags(u16);

impl TapFlags {
    pub(super) const TAP: Self = Self(0x0002);
    pub(super) const MULTI_QUEUE: Self = Self(0x0100);
    pub(super) const ATTACH_QUEUE: Self = Self(0x0200);
    pub(super) const DETACH_QUEUE: Self = Self(0x0400);
    pub(super) const NO_PI: Self = Self(0x1000);
    pub(super) const VNET_HDR: Self = Self(0x4000);

    #[must_use]
    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// `struct ifreq`, of which the union is bytes.
#[repr(C, align(8))]
struct Request {
    name: [u8; NAME_SIZE],
    union: [u8; 24],
}

const _: () = assert!(
    size_of::<Request>() == size_of::<libc::ifreq>() && align_of::<Request>() >= align_of::<libc::ifreq>()
);

impl Request {
    fn new(name: &str, flags: TapFlags) -> Self {
        let mut request = Self { name: [0; NAME_SIZE], union: [0; 24] };
        // The last byte stays zero.
        let room = request.name.iter_mut().take(NAME_SIZE - 1);
        room.zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        let [low, high, ..] = &mut request.union;
        [*low, *high] = flags.0.to_ne_bytes();
        request
    }

    fn call(&mut self, fd: BorrowedFd<'_>, call: libc::Ioctl) -> io::Result<()> {
        // SAFETY: every call that comes here takes a pointer to a `struct ifreq`, which is as large as `self` (asserted
        // above), reads and writes that and what `queues` has it point to, and keeps no pointer.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), call, &raw mut *self) })
    }

    /// The kernel lets a name have any characters but a few, also those that a terminal obeys: these are `?` here.
    fn name(&self) -> String {
        let bytes = self.name.iter().take_while(|&&byte| byte != 0);
        bytes.map(|&byte| if byte.is_ascii_graphic() { byte.into() } else { '?' }).collect()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a fresh descriptor of `/dev/net/tun` to the tap `name`, which is made if there is none.
pub(super) fn attach(fd: BorrowedFd<'_>, name: &str, flags: TapFlags) -> io::Result<()> {
    Request::new(name, flags).call(fd, libc::TUNSETIFF)
}

/// Name and flags of the interface behind a descriptor.
pub(super) fn interface(fd: BorrowedFd<'_>) -> io::Result<(String, TapFlags)> {
    let mut request = Request::new("", TapFlags(0));
    request.call(fd, libc::TUNGETIFF)?;
    let [low, high, ..] = request.union;
    Ok((request.name(), TapFlags(u16::from_ne_bytes([low, high]))))
}

/// True if packets of a tap have nothing before their header (`IFF_NO_PI`). In `TUNGETIFF`, the same bit also says that
/// there is no filter, so a tap without a filter gets one, which lets everything pass, for that question.
pub(super) fn has_no_prefix(tap: BorrowedFd<'_>) -> io::Result<bool> {
    let mut found = libc::sock_fprog { len: 0, filter: ptr::null_mut() };
    // SAFETY: the call writes a `sock_fprog`, whose pointer means nothing here and is not used.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETFILTER, &raw mut found) })?;
    if found.len > 0 {
        return Ok(interface(tap)?.1.has(TapFlags::NO_PI));
    }
    // `ret #0xffffffff`
    let mut pass = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: u32::MAX };
    let filter = libc::sock_fprog { len: 1, filter: &raw mut pass };
    // SAFETY: the call reads a `sock_fprog` and the `len` instructions behind it, and copies them.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNATTACHFILTER, &raw const filter) })?;
    let answer = interface(tap);
    // SAFETY: as above; this one only takes the filter away.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNDETACHFILTER, &raw const filter) })?;
    Ok(answer?.1.has(TapFlags::NO_PI))
}

/// Lets packets come to this queue, or go to the others only.
pub(super) fn use_queue(fd: BorrowedFd<'_>, used: bool) -> io::Result<()> {
    let flags = if used { TapFlags::ATTACH_QUEUE } else { TapFlags::DETACH_QUEUE };
    Request::new("", flags).call(fd, libc::TUNSETQUEUE)
}

/// Bytes of the header before each frame, little-endian.
pub(super) fn set_header(fd: BorrowedFd<'_>, size: libc::c_int) -> io::Result<()> {
    set_number(fd, libc::TUNSETVNETHDRSZ, size)?;
    set_number(fd, libc::TUNSETVNETLE, 1)
}

fn set_number(fd: BorrowedFd<'_>, call: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: both calls read an `int` through the pointer, which lives as long as the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), call, &raw const value) })
}

/// What packets that are received may leave unfinished: `TUN_F_*`.
pub(super) fn set_offloads(fd: BorrowedFd<'_>, bits: u32) -> io::Result<()> {
    // SAFETY: the call takes a number, and no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
}

/// The link address of the interface behind a tap's descriptor.
pub(super) fn address(tap: BorrowedFd<'_>) -> io::Result<[u8; 6]> {
    address_of("", tap)
}

/// The link address of the interface that is called `name` where `socket` is.
pub(super) fn address_of(name: &str, socket: BorrowedFd<'_>) -> io::Result<[u8; 6]> {
    let mut request = Request::new(name, TapFlags(0));
    request.call(socket, libc::SIOCGIFHWADDR)?;
    // A `sockaddr`: two bytes of family, then the address.
    let [_, _, a, b, c, d, e, f, ..] = request.union;
    Ok([a, b, c, d, e, f])
}

/// The MTU of the interface that is called `name` where `socket` is.
pub(super) fn mtu(name: &str, socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut request = Request::new(name, TapFlags(0));
    request.call(socket, libc::SIOCGIFMTU)?;
    let [a, b, c, d, ..] = request.union;
    Ok(i32::from_ne_bytes([a, b, c, d]))
}

/// How many queues the tap that is called `name` where `socket` is has in use, by whomever. `None`: the kernel does not
/// tell (before Linux 6.8).
pub(super) fn queues(name: &str, socket: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    /// `struct ethtool_channels`.
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        command: u32,
        most: [u32; 4],
        receiving: u32,
        sending: u32,
        other: u32,
        combined: u32,
    }
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    let mut request = Request::new(name, TapFlags(0));
    let address = (&raw mut channels).expose_provenance().to_ne_bytes();
    request.union.iter_mut().zip(address).for_each(|(place, byte)| *place = byte);
    // The call reads and writes `channels` besides, by the address that it is given; that lives as long as the call.
    match request.call(socket, libc::SIOCETHTOOL) {
        Ok(()) => Ok(Some(channels.combined)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets a tap stay when nobody has it open any more, or not.
#[cfg(test)]
pub(super) fn set_persistent(fd: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: the call takes a number, and no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent)) })
}

/// Makes a tap a user's.
#[cfg(test)]
pub(super) fn set_owner(fd: BorrowedFd<'_>, user: u32) -> io::Result<()> {
    // SAFETY: the call takes a number, and no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(user)) })
}
