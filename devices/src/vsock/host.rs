//! The host's side of a device: where the guest's connections to a host port go, and where the host's come from.
//!
//! Owns what goes between the process and the shard: plain data, descriptors and channels with bounds. Never touches a
//! packet.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringlet_io::unix::Listener;
use ringlet_io::{Descriptor, DescriptorShare};
use tokio::sync::{mpsc, oneshot};

/// Requests of the process that wait for the shard.
const COMMANDS: usize = 64;
/// Connections of the guest that wait to be accepted at one port of the process.
const BACKLOG: usize = 128;

/// Why the guest cannot be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The guest refuses: nobody listens at the port.
    #[error("the guest refuses the connection")]
    Refused,
    /// The guest did not answer in time.
    #[error("the guest does not answer")]
    TimedOut,
    /// The guest had no driver for its socket device, all the time that it had to answer.
    #[error("the guest has no driver for its socket device (yet)")]
    NoDriver,
    /// The VM has as many connections as it may have, or the host buffers as much for it as it may.
    #[error(
        "the VM has as many connections as it may have (`max_connections`), or no memory left for one more (`buffers.max`): \
         end some, or raise that"
    )]
    Full,
    /// The VM's connections have as many descriptors as they may have beside those of the process's other VMs.
    #[error(
        "the VM's connections have all the open files that they may have beside those of other VMs: end some, or raise that \
         (`vsock_descriptors`, `--vsock-descriptors`), or the limit on open files (`ulimit -n`)"
    )]
    NoDescriptors,
    /// The guest reset its socket device meanwhile.
    #[error("the guest has reset its socket device")]
    Reset,
    /// The host has no descriptor or watch left for the connection.
    #[error("the host cannot watch another socket")]
    NoResources,
    /// The VM has ended.
    #[error("the VM has ended")]
    Ended,
}

/// Why a port cannot be listened at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody in this process listens there.
    #[error("port {0} of the host is listened at already")]
    InUse(u32),
    /// The VM has ended.
    #[error("the VM has ended")]
    Ended,
}

/// A request to connect to the guest.
#[derive(Debug)]
pub(super) struct Connect {
    pub(super) port: u32,
    pub(super) stream: OwnedFd,
    /// Told the host's port, as soon as the guest has accepted.
    pub(super) answer: oneshot::Sender<Result<u32, ConnectError>>,
}

/// The host's side of a device before it is on its shard: plain data, `Send`.
#[derive(Debug)]
pub struct VsockSource {
    pub(super) commands: mpsc::Receiver<Connect>,
    pub(super) door: Door,
    pub(super) listener: Option<Listener>,
    pub(super) path: Option<PathBuf>,
    pub(super) descriptors: DescriptorShare,
}

impl VsockSource {
    /// The host's side of a device, and what the process reaches it by.
    ///
    /// Whoever connects to `listener` and writes `CONNECT <port>\n` is connected to that port of the guest, and reads
    /// `OK <host port>\n` first of all. A connection of the guest to a port of the host at which nobody in the process
    /// listens goes to the socket at `path` with `_<port>` behind it (Firecracker's convention). Without them, only the
    /// process can connect, and be connected to.
    pub fn new(listener: Option<Listener>, path: Option<PathBuf>) -> (Self, VsockHandle) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let ports = Arc::<Ports>::default();
        let handle = VsockHandle { commands: sender, ports: Arc::clone(&ports) };
        let descriptors = DescriptorShare::unlimited();
        (Self { commands, door: Door(ports), listener, path, descriptors }, handle)
    }

    /// Takes the descriptors of its connections from this share; by default there is no bound but the VM's own.
    #[must_use]
    pub fn taking_from(mut self, descriptors: DescriptorShare) -> Self {
        self.descriptors = descriptors;
        self
    }
}

/// What a process asks of the device of one of its VMs, from any thread. Clones are the same device's.
#[derive(Debug, Clone)]
pub struct VsockHandle {
    commands: mpsc::Sender<Connect>,
    ports: Arc<Ports>,
}

impl VsockHandle {
    /// Connects `stream` to a port of the guest: what is written to the other end of it goes there from then on, and what
    /// comes from there is read from it. Gives the host's port of the connection. Waits for the guest, at most as long as
    /// the device was told to; what was written before is kept by the socket.
    ///
    /// Half-closing works both ways (`shutdown`); a connection that is reset ends `stream`.
    ///
    /// # Errors
    /// [`ConnectError`]; the stream is closed.
    pub async fn connect(&self, port: u32, stream: UnixStream) -> Result<u32, ConnectError> {
        let (answer, answered) = oneshot::channel();
        let command = Connect { port, stream: stream.into(), answer };
        self.commands.send(command).await.map_err(|_| ConnectError::Ended)?;
        answered.await.unwrap_or(Err(ConnectError::Ended))
    }

    /// Takes the guest's connections to a port of the host from now on, until the result is dropped. At most 128 wait
    /// to be accepted; further ones are refused.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(&self, port: u32) -> Result<VsockListener, ListenError> {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        self.ports.open(port, sender)?;
        Ok(VsockListener { port, ports: Arc::clone(&self.ports), incoming })
    }
}

/// A connection that the guest has made.
#[derive(Debug)]
pub struct VsockIncoming {
    /// The host's end, whose calls do not wait (`O_NONBLOCK`).
    pub stream: UnixStream,
    /// The guest's port.
    pub guest_port: u32,
    /// The place of the stream's descriptor, to be kept as long as that is open.
    pub descriptor: Descriptor,
}

/// Takes the guest's connections to one port of the host.
pub struct VsockListener {
    port: u32,
    ports: Arc<Ports>,
    incoming: mpsc::Receiver<VsockIncoming>,
}

impl VsockListener {
    /// The next connection; `None` when the VM has ended. Cancel-safe.
    pub async fn accept(&mut self) -> Option<VsockIncoming> {
        self.incoming.recv().await
    }

    /// The host's port.
    pub fn port(&self) -> u32 {
        self.port
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        self.ports.shut(self.port);
    }
}

impl fmt::Debug for VsockListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockListener").field("port", &self.port).finish_non_exhaustive()
    }
}

/// The ports of the host at which somebody in the process listens.
#[derive(Debug, Default)]
pub(super) struct Ports(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    listeners: HashMap<u32, mpsc::Sender<VsockIncoming>>,
    ended: bool,
}

impl Ports {
    fn open(&self, port: u32, sender: mpsc::Sender<VsockIncoming>) -> Result<(), ListenError> {
        let mut open = self.lock();
        if open.ended {
            return Err(ListenError::Ended);
        }
        if open.listeners.contains_key(&port) {
            return Err(ListenError::InUse(port));
        }
        open.listeners.insert(port, sender);
        Ok(())
    }

    fn shut(&self, port: u32) {
        self.lock().listeners.remove(&port);
    }

    /// Whoever listens is told the end, and nobody can any more.
    fn close(&self) {
        let mut open = self.lock();
        open.ended = true;
        open.listeners.clear();
    }

    /// Offers a connection of the guest to who listens at a port, and gives the device's end of it with its place. `None`:
    /// nobody in the process listens there.
    ///
    /// # Errors
    /// `WouldBlock`: too many wait to be accepted. `QuotaExceeded`: there are no places for the descriptors of both ends. What
    /// the kernel says.
    pub(super) fn offer(
        &self,
        port: u32,
        guest_port: u32,
        descriptors: &DescriptorShare,
    ) -> Option<io::Result<(OwnedFd, Descriptor)>> {
        let open = self.lock();
        let sender = open.listeners.get(&port)?;
        let offer = || {
            let place = sender.try_reserve().map_err(|_| io::ErrorKind::WouldBlock)?;
            let take = || descriptors.try_take().ok_or(io::ErrorKind::QuotaExceeded);
            let (descriptor, devices) = (take()?, take()?);
            let (ours, stream) = UnixStream::pair()?;
            stream.set_nonblocking(true)?;
            place.send(VsockIncoming { stream, guest_port, descriptor });
            Ok((ours.into(), devices))
        };
        Some(offer())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device's hold of the ports: when it is dropped, nothing comes any more.
#[derive(Debug)]
pub(super) struct Door(pub(super) Arc<Ports>);

impl Drop for Door {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
#[path = "host_test.rs"]
mod tests;
