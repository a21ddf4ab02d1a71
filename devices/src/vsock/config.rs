//! What somebody who gives a VM a socket device decides, and what its driver reads of that.

use std::time::Duration;

use super::greet::GREETINGS_BYTES;
use super::packet::HEADER;
use super::switch::REPLIES;
use super::window::most_bytes;
use crate::virtio::spec::device_type;
use crate::virtio::{ConfigSpace, DeviceMemory, Identity};

/// Most connections that a VM may have.
pub const MAX_CONNECTIONS: u32 = 10_000;
/// How long a guest has to answer the beginning of a connection, and its end, unless it is told otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// VIRTIO_VSOCK_F_STREAM (virtio 1.2, section 5.10.3).
const F_STREAM: u64 = 1;
/// Longest event queue: there is one event.
const EVENT_SIZE: u16 = 16;

/// What somebody who gives a VM a socket device decides. Plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockOptions {
    /// Identifier within the VM, such as `vsock0`.
    pub id: String,
    /// The guest's context ID, [`MIN_CID`](super::packet::MIN_CID) to [`MAX_CID`](super::packet::MAX_CID).
    pub cid: u64,
    /// Largest size of the queues for packets: a power of two, at most
    /// [`MAX_QUEUE_SIZE`](crate::virtio::spec::MAX_QUEUE_SIZE).
    pub queue_size: u16,
    /// Connections at most, those that are being made or ended included: 1 to [`MAX_CONNECTIONS`]; others are clamped.
    pub max_connections: u32,
    /// How long the guest has to answer a request for a connection, and the end of one on the host's side; then that is reset.
    pub connect_timeout: Duration,
}

impl VsockOptions {
    /// The usual: queues of 128, [`MAX_CONNECTIONS`], [`CONNECT_TIMEOUT`].
    pub fn new(id: impl Into<String>, cid: u64) -> Self {
        Self {
            id: id.into(),
            cid,
            queue_size: 128,
            max_connections: MAX_CONNECTIONS,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }

    /// What such a device is to its driver.
    pub fn identity(&self) -> Identity {
        Identity {
            id: self.id.clone(),
            device_type: device_type::VSOCK,
            features: F_STREAM,
            queue_sizes: vec![self.queue_size, self.queue_size, self.queue_size.min(EVENT_SIZE)],
        }
    }

    /// The configuration space of such a device (section 5.10.4).
    pub fn config(&self) -> ConfigSpace {
        ConfigSpace::new(self.cid.to_le_bytes())
    }

    /// What such a device takes of the host's memory. A connection's room for what its host's end does not take, its socket's
    /// included, is counted when the connection is made, because that is when the guest is promised it.
    pub fn memory(&self) -> DeviceMemory {
        let connections = most_bytes(self.connections());
        let answers = (2 * REPLIES * HEADER.next_multiple_of(16)) as u64;
        DeviceMemory::of_chains(&self.identity()).and(GREETINGS_BYTES + answers, connections)
    }

    /// How many connections there may be.
    pub(super) fn connections(&self) -> u32 {
        self.max_connections.clamp(1, MAX_CONNECTIONS)
    }
}
