//! A connected stream socket on a shard, between which and guest memory nothing is copied.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::event::PollFlags;
use rustix::io::retry_on_intr;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::Interest;

use super::rights::refuse_rights;
use crate::doorbell::Watch;
use crate::lease::{Lease, LeaseUse};
use crate::net::packet::Pieces;
use crate::nowait::poll_now;

/// Where the pieces of a lease are listed for the kernel: one for each task that sends or receives.
#[derive(Debug, Default)]
pub struct Scratch(Pieces);

/// A connected Unix stream socket on its shard. The flags of its descriptor are left alone.
pub struct Stream {
    watch: Watch,
    fd: Arc<OwnedFd>,
}

impl Stream {
    /// Takes over a connected stream socket, which takes no descriptors from now on, if the kernel can refuse them.
    ///
    /// # Errors
    /// It is no Unix socket. The kernel has no memory for watching it, or the user no watch left.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        refuse_rights(&fd)?;
        let fd = Arc::new(fd);
        Ok(Self { watch: Watch::both(Arc::clone(&fd))?, fd })
    }

    /// Has the kernel keep at most `bytes` of what is sent and not received yet, and as much again for its own purposes
    /// (socket(7), `SO_SNDBUF`); what is above that is not taken at first. It takes one packet more than it is told, and never
    /// keeps less than some 2 KiB.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn keep_at_most(&self, bytes: u32) -> io::Result<()> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok(set_socket_send_buffer_size(&self.fd, bytes)?)
    }

    /// Ready when there may be something to receive, the end included. The last one to ask is woken.
    ///
    /// # Errors
    /// The loop is shutting down.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch.poll_ready(Interest::READABLE, cx)
    }

    /// Ready when something may be sent, or sending fails. The last one to ask is woken.
    ///
    /// # Errors
    /// The loop is shutting down.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch.poll_ready(Interest::WRITABLE, cx)
    }

    /// Ready when the peer neither sends nor receives any more. Not for who waits to send something, which this would have wait
    /// for longer. The last one to ask is woken; the same one that asks [`Self::poll_writable`].
    ///
    /// # Errors
    /// The loop is shutting down.
    pub fn poll_hung_up(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch.poll_write_closed(cx)
    }

    /// Receives some bytes into guest memory, and marks it dirty; 0 at the end. `None`: there are none yet.
    ///
    /// # Errors
    /// What the kernel says, with nothing received. `InvalidInput`: the lease is no target, or empty.
    pub fn receive(&self, scratch: &mut Scratch, into: &Lease) -> io::Result<Option<usize>> {
        check(into, LeaseUse::Target)?;
        let receive = || Ok(scratch.0.receive_some(self.fd.as_fd(), into)?);
        unless_not_now(self.watch.attempt(Interest::READABLE, receive))
    }

    /// Sends some bytes of guest memory. `None`: not now.
    ///
    /// # Errors
    /// What the kernel says. `InvalidInput`: the lease is no source, or empty.
    pub fn send(&self, scratch: &mut Scratch, from: &Lease) -> io::Result<Option<usize>> {
        check(from, LeaseUse::Source)?;
        self.write(|| Ok(scratch.0.send_some(self.fd.as_fd(), from)?))
    }

    /// Receives some bytes; 0 at the end. `None`: there are none yet. With `peek` they are there again next time.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn receive_bytes(&self, bytes: &mut [u8], peek: bool) -> io::Result<Option<usize>> {
        let flags = if peek { RecvFlags::DONTWAIT | RecvFlags::PEEK } else { RecvFlags::DONTWAIT };
        let receive = || Ok(retry_on_intr(|| recv(&self.fd, &mut *bytes, flags))?.0);
        unless_not_now(self.watch.attempt(Interest::READABLE, receive))
    }

    /// As [`Self::receive_bytes`], also if nothing is known of it: whoever asks for the last time has no time to be told.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn receive_bytes_unasked(&self, bytes: &mut [u8], peek: bool) -> io::Result<Option<usize>> {
        let flags = if peek { RecvFlags::DONTWAIT | RecvFlags::PEEK } else { RecvFlags::DONTWAIT };
        unless_not_now(
            retry_on_intr(|| recv(&self.fd, &mut *bytes, flags)).map(|got| got.0).map_err(io::Error::from),
        )
    }

    /// Sends some of `bytes`. `None`: not now.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        self.write(|| Ok(retry_on_intr(|| send(&self.fd, bytes, flags))?))
    }

    /// Tells the peer that nothing more will be sent.
    pub fn end_sending(&self) {
        self.end(Shutdown::Write);
    }

    /// Tells the peer that nothing more will be received.
    pub fn end_receiving(&self) {
        self.end(Shutdown::Read);
    }

    /// Ends both halves.
    pub fn end_both(&self) {
        self.end(Shutdown::Both);
    }

    /// Whether the kernel keeps much of what was sent and not received yet: more than a fourth of what it keeps at most. Nothing
    /// of it is left once the peer is gone.
    pub fn keeps_much(&self) -> bool {
        !poll_now(&self.fd, PollFlags::OUT).contains(PollFlags::OUT)
    }

    /// Whether the peer neither sends nor receives any more.
    pub fn has_hung_up(&self) -> bool {
        poll_now(&self.fd, PollFlags::empty()).intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Mostly there is room, also while nothing is known of it.
    fn write(&self, mut write: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                unless_not_now(self.watch.attempt(Interest::WRITABLE, write))
            }
            result => result.map(Some),
        }
    }

    fn end(&self, direction: Shutdown) {
        // It fails only on a socket that is not connected any more, where there is nobody to be told.
        let _ = shutdown(&self.fd, direction);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.fd).finish()
    }
}

fn check(lease: &Lease, wanted: LeaseUse) -> io::Result<()> {
    if lease.lease_use() == wanted && !lease.is_empty() {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

fn unless_not_now<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
