//! Room that a connection of the guest has for what its host's end does not take: its window.
//!
//! The wider it is, the less a guest that sends a stream waits for the host's end; and all of it is memory that the guest may
//! make the host keep. So a VM has a few wide ones, which go to those connections that come first.

use std::cell::Cell;
use std::rc::Rc;

use ringlet_io::{Buffers, Held};

/// Bytes of a wide window: what Linux gives a socket of its own (`VIRTIO_VSOCK_DEFAULT_BUF_SIZE`).
pub(super) const WIDE: u32 = 256 << 10;
/// Wide windows that a device gives at a time.
pub(super) const WIDE_ONES: u32 = 16;
/// Bytes of the other windows: the first of which there is so much left in the VM's account. Without any, there is no
/// connection.
pub(super) const USUAL: [u32; 3] = [64 << 10, 16 << 10, 4 << 10];

/// What a connection takes besides, with its task and what watches its socket.
pub(super) const CONNECTION_BYTES: u64 = 2 << 10;
/// The longest piece in which the kernel takes memory for what is sent to a socket, beyond what it was told to.
const PIECE: u64 = 8 << 10;

/// Everything that a connection with a window of so many bytes may make the host keep: it, its window, and what the kernel
/// keeps in its socket. A socket that is told to keep `n` bytes takes `2 * n` (socket(7), `SO_SNDBUF`), and then one more
/// packet of up to half of that.
pub(super) fn connection_bytes(window: u32) -> u64 {
    let window = u64::from(window);
    CONNECTION_BYTES + window + 3 * window + PIECE
}

/// What so many connections take at most, in bytes.
pub(super) fn most_bytes(connections: u32) -> u64 {
    let [usual, ..] = USUAL;
    let wide = connections.min(WIDE_ONES);
    u64::from(wide) * connection_bytes(WIDE) + u64::from(connections - wide) * connection_bytes(usual)
}

/// The windows of a device.
#[derive(Debug)]
pub(super) struct Windows {
    buffers: Buffers,
    /// Wide ones that are given.
    wide: Rc<Cell<u32>>,
}

/// The window of a connection, and what is counted for that; given back when this is dropped.
#[derive(Debug)]
pub(super) struct Window {
    bytes: u32,
    _held: Held,
    _wide: Option<WideOne>,
}

#[derive(Debug)]
struct WideOne(Rc<Cell<u32>>);

impl Drop for WideOne {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Windows {
    pub(super) fn new(buffers: Buffers) -> Self {
        Self { buffers, wide: Rc::default() }
    }

    /// A window for a new connection, as wide as there may be one.
    pub(super) fn take(&self) -> Option<Window> {
        let take = |bytes| Some((bytes, self.buffers.try_take(connection_bytes(bytes))?));
        let given = self.wide.get();
        if given < WIDE_ONES
            && let Some((bytes, held)) = take(WIDE)
        {
            self.wide.set(given + 1);
            return Some(Window { bytes, _held: held, _wide: Some(WideOne(Rc::clone(&self.wide))) });
        }
        let (bytes, held) = USUAL.into_iter().find_map(take)?;
        Some(Window { bytes, _held: held, _wide: None })
    }
}

impl Window {
    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }
}

#[cfg(test)]
#[path = "window_test.rs"]
mod tests;
