//! Refusing descriptors that a peer sends along (`SCM_RIGHTS`, unix(7)).
//!
//! What nobody takes is closed by whoever reads or closes the socket, and closing may wait: for a TCP connection that
//! lingers, for instance. A shard must not wait because a peer wants it to, so such descriptors are refused where they are
//! sent.

#![expect(unsafe_code, reason = "the safe wrappers do not know this option of sockets yet")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use rustix::io::Errno;

/// `asm-generic/socket.h`, since Linux 6.16.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Has the kernel refuse descriptors that somebody sends to a Unix socket from now on; false if it cannot (before
/// Linux 6.16). Sockets that a listening one accepts are like it. What was sent already stays.
///
/// # Errors
/// What the kernel says: it is no Unix socket.
pub(crate) fn refuse_rights(socket: impl AsFd) -> rustix::io::Result<bool> {
    let no: libc::c_int = 0;
    let len = size_of_val(&no) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `len` bytes of `no`, which lives until the call returns.
    let set =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, SO_PASSRIGHTS, ptr::from_ref(&no).cast(), len) };
    if set == 0 {
        return Ok(true);
    }
    match Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO) {
        Errno::NOPROTOOPT => {
            tracing::debug!(
                "descriptors that peers of Unix sockets send are not refused: Linux 6.16 is needed"
            );
            Ok(false)
        }
        error => Err(error),
    }
}

#[cfg(test)]
#[path = "rights_test.rs"]
mod tests;
