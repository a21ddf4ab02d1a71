//! Reads and writes of streams that cannot wait, on any kernel and whatever the flags of the descriptor.
//!
//! `RWF_NOWAIT` does it where the kernel supports it: for pipes and sockets since Linux 6.4, for eventfds long
//! before. A socket without it has `MSG_DONTWAIT`. A pipe, FIFO or terminal without it is opened a second time, by
//! `/proc/self/fd`, with `O_NONBLOCK`. Where that is forbidden, a pipe or FIFO is spliced to or from a pipe of our own
//! ([`Relay`]), which never waits with `SPLICE_F_NONBLOCK`. For the rest, only a call that may wait is left.
//!
//! Never changes the flags of a descriptor, which other processes share.

use std::cell::{Cell, OnceCell};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fstat, open};
use rustix::io::{Errno, ReadWriteFlags, Result, preadv2, pwritev2};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::pty::ptsname;
use rustix::termios::isatty;

use crate::operation::CURRENT_POSITION;

/// Most bytes that go through a [`Relay`] at once: what a pipe holds unless it was told otherwise.
const RELAYED: usize = 64 << 10;

/// How a descriptor is read and written without waiting; found out when it is first tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Flag,
    Socket,
    Reopened,
    Relayed,
    Impossible,
}

/// Reads and writes one descriptor without waiting.
///
/// All errors are those of the calls, besides `EAGAIN`: not ready, nothing has happened; and `EOPNOTSUPP`:
/// only a call that may wait can do it.
#[derive(Debug)]
pub(crate) struct NoWait {
    way: Cell<Way>,
    /// The same pipe or terminal, opened by ourselves.
    reopened: OnceCell<OwnedFd>,
}

impl NoWait {
    pub(crate) fn new() -> Self {
        Self { way: Cell::new(Way::Flag), reopened: OnceCell::new() }
    }

    /// Reads some bytes; 0 at the end.
    pub(crate) fn read(&self, fd: &OwnedFd, relay: &Relay, buf: &mut [u8]) -> Result<usize> {
        if self.way.get() == Way::Flag {
            match preadv2(fd, &mut [IoSliceMut::new(buf)], CURRENT_POSITION, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP) => self.do_without_flag(fd)?,
                result => return result,
            }
        }
        match self.way.get() {
            Way::Flag | Way::Impossible => Err(Errno::OPNOTSUPP),
            // Like read(2), and unlike recv(2), nothing wanted takes nothing.
            _ if buf.is_empty() => Ok(0),
            Way::Socket => recv(fd, buf, RecvFlags::DONTWAIT).map(|(count, _)| count),
            Way::Relayed => relay.read(fd, buf),
            Way::Reopened => rustix::io::read(self.reopened.get().unwrap_or(fd), buf),
        }
    }

    /// Writes some of `bytes`.
    pub(crate) fn write(&self, fd: &OwnedFd, relay: &Relay, bytes: &[u8]) -> Result<usize> {
        if self.way.get() == Way::Flag {
            match pwritev2(fd, &[IoSlice::new(bytes)], CURRENT_POSITION, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP) => self.do_without_flag(fd)?,
                result => return result,
            }
        }
        match self.way.get() {
            Way::Flag | Way::Impossible => Err(Errno::OPNOTSUPP),
            Way::Socket => send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Way::Relayed => relay.write(fd, bytes),
            Way::Reopened => rustix::io::write(self.reopened.get().unwrap_or(fd), bytes),
        }
    }

    /// Chooses what replaces `RWF_NOWAIT`.
    pub(crate) fn do_without_flag(&self, fd: &OwnedFd) -> Result<()> {
        self.way.set(match FileType::from_raw_mode(fstat(fd)?.st_mode) {
            FileType::Socket => Way::Socket,
            FileType::Fifo => self.reopen(fd, Way::Relayed),
            // Opening the master of a pseudo-terminal again would make another one.
            FileType::CharacterDevice if isatty(fd) && ptsname(fd, Vec::new()).is_err() => {
                self.reopen(fd, Way::Impossible)
            }
            _ => Way::Impossible,
        });
        Ok(())
    }

    /// Opens the same thing again; if that is forbidden, `otherwise` is left.
    fn reopen(&self, fd: &OwnedFd, otherwise: Way) -> Way {
        match reopen(fd) {
            Ok(reopened) => {
                let _ = self.reopened.set(reopened);
                Way::Reopened
            }
            Err(error) => {
                tracing::debug!(%error, ?otherwise, "a stream cannot be opened again for calls that do not wait");
                otherwise
            }
        }
    }
}

/// The same pipe or terminal with an open file description of our own, whose calls do not wait.
fn reopen(fd: &OwnedFd) -> Result<OwnedFd> {
    let same = fcntl_getfl(fd)? & (OFlags::RWMODE | OFlags::DIRECT);
    let flags = same | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open(format!("/proc/self/fd/{}", fd.as_raw_fd()), flags, Mode::empty())
}

/// A pipe of our own, through which bytes go to and from the pipes of others. Made when first needed;
/// empty between two calls, so that one does for all streams of a shard.
///
/// What is spliced into a pipe shares no page with what is there: a write takes at least a page of its capacity, so
/// that sixteen small ones fill a pipe that nobody reads. It is the last resort for that reason.
#[derive(Default)]
pub(crate) struct Relay(Cell<Option<Ends>>);

struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Relay {
    /// Runs `transfer`, which gives what came of it and whether the pipe is empty; if not, the pipe is dropped,
    /// with what is in it.
    fn with<T>(&self, transfer: impl FnOnce(&Ends) -> (Result<T>, bool)) -> Result<T> {
        let ends = match self.0.take() {
            Some(ends) => ends,
            None => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
                Ends { reader, writer }
            }
        };
        let (result, empty) = transfer(&ends);
        if empty {
            self.0.set(Some(ends));
        }
        result
    }

    fn read(&self, pipe: &OwnedFd, buf: &mut [u8]) -> Result<usize> {
        self.with(|ends| {
            let wanted = buf.len().min(RELAYED);
            let taken = match splice(pipe, None, &ends.writer, None, wanted, SpliceFlags::NONBLOCK) {
                // The end; or another reader was faster.
                Ok(0) if !at_end(pipe) => return (Err(Errno::AGAIN), true),
                Ok(taken) => taken,
                Err(error) => return (Err(error), true),
            };
            let mut got = 0;
            while got < taken {
                match rustix::io::read(&ends.reader, buf.get_mut(got..taken).unwrap_or_default()) {
                    Ok(count @ 1..) => got += count,
                    Ok(0) => return (Err(Errno::IO), false),
                    Err(error) => return (Err(error), false),
                }
            }
            (Ok(got), true)
        })
    }

    fn write(&self, pipe: &OwnedFd, bytes: &[u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if poll_now(pipe, PollFlags::OUT).is_empty() {
            return Err(Errno::AGAIN);
        }
        self.with(|ends| {
            let part = bytes.get(..RELAYED).unwrap_or(bytes);
            let filled = match rustix::io::write(&ends.writer, part) {
                Ok(filled) => filled,
                Err(error) => return (Err(error), false),
            };
            match splice(&ends.reader, None, pipe, None, filled, SpliceFlags::NONBLOCK) {
                // It was full after all.
                Ok(0) => (Err(Errno::AGAIN), false),
                result => (result, result == Ok(filled)),
            }
        })
    }
}

/// True if a pipe is empty and nobody is left to write to it.
fn at_end(pipe: &OwnedFd) -> bool {
    let events = poll_now(pipe, PollFlags::IN);
    events.contains(PollFlags::HUP) && !events.contains(PollFlags::IN)
}

/// Which of `flags` the descriptor is ready for at this moment, or if it has hung up or failed.
pub(crate) fn poll_now(fd: impl AsFd, flags: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(&fd, flags)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)) {
        Ok(1..) => fds[0].revents(),
        _ => PollFlags::empty(),
    }
}

#[cfg(test)]
#[path = "nowait_test.rs"]
mod tests;
