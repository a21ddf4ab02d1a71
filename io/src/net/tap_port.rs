//! A tap on a shard: one port a queue.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::control::Control;
use super::link::Link;
use super::packet::{Channel, Pieces, check_source, check_target};
use super::{HEADER, MIN_FRAME, NetFuture, NetInfo, NetPort, Offloads, Received, Sent, Tap};
use crate::lease::Lease;

/// A queue of a tap.
struct TapPort {
    /// Before `control`, whose end closes the descriptor.
    link: Link,
    pieces: RefCell<Pieces>,
    info: NetInfo,
    control: Arc<Control>,
}

/// Makes ports of a tap.
pub(super) fn attach(tap: Tap) -> io::Result<Vec<Rc<dyn NetPort>>> {
    let info = tap.info();
    let queues: Vec<_> = tap.queues.into_iter().map(Arc::new).collect();
    let control = Control::new(queues.clone())?;
    let port = |fd| {
        let link = Link::new(fd)?;
        let port = TapPort { link, pieces: RefCell::default(), info, control: Arc::clone(&control) };
        Ok(Rc::new(port) as Rc<dyn NetPort>)
    };
    queues.into_iter().map(port).collect()
}

impl NetPort for TapPort {
    fn readable(&self) -> NetFuture<'_, io::Result<()>> {
        Box::pin(self.link.readable())
    }

    fn writable(&self) -> NetFuture<'_, io::Result<()>> {
        Box::pin(self.link.writable())
    }

    fn receive(&self, into: &Lease) -> io::Result<Option<Received>> {
        check_target(into)?;
        let mut pieces = self.pieces.borrow_mut();
        let taken = self.link.read(|fd| pieces.read(fd, Channel::Tap, into, 0))?;
        Ok(taken.map(|length| match length {
            None => Received::TooLong,
            Some(length) if length < HEADER + MIN_FRAME => Received::TooShort,
            Some(length) => Received::Packet(length),
        }))
    }

    fn send(&self, head: &[u8], rest: &Lease) -> io::Result<Sent> {
        check_source(head, rest)?;
        let mut pieces = self.pieces.borrow_mut();
        let given = self.link.write(|fd| match pieces.write(fd, Channel::Tap, head, rest) {
            Ok(()) => Ok(Sent::Taken),
            Err(error) if refuses_packet(error) => Ok(Sent::Refused),
            Err(error) => Err(error),
        })?;
        Ok(given.unwrap_or(Sent::Later))
    }

    fn set_offloads(&self, accepted: Offloads) -> NetFuture<'_, io::Result<()>> {
        if !accepted.is_within(self.info.offloads) {
            return Box::pin(async { Err(io::ErrorKind::Unsupported.into()) });
        }
        Box::pin(self.control.set(move |settings| settings.offloads = accepted))
    }

    fn set_queue_pairs(&self, active: u16) -> NetFuture<'_, io::Result<()>> {
        if !(1..=self.info.queue_pairs).contains(&active) {
            return Box::pin(async { Err(io::ErrorKind::InvalidInput.into()) });
        }
        Box::pin(self.control.set(move |settings| settings.queues = active.into()))
    }
}

/// True for what the kernel says of one packet, not of the tap: it is down, has no memory now, or does not like it.
fn refuses_packet(error: Errno) -> bool {
    matches!(
        error,
        Errno::IO
            | Errno::INVAL
            | Errno::NOMEM
            | Errno::NOBUFS
            | Errno::MSGSIZE
            | Errno::TOOBIG
            | Errno::PERM
    )
}

#[cfg(test)]
#[path = "tap_port_test.rs"]
mod tests;
