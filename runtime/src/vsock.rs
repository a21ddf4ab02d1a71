//! Streams between this process and a guest: what [`Vm::vsock_connect`](crate::Vm::vsock_connect) and
//! [`Vm::vsock_listen`](crate::Vm::vsock_listen) give.
//!
//! Owns this process's ends, which are Unix stream sockets. The other ends are the device's, on its shard.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ringlet_devices::vsock::{ConnectError, VsockHandle, VsockIncoming, VsockListener as Incoming};
use ringlet_io::{Descriptor, DescriptorShare};
use ringlet_metrics::{ConnectionResult, DeviceMetrics};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::error::{Error, Result};

/// The process's side of a VM's socket device.
#[derive(Debug)]
pub(crate) struct VmSockets {
    pub(crate) handle: VsockHandle,
    pub(crate) cid: u32,
    pub(crate) descriptors: DescriptorShare,
    pub(crate) metrics: Arc<DeviceMetrics>,
}

impl VmSockets {
    /// A stream to a port of the guest.
    pub(crate) async fn connect(&self, port: u32) -> Result<VsockStream> {
        let descriptor = self.descriptors.try_take().ok_or_else(|| {
            self.metrics.connection_results.inc(ConnectionResult::NoDescriptors);
            ConnectError::NoDescriptors
        })?;
        let (ours, devices) = StdUnixStream::pair().map_err(Error::io("a pair of sockets"))?;
        let stream = watched(ours)?;
        let host_port = self.handle.connect(port, devices).await?;
        Ok(VsockStream { stream, host_port, guest_port: port, _descriptor: descriptor })
    }
}

/// A stream between this process and a guest: bytes in order, nothing lost, in both directions.
///
/// Shutting it down (`AsyncWriteExt::shutdown`) ends one half: the guest reads to its end, and what it sends still arrives. A
/// read of no bytes is the guest's end of its half, or of the VM. A guest that breaks the stream off is
/// [`ConnectionReset`](io::ErrorKind::ConnectionReset), or an end. What the guest does not read is kept, up to what a
/// socket holds; then writing waits.
#[derive(Debug)]
pub struct VsockStream {
    stream: UnixStream,
    host_port: u32,
    guest_port: u32,
    /// Its place, behind the socket because it is given back after it.
    _descriptor: Descriptor,
}

impl VsockStream {
    /// The port of the host.
    pub fn host_port(&self) -> u32 {
        self.host_port
    }

    /// The port of the guest.
    pub fn guest_port(&self) -> u32 {
        self.guest_port
    }

    /// The Unix socket that it is, which does not count as the VM's any more (`RuntimeOptions::vsock_descriptors`),
    /// for instance to [split](UnixStream::into_split) it.
    pub fn into_inner(self) -> UnixStream {
        self.stream
    }

    /// The Unix socket without an executor, whose calls wait.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn into_std(self) -> io::Result<StdUnixStream> {
        let stream = self.stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl AsFd for VsockStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Takes the guest's connections to one port of the host. Dropping it lets them go elsewhere again.
#[derive(Debug)]
pub struct VsockListener(pub(crate) Incoming);

impl VsockListener {
    /// The port of the host.
    pub fn port(&self) -> u32 {
        self.0.port()
    }

    /// The next connection of the guest. Cancel-safe. Needs a tokio runtime, as
    /// [`Vm::vsock_connect`](crate::Vm::vsock_connect) does.
    ///
    /// # Errors
    /// The VM has ended, or there is no tokio runtime.
    pub async fn accept(&mut self) -> Result<VsockStream> {
        let ended = Error::State { operation: "be connected from", state: "has ended" };
        let VsockIncoming { stream, guest_port, descriptor } = self.0.accept().await.ok_or(ended)?;
        let stream = watched(stream)?;
        Ok(VsockStream { stream, host_port: self.port(), guest_port, _descriptor: descriptor })
    }
}

/// A socket on the executor of whoever asks.
fn watched(stream: StdUnixStream) -> Result<UnixStream> {
    let prepared = || {
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        stream.set_nonblocking(true)
    };
    prepared().and_then(|()| UnixStream::from_std(stream)).map_err(Error::io("a stream to the guest"))
}
