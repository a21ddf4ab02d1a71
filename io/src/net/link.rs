//! A descriptor of a tap or socket on a shard: tried without waiting, waited for by readiness.
//!
//! Readiness is noted by the event loop and forgotten by the try that finds nothing, so while packets come there is
//! one call a packet. A descriptor that failed (a tap that was deleted tells by `POLLERR` alone) is ready
//! for good, and what then finds nothing is an error.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::io::Errno;
use tokio::io::{Interest, Ready};

use crate::doorbell::Watch;
use crate::nowait::poll_now;

/// A watched descriptor.
#[derive(Debug)]
pub(super) struct Link {
    watch: Watch,
    fd: Arc<OwnedFd>,
    failed: Cell<bool>,
}

impl Link {
    /// Watches a descriptor in both directions.
    ///
    /// # Errors
    /// The kernel has no memory for it, or the user no watch left.
    pub(super) fn new(fd: Arc<OwnedFd>) -> io::Result<Self> {
        Ok(Self { watch: Watch::both(Arc::clone(&fd))?, fd, failed: Cell::new(false) })
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.ready(Interest::READABLE).await
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        self.ready(Interest::WRITABLE).await
    }

    /// Waits for one direction, or for failure.
    async fn ready(&self, direction: Interest) -> io::Result<()> {
        while !self.failed.get() {
            let mut guard = self.watch.ready(direction | Interest::ERROR).await?;
            let ready = guard.ready();
            if !ready.is_error() {
                return Ok(());
            }
            self.failed.set(self.poll(PollFlags::empty()).contains(PollFlags::ERR));
            // An error that is over already (a socket's).
            guard.clear_ready_matching(Ready::ERROR);
            if ready != Ready::ERROR {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads, if there may be something. `None`: there is nothing.
    ///
    /// # Errors
    /// What `read` says; `ENODEV` where there is nothing and never will be.
    pub(super) fn read<T>(
        &self,
        mut read: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<Option<T>> {
        if self.failed.get() {
            return match read(self.fd.as_fd()) {
                Err(Errno::AGAIN) => Err(Errno::NODEV.into()),
                result => Ok(Some(result?)),
            };
        }
        unless_not_now(self.watch.attempt(Interest::READABLE, || Ok(read(self.fd.as_fd())?)))
    }

    /// Writes. `None`: not now.
    ///
    /// # Errors
    /// What `write` says.
    pub(super) fn write<T>(
        &self,
        mut write: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> io::Result<Option<T>> {
        // Mostly there is room, and a tap that is down never says that there is.
        match write(self.fd.as_fd()) {
            Err(Errno::AGAIN) if self.failed.get() => Err(Errno::NODEV.into()),
            Err(Errno::AGAIN) => {
                unless_not_now(self.watch.attempt(Interest::WRITABLE, || Ok(write(self.fd.as_fd())?)))
            }
            result => Ok(Some(result?)),
        }
    }

    /// What is so at this moment, of `flags`, or that it failed.
    pub(super) fn poll(&self, flags: PollFlags) -> PollFlags {
        poll_now(&self.fd, flags)
    }
}

fn unless_not_now<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
#[path = "link_test.rs"]
mod tests;
