//! Opening a Unix socket that carries frames: a stream to a user-mode network (passt, QEMU's `-netdev stream`), or
//! datagrams to another VM.
//!
//! Owns the checks. Runs where a VM is assembled: connecting looks up a path, and may wait. Frames have no header on a
//! socket, so the guest and its peer have to finish checksums and segments themselves.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, getpeername, socket_with, socketpair,
};

use super::passt::Passt;
use super::{NetInfo, Offloads};
use crate::unix::refuse_rights;

/// Why a socket cannot be a network interface. Each message names it and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Nobody can be reached by this path.
    #[error("network socket {}: {source}{}", path.display(), connect_remedy(source))]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A descriptor is no socket that frames go over.
    #[error(
        "network socket, descriptor {number}: {what}; give a connected Unix stream, datagram or seqpacket socket"
    )]
    NotUsable {
        /// The descriptor's number.
        number: i32,
        /// What it is instead.
        what: &'static str,
    },
    /// A call failed that should not.
    #[error("network socket: {call}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn failed_call(call: &'static str) -> impl Fn(Errno) -> SocketError {
    move |error| SocketError::Call { call, source: error.into() }
}

fn connect_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; start the peer first: `passt --socket PATH`",
        io::ErrorKind::ConnectionRefused => {
            "; nobody listens there (any more): start the peer, `passt --socket PATH`"
        }
        io::ErrorKind::PermissionDenied => "; give this user the right to write it",
        io::ErrorKind::InvalidFilename => "; give a path of at most 107 bytes",
        _ if error.raw_os_error() == Some(libc::EPROTOTYPE) => "; it is no stream socket",
        _ => "",
    }
}

/// How frames are told from each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// By four bytes of length before each.
    Length,
    /// The kernel keeps them apart.
    Packets,
}

/// A connected socket, ready to be attached. `Send`.
#[derive(Debug)]
pub struct Socket {
    pub(crate) fd: OwnedFd,
    pub(super) framing: Framing,
    /// The peer, if it is a process of our own.
    pub(super) passt: Option<Passt>,
}

impl Socket {
    /// Connects to the Unix stream socket at `path`. May wait: not to be called on a shard.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, SocketError> {
        let path = path.as_ref();
        let failed = |error: Errno| SocketError::Connect { path: path.to_owned(), source: error.into() };
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(failed_call("socket"))?;
        refuse_rights(&fd).map_err(failed_call("SO_PASSRIGHTS"))?;
        connect(&fd, &address).map_err(failed)?;
        Ok(Self { fd, framing: Framing::Length, passt: None })
    }

    /// Takes over a connected Unix socket: frames with their lengths on a stream, a frame each on a datagram or
    /// seqpacket socket. The end of a datagram socket's peer shows only when something is sent to it.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        let unusable = |what| SocketError::NotUsable { number: fd.as_raw_fd(), what };
        let domain = socket_domain(&fd).map_err(|_| unusable("it is no socket"))?;
        if domain != AddressFamily::UNIX {
            return Err(unusable("it is no Unix socket"));
        }
        let framing = match socket_type(&fd).map_err(failed_call("SO_TYPE"))? {
            SocketType::STREAM => Framing::Length,
            SocketType::DGRAM | SocketType::SEQPACKET => Framing::Packets,
            _ => return Err(unusable("it is of another kind")),
        };
        if socket_acceptconn(&fd).map_err(failed_call("SO_ACCEPTCONN"))? {
            return Err(unusable("it listens"));
        }
        getpeername(&fd).map_err(|_| unusable("it is not connected"))?;
        fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(failed_call("F_SETFD"))?;
        refuse_rights(&fd).map_err(failed_call("SO_PASSRIGHTS"))?;
        Ok(Self { fd, framing, passt: None })
    }

    /// A wire between two VMs: each frame of one comes to the other, which makes the first wait if it takes none.
    /// When one end goes, the other is told.
    ///
    /// # Errors
    /// The process or the system has no free file descriptor.
    pub fn pair() -> Result<(Self, Self), SocketError> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(failed_call("socketpair"))?;
        for end in [&one, &other] {
            refuse_rights(end).map_err(failed_call("SO_PASSRIGHTS"))?;
        }
        let end = |fd| Self { fd, framing: Framing::Packets, passt: None };
        Ok((end(one), end(other)))
    }

    /// What it can do.
    pub fn info(&self) -> NetInfo {
        NetInfo { mac: None, mtu: None, queue_pairs: 1, offloads: Offloads::NONE }
    }
}
