//! A process that connects to a guest's socket device, listens for the guest, and sends and takes a few bytes.

use std::fmt;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use ringlet_devices::vsock::{ConnectError, VsockHandle, VsockListener};

use crate::FILLER;

/// The port of the host at which the process listens.
pub const PORT: u32 = 5;
/// Ports of the guest that it connects to.
const PORTS: u8 = 8;
/// Connections that it has at most.
const MOST: usize = 8;

type Answer = Pin<Box<dyn Future<Output = Result<u32, ConnectError>>>>;

/// The process, and its ends of connections.
pub struct Process {
    handle: VsockHandle,
    listener: VsockListener,
    ends: Vec<(UnixStream, Option<Answer>)>,
}

impl Process {
    pub(crate) fn new(handle: VsockHandle) -> Self {
        let listener = handle.listen(PORT).expect("nobody else listens");
        Self { handle, listener, ends: Vec::new() }
    }

    /// Accepts, connects to a port, and sends to all and takes from all; or goes away from the oldest.
    pub(crate) fn act(&mut self, what: u8) {
        if let Some(Some(incoming)) = now(self.listener.accept()) {
            self.ends.push((incoming.stream, None));
        }
        if what & 0x80 != 0 || self.ends.len() >= MOST {
            self.ends.drain(..1.min(self.ends.len()));
        } else {
            self.connect(u32::from(what % PORTS));
        }
        for (stream, answer) in &mut self.ends {
            if answer.as_mut().is_some_and(|answer| now(answer.as_mut()).is_some()) {
                *answer = None;
            }
            // Whoever is at the other end may be gone, or not there yet.
            let _ = stream.write(&vec![FILLER; what.into()]);
            let _ = stream.read(&mut [0; 256]);
        }
    }

    fn connect(&mut self, port: u32) {
        let (ours, devices) = UnixStream::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("a socket");
        let handle = self.handle.clone();
        let mut answer: Answer = Box::pin(async move { handle.connect(port, devices).await });
        let waits = now(answer.as_mut()).is_none();
        self.ends.push((ours, waits.then_some(answer)));
    }
}

/// What a future that need not wait gives.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("ends", &self.ends.len()).finish_non_exhaustive()
    }
}
