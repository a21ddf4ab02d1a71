//! Connecting by path: on a thread of its own, because a path is looked up.

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::sync::oneshot;

use super::rights::refuse_rights;
use crate::helper::{Helper, SOCKETS};

/// Connects to Unix stream sockets, on a thread that the process has for that; it is made with the first use.
#[derive(Debug, Default)]
pub struct Connector(OnceCell<Arc<Helper>>);

impl Connector {
    /// Connects to the socket at `path`. One that takes nobody at the moment (its backlog is full) is not waited for.
    /// Cancel-safe: dropped, the connection is closed at once, or is not made.
    ///
    /// # Errors
    /// What the kernel says; there can be no thread.
    pub async fn connect(&self, path: PathBuf) -> io::Result<OwnedFd> {
        let (sender, connected) = oneshot::channel();
        self.helper()?.run(move || {
            if !sender.is_closed() {
                let _ = sender.send(connect_now(&path));
            }
        });
        connected.await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?
    }

    fn helper(&self) -> io::Result<&Arc<Helper>> {
        match self.0.get() {
            Some(helper) => Ok(helper),
            None => {
                let helper = Helper::get(&SOCKETS)?;
                Ok(self.0.get_or_init(|| helper))
            }
        }
    }
}

fn connect_now(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    refuse_rights(&fd)?;
    connect(&fd, &address)?;
    Ok(fd)
}

#[cfg(test)]
#[path = "connect_test.rs"]
mod tests;
