//! One packet, or a part of a stream, between a descriptor and guest RAM: one call, which does not wait and copies
//! nothing in between.

#![expect(
    unsafe_code,
    reason = "readv, writev, recvmsg and sendmsg: the safe wrappers take slices, of which guest RAM has none"
)]

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{from_mut, with_exposed_provenance_mut};

use rustix::io::{Errno, retry_on_intr};

use super::{HEADER, MAX_FRAME, MAX_HEAD, MAX_PACKET_PIECES, MIN_FRAME};
use crate::lease::{Lease, LeaseUse};

/// How a packet is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    /// A tap with `O_NONBLOCK`.
    Tap,
    /// A socket that keeps the bounds of packets; its flags do not matter.
    Socket,
}

/// Where the pieces of a packet are listed for the kernel; used again for the next packet.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Vec<libc::iovec>);

impl Pieces {
    /// Reads one packet into the lease's bytes from `from` on, and marks them dirty. Gives its length; `None`: it is
    /// longer, and what is too much of it is lost.
    ///
    /// # Errors
    /// What the kernel says; `EAGAIN`: there is none.
    pub(super) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        channel: Channel,
        into: &Lease,
        from: u64,
    ) -> rustix::io::Result<Option<usize>> {
        // The kernel tells by the byte behind that a packet was longer.
        let mut behind = 0u8;
        let len = into.len().saturating_sub(from);
        self.list(&[], into, from);
        self.0.push(piece(from_mut(&mut behind).expose_provenance(), 1));
        let result = retry_on_intr(|| self.receive(fd, channel));
        self.0.clear();
        match result {
            Err(Errno::AGAIN) => {}
            Err(_) => into.written(from, len),
            Ok(count) => into.written(from, len.min(count as u64)),
        }
        result.map(|count| (count as u64 <= len).then_some(count))
    }

    /// Writes one packet: bytes of ours, then all of the lease.
    ///
    /// # Errors
    /// What the kernel says; `EAGAIN`: not now.
    pub(super) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        channel: Channel,
        head: &[u8],
        rest: &Lease,
    ) -> rustix::io::Result<()> {
        self.list(head, rest, 0);
        let result = retry_on_intr(|| self.transmit(fd, channel));
        self.0.clear();
        result.map(drop)
    }

    /// Receives some bytes of a stream socket into the lease, and marks them dirty; 0 at the end.
    ///
    /// # Errors
    /// What the kernel says; `EAGAIN`: there are none.
    pub(crate) fn receive_some(&mut self, fd: BorrowedFd<'_>, into: &Lease) -> rustix::io::Result<usize> {
        self.list(&[], into, 0);
        let result = retry_on_intr(|| self.receive(fd, Channel::Socket));
        self.0.clear();
        match result {
            Err(Errno::AGAIN) => {}
            Err(_) => into.written(0, into.len()),
            Ok(count) => into.written(0, count as u64),
        }
        result
    }

    /// Sends some bytes of the lease to a stream socket.
    ///
    /// # Errors
    /// What the kernel says; `EAGAIN`: not now.
    pub(crate) fn send_some(&mut self, fd: BorrowedFd<'_>, from: &Lease) -> rustix::io::Result<usize> {
        self.list(&[], from, 0);
        let result = retry_on_intr(|| self.transmit(fd, Channel::Socket));
        self.0.clear();
        result
    }

    fn list(&mut self, head: &[u8], lease: &Lease, from: u64) {
        self.0.clear();
        // One for what is not in the lease.
        self.0.reserve(lease.pieces() + 1);
        if !head.is_empty() {
            self.0.push(piece(head.as_ptr().expose_provenance(), head.len()));
        }
        self.0.extend(lease.addresses(from).map(|(address, len)| piece(address, len)));
    }

    fn receive(&mut self, fd: BorrowedFd<'_>, channel: Channel) -> rustix::io::Result<usize> {
        let count = self.0.len();
        checked(match channel {
            // SAFETY: `self.0` has `count` iovecs. They name guest RAM that the lease keeps mapped, to which no
            // reference exists anywhere, and a byte that the caller does not touch meanwhile.
            Channel::Tap => unsafe { libc::readv(fd.as_raw_fd(), self.0.as_ptr(), short(count)) },
            Channel::Socket => {
                let mut message = message(&mut self.0);
                // SAFETY: as above; the message has no name and no control part.
                unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
            }
        })
    }

    fn transmit(&mut self, fd: BorrowedFd<'_>, channel: Channel) -> rustix::io::Result<usize> {
        let count = self.0.len();
        checked(match channel {
            // SAFETY: `self.0` has `count` iovecs. They name bytes that the caller lends, and guest RAM that
            // the lease keeps mapped; the kernel only reads them.
            Channel::Tap => unsafe { libc::writev(fd.as_raw_fd(), self.0.as_ptr(), short(count)) },
            Channel::Socket => {
                let message = message(&mut self.0);
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                // SAFETY: as above; the message has no name and no control part.
                unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) }
            }
        })
    }
}

/// Refuses a lease that no packet can be received into.
pub(super) fn check_target(lease: &Lease) -> io::Result<()> {
    let fits = lease.lease_use() == LeaseUse::Target
        && lease.len() >= HEADER as u64
        && lease.pieces() <= MAX_PACKET_PIECES;
    if fits { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Takes a packet that is to be sent apart: header, what is ours of the frame, bytes of the frame. Refuses what is none.
pub(super) fn check_source<'a>(
    head: &'a [u8],
    rest: &Lease,
) -> io::Result<(&'a [u8; HEADER], &'a [u8], usize)> {
    let fits = rest.lease_use() == LeaseUse::Source
        && rest.pieces() <= MAX_PACKET_PIECES
        && (HEADER..=MAX_HEAD).contains(&head.len());
    let length = usize::try_from(rest.len()).unwrap_or(usize::MAX);
    match head.split_first_chunk::<HEADER>() {
        Some((header, ours)) if fits => {
            let length = length.saturating_add(ours.len());
            if (MIN_FRAME..=MAX_FRAME).contains(&length) {
                return Ok((header, ours, length));
            }
            Err(io::ErrorKind::InvalidInput.into())
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn piece(address: usize, len: usize) -> libc::iovec {
    libc::iovec { iov_base: with_exposed_provenance_mut(address), iov_len: len }
}

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes are a `msghdr` without anything.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    message
}

fn checked(count: isize) -> rustix::io::Result<usize> {
    usize::try_from(count).map_err(|_| {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Errno::from_raw_os_error(errno)
    })
}

/// At most [`MAX_PACKET_PIECES`] and one; what were more is refused by the kernel.
fn short(count: usize) -> libc::c_int {
    libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX)
}
