//! Listening on a Unix stream socket, and the file that it has in a directory.
//!
//! Owns the file from its creation to its removal: what a process left behind that is gone is replaced, what somebody
//! listens on is refused, and nothing is removed that is not a socket. Binding runs where a VM is assembled; accepting,
//! on its shard.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{CWD, FileType, RenameFlags, Stat, lstat, renameat_with, unlink};
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio, retry_on_intr};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::Interest;

use super::rights::refuse_rights;
use crate::doorbell::Watch;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// A socket at which nobody listens is looked at so often before it counts as left behind, since its owner may be
/// about to listen, ...
const LOOKS: u32 = 3;
/// ... so far apart.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// Why a Unix socket cannot be listened on. Each message names it and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody listens there.
    #[error("socket {}: somebody listens there already; end that process, or give another path", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// There is something else.
    #[error("socket {}: there is something that is no socket; remove it, or give another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refuses.
    #[error("socket {}: {call}: {source}{}", path.display(), remedy(source))]
    Path {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A descriptor is no listening socket.
    #[error("socket, descriptor {number}: {what}; give a Unix stream socket that listens")]
    NotUsable {
        /// The descriptor's number.
        number: i32,
        /// What it is instead.
        what: &'static str,
    },
    /// A call failed that should not.
    #[error("socket: {call}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; its folder is not there: make it, or give another path",
        io::ErrorKind::PermissionDenied => "; give a path in a folder that this user may write to",
        io::ErrorKind::InvalidFilename => "; give a path of at most 107 bytes",
        _ => "",
    }
}

fn failed(call: &'static str) -> impl Fn(Errno) -> ListenError {
    move |error| ListenError::Call { call, source: error.into() }
}

/// A Unix stream socket that listens. `Send`, until it is attached.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens at `path`, where nobody may listen; a socket that was left behind is replaced. The file is removed when
    /// the second value is dropped, which looks up the path: not on a shard.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: impl AsRef<Path>) -> Result<(Self, SocketFile), ListenError> {
        let path = path.as_ref();
        let refused = |call| {
            move |error: Errno| ListenError::Path { path: path.to_owned(), call, source: error.into() }
        };
        let address = SocketAddrUnix::new(path).map_err(refused("as an address"))?;
        let fd = new_socket()?;
        refuse_rights(&fd).map_err(failed("SO_PASSRIGHTS"))?;
        match bind(&fd, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(&fd, &address).map_err(|error| match error {
                    Errno::ADDRINUSE => ListenError::InUse { path: path.to_owned() },
                    error => refused("bind")(error),
                })?;
            }
            bound => bound.map_err(refused("bind"))?,
        }
        let file = SocketFile::new(path).map_err(refused("lstat"))?;
        listen(&fd, BACKLOG).map_err(refused("listen"))?;
        Ok((Self(fd), file))
    }

    /// Takes over a Unix stream socket that listens. Whoever else has it may accept too; calls on it do not wait any
    /// more, and who connects from now on cannot send descriptors, if the kernel can refuse them.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ListenError> {
        let unusable = |what| ListenError::NotUsable { number: fd.as_raw_fd(), what };
        if socket_domain(&fd).map_err(|_| unusable("it is no socket"))? != AddressFamily::UNIX {
            return Err(unusable("it is no Unix socket"));
        }
        if socket_type(&fd).map_err(failed("SO_TYPE"))? != SocketType::STREAM {
            return Err(unusable("it is no stream socket"));
        }
        if !socket_acceptconn(&fd).map_err(failed("SO_ACCEPTCONN"))? {
            return Err(unusable("it does not listen"));
        }
        fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(failed("F_SETFD"))?;
        ioctl_fionbio(&fd, true).map_err(failed("FIONBIO"))?;
        refuse_rights(&fd).map_err(failed("SO_PASSRIGHTS"))?;
        Ok(Self(fd))
    }

    /// Accepts on this shard from now on.
    ///
    /// # Errors
    /// The kernel refuses to watch it.
    pub fn attach(self) -> io::Result<Acceptor> {
        let fd = Arc::new(self.0);
        Ok(Acceptor { watch: Watch::both(Arc::clone(&fd))?, fd })
    }
}

/// A listening socket on a shard.
#[derive(Debug)]
pub struct Acceptor {
    watch: Watch,
    fd: Arc<OwnedFd>,
}

impl Acceptor {
    /// Waits for the next connection, and accepts it. Cancel-safe.
    ///
    /// # Errors
    /// What the kernel says: no descriptors are left, or the loop is shutting down.
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            // The guard goes before the next wait: readiness is forgotten by the attempt alone.
            drop(self.watch.ready(Interest::READABLE).await?);
            let accept = || Ok(retry_on_intr(|| accept_with(self.fd.as_fd(), SocketFlags::CLOEXEC))?);
            match self.watch.attempt(Interest::READABLE, accept) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Who connected is gone already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                result => return result,
            }
        }
    }
}

/// The file of a listening socket. Removed when this is dropped, if it is still the same.
#[derive(Debug)]
#[must_use = "the file is removed when this is dropped"]
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> rustix::io::Result<Self> {
        let identity = identity(&lstat(path)?);
        // Whoever changes the working directory does not change which file is meant.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self { path, identity })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        match lstat(&self.path) {
            Ok(stat) if identity(&stat) == self.identity => {
                if let Err(error) = unlink(&self.path) {
                    tracing::warn!(path = %self.path.display(), %error, "a socket cannot be removed");
                }
            }
            // Somebody removed it, or put another one there.
            _ => {}
        }
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn new_socket() -> Result<OwnedFd, ListenError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed("socket"))
}

/// Removes a socket at which nobody listens. It is put aside first, where no other process takes it for its own,
/// and looked at again: somebody may have put a new one there since.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let refused =
        |call| move |error: Errno| ListenError::Path { path: path.to_owned(), call, source: error.into() };
    match lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        result => result.map_err(refused("lstat"))?,
    };
    for look in 0..LOOKS {
        if look > 0 {
            sleep(LOOK_PERIOD);
        }
        match answer(address)? {
            Answer::Nobody => {}
            Answer::Gone => return Ok(()),
            Answer::Somebody => return Err(ListenError::InUse { path: path.to_owned() }),
        }
    }
    put_aside(path, &aside(path)?)
}

/// Puts what is at `path` aside, and removes it if it is a socket at which nobody listens; else puts it back.
fn put_aside(path: &Path, aside: &Path) -> Result<(), ListenError> {
    let refused =
        |call| move |error: Errno| ListenError::Path { path: path.to_owned(), call, source: error.into() };
    match move_to(path, aside) {
        Err(Errno::NOENT) => return Ok(()),
        result => result.map_err(refused("rename"))?,
    }
    let why = match left_behind(aside) {
        Ok(Some(socket)) => {
            // Whoever may write the folder may also change it at any time; what is not what was looked at stays.
            let is_same = lstat(aside).is_ok_and(|stat| identity(&stat) == socket);
            if is_same {
                return unlink(aside).map_err(refused("unlink"));
            }
            ListenError::InUse { path: path.to_owned() }
        }
        Ok(None) => ListenError::InUse { path: path.to_owned() },
        Err(error) => error,
    };
    move_to(aside, path).map_err(refused("rename back"))?;
    Err(match why {
        ListenError::NotASocket { .. } => ListenError::NotASocket { path: path.to_owned() },
        why => why,
    })
}

/// Renames a file, and replaces none.
fn move_to(from: &Path, to: &Path) -> rustix::io::Result<()> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
}

/// The identity of a socket at which nobody listens; `None`: somebody does.
fn left_behind(path: &Path) -> Result<Option<(u64, u64)>, ListenError> {
    let refused =
        |call| move |error: Errno| ListenError::Path { path: path.to_owned(), call, source: error.into() };
    let stat = lstat(path).map_err(refused("lstat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    let address = SocketAddrUnix::new(path).map_err(refused("as an address"))?;
    Ok(match answer(&address)? {
        Answer::Nobody => Some(identity(&stat)),
        Answer::Somebody | Answer::Gone => None,
    })
}

/// A name beside `path` that nobody else has, and that is no longer where it can be.
fn aside(path: &Path) -> Result<PathBuf, ListenError> {
    let mut random = [0; 4];
    getrandom(&mut random, GetRandomFlags::empty()).map_err(failed("getrandom"))?;
    Ok(path.with_file_name(format!(".{:08x}", u32::from_ne_bytes(random))))
}

/// Who is at a socket.
enum Answer {
    Somebody,
    Nobody,
    /// The socket is not there any more.
    Gone,
}

fn answer(address: &SocketAddrUnix) -> Result<Answer, ListenError> {
    let fd = new_socket()?;
    Ok(match connect(&fd, address) {
        Err(Errno::CONNREFUSED) => Answer::Nobody,
        Err(Errno::NOENT) => Answer::Gone,
        // Also one whose backlog is full, one of another type, one that we may not write to: it is not ours to remove.
        _ => Answer::Somebody,
    })
}

#[cfg(test)]
#[path = "listen_test.rs"]
mod tests;
