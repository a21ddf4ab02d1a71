//! Sockets on a shard. A stream's frames are copied once more, through the fixed buffers of `framing.rs`; what the
//! kernel keeps apart goes to and from guest memory directly.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::framing::{BadLength, Incoming, Outgoing};
use super::link::Link;
use super::packet::{Channel, Pieces, check_source, check_target};
use super::passt::Passt;
use super::socket::{Framing, Socket};
use super::{HEADER, MAX_FRAME, MIN_FRAME, NetFuture, NetPort, Offloads, Received, Sent};
use crate::lease::Lease;
use crate::shard::ShardContext;

/// How often a stream is read for one frame. A peer that writes byte by byte gets no more of the shard's time at once.
const READS_A_FRAME: usize = 4;

/// Makes a port of a socket.
pub(super) fn attach(socket: Socket, cx: &ShardContext) -> io::Result<Rc<dyn NetPort>> {
    let link = Link::new(Arc::new(socket.fd))?;
    Ok(match socket.framing {
        Framing::Packets => Rc::new(PacketPort { link, pieces: RefCell::default() }),
        Framing::Length => Rc::new(StreamPort {
            link,
            cx: cx.clone(),
            busy: Cell::new(false),
            broken: Cell::new(None),
            incoming: RefCell::default(),
            outgoing: RefCell::default(),
            _passt: socket.passt,
        }),
    })
}

/// A socket that keeps frames apart.
struct PacketPort {
    link: Link,
    pieces: RefCell<Pieces>,
}

impl PacketPort {
    /// What it means that nothing came: an empty frame, or that nothing will come any more.
    fn nothing(&self) -> io::Result<Received> {
        let ended = self.link.poll(PollFlags::RDHUP).intersects(PollFlags::RDHUP | PollFlags::HUP);
        if ended { Err(gone()) } else { Ok(Received::TooShort) }
    }
}

impl NetPort for PacketPort {
    fn readable(&self) -> NetFuture<'_, io::Result<()>> {
        Box::pin(self.link.readable())
    }

    fn writable(&self) -> NetFuture<'_, io::Result<()>> {
        Box::pin(self.link.writable())
    }

    fn receive(&self, into: &Lease) -> io::Result<Option<Received>> {
        check_target(into)?;
        let mut pieces = self.pieces.borrow_mut();
        match self.link.read(|fd| pieces.read(fd, Channel::Socket, into, HEADER as u64))? {
            None => Ok(None),
            Some(Some(0)) => self.nothing().map(Some),
            Some(length) => received(into, length).map(Some),
        }
    }

    fn send(&self, head: &[u8], rest: &Lease) -> io::Result<Sent> {
        let (header, ours, _) = check_source(head, rest)?;
        check_finished(header)?;
        let mut pieces = self.pieces.borrow_mut();
        let sent = self.link.write(|fd| match pieces.write(fd, Channel::Socket, ours, rest) {
            Ok(()) => Ok(Sent::Taken),
            // Longer than the socket's buffer; or there is no memory.
            Err(Errno::MSGSIZE | Errno::NOBUFS | Errno::NOMEM) => Ok(Sent::Refused),
            Err(error) => Err(error),
        })?;
        Ok(sent.unwrap_or(Sent::Later))
    }

    fn set_offloads(&self, accepted: Offloads) -> NetFuture<'_, io::Result<()>> {
        only_no_offloads(accepted)
    }

    fn set_queue_pairs(&self, active: u16) -> NetFuture<'_, io::Result<()>> {
        only_one_pair(active)
    }
}

/// A stream of frames with their lengths.
struct StreamPort {
    link: Link,
    cx: ShardContext,
    /// There may be more to read at once, but others come first.
    busy: Cell<bool>,
    /// The peer announced a frame that cannot be.
    broken: Cell<Option<BadLength>>,
    incoming: RefCell<Incoming>,
    outgoing: RefCell<Outgoing>,
    /// Ends with the port.
    _passt: Option<Passt>,
}

impl StreamPort {
    fn check(&self) -> io::Result<()> {
        self.broken.get().map_or(Ok(()), |lie| Err(io::Error::new(io::ErrorKind::InvalidData, lie)))
    }

    /// Takes the next frame that is there, into the lease.
    fn take(&self, incoming: &mut Incoming, into: &Lease) -> io::Result<Option<Received>> {
        let frame = match incoming.next_frame() {
            Ok(None) => return Ok(None),
            Ok(Some(frame)) => frame,
            Err(lie) => {
                self.broken.set(Some(lie));
                return self.check().map(|()| None);
            }
        };
        let room = into.len().saturating_sub(HEADER as u64);
        let fits = frame.len() as u64 <= room;
        if fits {
            into.copy_in(frame, HEADER as u64).map_err(io::Error::other)?;
        }
        received(into, fits.then_some(frame.len())).map(Some)
    }

    /// Writes what is left of the frame under way; true if all of it has gone.
    fn flush(&self, outgoing: &mut Outgoing) -> io::Result<bool> {
        while !outgoing.rest().is_empty() {
            let Some(count) = self.link.write(|fd| send_some(fd, outgoing.rest()))? else { return Ok(false) };
            outgoing.gone(count);
        }
        Ok(true)
    }
}

impl NetPort for StreamPort {
    fn readable(&self) -> NetFuture<'_, io::Result<()>> {
        if self.incoming.borrow().is_ready() {
            return Box::pin(async { Ok(()) });
        }
        Box::pin(async {
            if self.busy.take() {
                self.cx.next_turn().await;
            }
            self.link.readable().await
        })
    }

    fn writable(&self) -> NetFuture<'_, io::Result<()>> {
        if self.broken.get().is_some() {
            return Box::pin(async { Ok(()) });
        }
        Box::pin(self.link.writable())
    }

    fn receive(&self, into: &Lease) -> io::Result<Option<Received>> {
        check_target(into)?;
        self.check()?;
        let mut incoming = self.incoming.borrow_mut();
        for _ in 0..READS_A_FRAME {
            if let Some(received) = self.take(&mut incoming, into)? {
                return Ok(Some(received));
            }
            match self.link.read(|fd| receive_some(fd, incoming.room()))? {
                None => return Ok(None),
                Some(0) => return Err(gone()),
                Some(count) => incoming.came(count),
            }
        }
        let received = self.take(&mut incoming, into)?;
        self.busy.set(received.is_none());
        Ok(received)
    }

    fn send(&self, head: &[u8], rest: &Lease) -> io::Result<Sent> {
        let (header, ours, length) = check_source(head, rest)?;
        check_finished(header)?;
        self.check()?;
        let mut outgoing = self.outgoing.borrow_mut();
        let under_way = outgoing.under_way();
        if under_way.is_some() && !self.flush(&mut outgoing)? {
            return Ok(Sent::Later);
        }
        if under_way == Some(length) {
            return Ok(Sent::Taken);
        }
        let filled = outgoing.put(length, |bytes| {
            let (first, behind) = bytes.split_at_mut_checked(ours.len())?;
            first.copy_from_slice(ours);
            Some(rest.copy_out(behind, 0))
        });
        filled.flatten().ok_or(io::ErrorKind::InvalidInput)?.map_err(io::Error::other)?;
        Ok(if self.flush(&mut outgoing)? { Sent::Taken } else { Sent::Later })
    }

    fn set_offloads(&self, accepted: Offloads) -> NetFuture<'_, io::Result<()>> {
        only_no_offloads(accepted)
    }

    fn set_queue_pairs(&self, active: u16) -> NetFuture<'_, io::Result<()>> {
        only_one_pair(active)
    }
}

fn receive_some(fd: BorrowedFd<'_>, room: &mut [u8]) -> rustix::io::Result<usize> {
    retry_on_intr(|| recv(fd, &mut *room, RecvFlags::DONTWAIT)).map(|(count, _)| count)
}

fn send_some(fd: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<usize> {
    retry_on_intr(|| send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
}

/// What a frame of `length` bytes behind the header's place is; `None`: longer than the lease.
fn received(into: &Lease, length: Option<usize>) -> io::Result<Received> {
    Ok(match length {
        None => Received::TooLong,
        Some(length) if length < MIN_FRAME => Received::TooShort,
        Some(length) if length > MAX_FRAME => Received::TooLong,
        Some(length) => {
            into.copy_in(&[0; HEADER], 0).map_err(io::Error::other)?;
            Received::Packet(HEADER + length)
        }
    })
}

/// Refuses a header by which the frame is unfinished: flags with NEEDS_CSUM, or a kind of segmentation.
fn check_finished(header: &[u8; HEADER]) -> io::Result<()> {
    let [flags, segmentation, ..] = *header;
    if flags & 1 != 0 || segmentation != 0 { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
}

fn only_no_offloads<'a>(accepted: Offloads) -> NetFuture<'a, io::Result<()>> {
    let fits = accepted == Offloads::NONE;
    Box::pin(async move { if fits { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) } })
}

fn only_one_pair<'a>(active: u16) -> NetFuture<'a, io::Result<()>> {
    Box::pin(async move { if active == 1 { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) } })
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the peer has closed the connection")
}

#[cfg(test)]
#[path = "socket_port_test.rs"]
mod tests;
