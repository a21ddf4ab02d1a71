//! Where metrics are served: a TCP address or a Unix socket.
//!
//! Owns: the notation (`ADDR:PORT` or `unix:PATH`), and the life of the socket file: a stale one is replaced, a
//! live one or anything else at that path is refused, our own is removed when the listener is dropped.
//! Never: resolves a name, leaves a lock file, or removes a file that it did not make or prove dead.

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::escape::Escaped;

/// How long to wait for another process that is binding in the same directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// An address to listen on.
///
/// ```
/// # use ringlet_metrics::Endpoint;
/// let tcp: Endpoint = "127.0.0.1:9090".parse()?;
/// let unix: Endpoint = "unix:/run/ringlet/metrics.sock".parse()?;
/// assert!("9090".parse::<Endpoint>().is_err());
/// # Ok::<(), ringlet_metrics::EndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP socket. Port 0 lets the kernel choose; [`Listener::endpoint`] tells what it chose.
    Tcp(SocketAddr),
    /// A Unix stream socket. The file gets its mode from the umask, as for every program; with the usual 022 only
    /// its owner may connect.
    Unix(PathBuf),
}

/// A text that is no [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is no address to listen on: expected IP:PORT (127.0.0.1:9090, [::1]:9090, localhost:9090) or unix:PATH", Escaped(.0))]
pub struct EndpointError(String);

/// Why an [`Endpoint`] cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process answers on that socket.
    #[error("{0} is in use: another process listens there")]
    InUse(Endpoint),
    /// There is a file that is no socket. It is not touched.
    #[error("{0} exists and is no socket; it was left alone")]
    NotASocket(Endpoint),
    /// The operating system refused.
    #[error("cannot listen on {endpoint}: {source}{}", remedy(endpoint, source))]
    Os {
        /// What was asked for.
        endpoint: Endpoint,
        /// What the system said.
        source: io::Error,
    },
}

fn remedy(endpoint: &Endpoint, error: &io::Error) -> &'static str {
    match (endpoint, error.kind()) {
        (Endpoint::Tcp(_), io::ErrorKind::PermissionDenied) => {
            "; give a port that needs no privilege, from net.ipv4.ip_unprivileged_port_start on"
        }
        (Endpoint::Tcp(_), io::ErrorKind::AddrNotAvailable) => {
            "; give an address of this host, or 0.0.0.0 for all"
        }
        (Endpoint::Unix(_), io::ErrorKind::PermissionDenied) => {
            "; give a path in a folder that this user may write to"
        }
        (Endpoint::Unix(_), io::ErrorKind::NotFound) => {
            "; its folder is not there: make it, or give another path"
        }
        (Endpoint::Unix(_), io::ErrorKind::InvalidInput) => "; give a path of at most 107 bytes",
        _ => "",
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || EndpointError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            // An empty path or a NUL first would name an abstract or unnamed socket.
            let valid = !path.is_empty() && !path.contains('\0');
            return if valid { Ok(Self::Unix(path.into())) } else { Err(refuse()) };
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| refuse())?;
            return Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Self::Tcp).map_err(|_| refuse())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", Escaped(&path.to_string_lossy())),
        }
    }
}

impl Endpoint {
    /// Listens here.
    ///
    /// For a Unix socket whose file exists: a socket that refuses connections is stale and is replaced; a live one
    /// and any other file are left alone. Processes that bind in the same directory at the same moment take turns
    /// (an advisory lock on the directory, no file).
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(&self) -> Result<Listener, BindError> {
        let bound = match self {
            Self::Tcp(address) => TcpListener::bind(address).map(Listener::from).map_err(BindFailure::Os),
            Self::Unix(path) => bind_unix(path),
        };
        bound.map_err(|failure| match failure {
            BindFailure::InUse => BindError::InUse(self.clone()),
            BindFailure::NotASocket => BindError::NotASocket(self.clone()),
            BindFailure::Os(error) if error.kind() == io::ErrorKind::AddrInUse => {
                BindError::InUse(self.clone())
            }
            BindFailure::Os(source) => BindError::Os { endpoint: self.clone(), source },
        })
    }
}

/// [`BindError`] without the endpoint.
enum BindFailure {
    InUse,
    NotASocket,
    Os(io::Error),
}

impl From<io::Error> for BindFailure {
    fn from(error: io::Error) -> Self {
        Self::Os(error)
    }
}

impl From<Errno> for BindFailure {
    fn from(error: Errno) -> Self {
        Self::Os(error.into())
    }
}

/// A bound socket. Dropping it closes it, and removes its file if [`Endpoint::bind`] made that.
#[derive(Debug)]
pub struct Listener {
    pub(crate) socket: Socket,
    pub(crate) file: Option<SocketFile>,
}

/// The socket of a [`Listener`].
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Where it listens: with the port that the kernel chose, and an absolute path.
    ///
    /// # Errors
    /// If the socket has no such name (a Unix socket that was handed over and is not in the file system).
    pub fn endpoint(&self) -> io::Result<Endpoint> {
        match (&self.socket, &self.file) {
            (Socket::Tcp(socket), _) => Ok(Endpoint::Tcp(socket.local_addr()?)),
            (Socket::Unix(_), Some(file)) => Ok(Endpoint::Unix(file.path.clone())),
            (Socket::Unix(socket), None) => match socket.local_addr()?.as_pathname() {
                Some(path) => Ok(Endpoint::Unix(path.to_owned())),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(socket: TcpListener) -> Self {
        Self { socket: Socket::Tcp(socket), file: None }
    }
}

/// A socket that somebody else bound and whose file, if any, is theirs to remove.
impl From<UnixListener> for Listener {
    fn from(socket: UnixListener) -> Self {
        Self { socket: Socket::Unix(socket), file: None }
    }
}

/// The file of our socket, known by inode, so that a successor's at the same path is not removed.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn adopt(path: PathBuf) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(&path)?;
        Ok(Self { path, identity: (metadata.dev(), metadata.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %Escaped(&self.path.to_string_lossy()), %error, "socket file stays");
        }
    }
}

fn bind_unix(path: &Path) -> Result<Listener, BindFailure> {
    // The file is removed later, when the working directory may be another.
    let path = std::path::absolute(path)?;
    // Held until the socket listens: a socket between bind and listen looks stale to another process.
    let lock = lock_directory(&path);
    let socket = match UnixListener::bind(&path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let _lock = lock?;
            remove_stale(&path)?;
            UnixListener::bind(&path)?
        }
        other => other?,
    };
    Ok(Listener { socket: Socket::Unix(socket), file: Some(SocketFile::adopt(path)?) })
}

/// Takes the advisory lock of the directory that holds `path`, waiting a bounded time.
fn lock_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.map(|()| directory),
        }
    }
}

/// Removes the socket file at `path` if nobody listens on it.
fn remove_stale(path: &Path) -> Result<(), BindFailure> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(BindFailure::NotASocket);
    }
    // Not blocking: a live listener with a full backlog must not hold us up.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(fs::remove_file(path)?),
        Ok(()) | Err(Errno::AGAIN) => Err(BindFailure::InUse),
        // A socket of another type is somebody's, too.
        Err(Errno::PROTOTYPE) => Err(BindFailure::InUse),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[path = "endpoint_test.rs"]
mod tests;
