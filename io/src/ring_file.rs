//! A descriptor that a ring does I/O on, and what is known of it.
//!
//! Owns the descriptor, and its registration for readiness once somebody waits for that.

use std::cell::OnceCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::io::Errno;
use tokio::sync::Semaphore;

use crate::doorbell::Watch;
use crate::nowait::{NoWait, poll_now};
use crate::owner::Owner;

/// A descriptor to do I/O on. Clones are the same descriptor; `!Send` (send an [`OwnedFd`] instead).
#[derive(Clone)]
pub struct RingFile(pub(crate) Rc<FileInner>);

pub(crate) struct FileInner {
    pub(crate) fd: Arc<OwnedFd>,
    /// `None`: cannot be polled. Set by the first stream operation.
    pub(crate) watch: OnceCell<Option<Watch>>,
    pub(crate) nowait: NoWait,
    /// `None`: the shard's own file.
    pub(crate) claim: Option<Claim>,
    /// Its contents go through the page cache: they may be copied on the thread that submits.
    pub(crate) cached: bool,
}

/// Whose file it is, and what that owner may have under way.
pub(crate) struct Claim {
    pub(crate) owner: Owner,
    pub(crate) share: Arc<Semaphore>,
}

impl RingFile {
    /// Takes over a descriptor, of the shard itself. For stdin and its like, give a duplicate.
    pub fn new(fd: impl Into<OwnedFd>) -> Self {
        Self::with(fd.into(), None, true)
    }

    pub(crate) fn with(fd: OwnedFd, claim: Option<Claim>, cached: bool) -> Self {
        let fd = Arc::new(fd);
        Self(Rc::new(FileInner { fd, watch: OnceCell::new(), nowait: NoWait::new(), claim, cached }))
    }

    /// The registration for readiness; `None` for what is always ready (regular files).
    pub(crate) fn watch(&self) -> io::Result<Option<&Watch>> {
        if self.0.watch.get().is_none() {
            let watch = match Watch::both(Arc::clone(&self.0.fd)) {
                Ok(watch) => Some(watch),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => None,
                Err(error) => return Err(error),
            };
            let _ = self.0.watch.set(watch);
        }
        Ok(self.0.watch.get().and_then(Option::as_ref))
    }

    /// True if the descriptor is ready at this moment (or has hung up).
    pub(crate) fn is_ready(&self, flags: PollFlags) -> bool {
        !poll_now(&self.0.fd, flags).is_empty()
    }

    /// What a call that did not wait has come to; `flags` is what it needed.
    pub(crate) fn outcome(&self, result: rustix::io::Result<usize>, flags: PollFlags) -> Attempt {
        match result {
            Ok(count) => Attempt::Done(Ok(count)),
            Err(Errno::AGAIN | Errno::INTR) => Attempt::NotReady,
            Err(Errno::OPNOTSUPP) if self.is_ready(flags) => Attempt::MayWait,
            Err(Errno::OPNOTSUPP) => Attempt::NotReady,
            Err(error) => Attempt::Done(Err(error.into())),
        }
    }
}

impl AsFd for RingFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl fmt::Debug for RingFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RingFile").field(&self.0.fd).finish()
    }
}

/// What a call that does not wait comes to.
pub(crate) enum Attempt {
    Done(io::Result<usize>),
    NotReady,
    /// Ready, but only a call that may wait can tell.
    MayWait,
}
