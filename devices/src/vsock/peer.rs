//! The host's end of a connection: its socket, and who waits for it.
//!
//! Owns the order in which a socket and its place among all descriptors go. Never touches a packet.

use std::ops::Deref;

use ringlet_io::Descriptor;
use ringlet_io::unix::Stream;
use tokio::sync::oneshot;

use super::host::ConnectError;

/// Who on the host waits for a connection to the guest.
#[derive(Debug)]
pub(super) enum Caller {
    /// A process at the other end of the socket, which reads `OK <port>\n`.
    Socket,
    /// This process.
    Process(oneshot::Sender<Result<u32, ConnectError>>),
}

impl Caller {
    /// Tells it that there is no connection. A socket is just closed.
    pub(super) fn refuse(self, error: ConnectError) {
        if let Self::Process(answer) = self {
            // Nobody waits any more: that is as well.
            let _ = answer.send(Err(error));
        }
    }
}

/// A socket and the place of its descriptor, which is given back after the socket is closed: fields are dropped in order.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) stream: Stream,
    pub(super) descriptor: Descriptor,
}

impl Deref for Placed {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        &self.stream
    }
}

impl Placed {
    /// Closes the socket; its place is the caller's.
    pub(super) fn close(self) -> Descriptor {
        drop(self.stream);
        self.descriptor
    }
}
