//! Packets on their way to the guest.
//!
//! Owns a buffer that was peeked. Nothing is taken from a socket that there is no buffer for: without buffers, the
//! host's ends wait.

use std::rc::Rc;

use ringlet_io::unix::Scratch;
use ringlet_io::{CostKind, DoorbellListener, MonoTime};
use ringlet_metrics::RequestKind;

use super::event::Events;
use super::packet::HEADER;
use super::switch::{Filled, Switch};
use crate::virtio::{Ordered, QueueError};

/// The task of the receive queue.
pub(super) struct Receiver {
    pub(super) queue: Rc<Ordered>,
    pub(super) doorbell: DoorbellListener,
    pub(super) switch: Rc<Switch>,
    pub(super) events: Rc<Events>,
    pub(super) scratch: Scratch,
}

impl Receiver {
    /// Serves the queue; ends only if it breaks.
    pub(super) async fn run(mut self) -> QueueError {
        if let Err(error) = self.queue.quiet() {
            return error;
        }
        let told = self.events.told(&self.switch);
        if let Err(error) = self.queue.wait_for(&mut self.doorbell, told).await {
            return error;
        }
        loop {
            if let Err(error) = self.receive_one().await {
                return error;
            }
        }
    }

    /// Fills the next buffer. At every await it is still the driver's.
    async fn receive_one(&mut self) -> Result<(), QueueError> {
        let Self { queue, doorbell, switch, scratch, .. } = self;
        let chain = queue.offered(doorbell).await?;
        if chain.readable_len() > 0 {
            return queue.refuse(&chain, "a part for the device to read");
        }
        if chain.writable_len() <= HEADER as u64 {
            return queue.refuse(&chain, "no room for a packet");
        }
        loop {
            queue.wait_for(doorbell, has_packets(switch)).await?;
            let fill = || {
                let begun = MonoTime::now();
                let filled = switch.fill(&queue.ram, &chain, scratch);
                let bytes = match filled {
                    Filled::Packet(bytes) => Some(bytes.into()),
                    Filled::Nothing | Filled::Unfit => None,
                };
                ((filled, begun), bytes)
            };
            let (filled, begun) = queue.admit_and(doorbell, CostKind::Read, fill).await?;
            match filled {
                Filled::Packet(bytes) => {
                    let written = u32::try_from(HEADER).unwrap_or(0).saturating_add(bytes);
                    queue.complete(&chain, written)?;
                    let kind = if bytes > 0 { RequestKind::Receive } else { RequestKind::Control };
                    queue.served(kind, bytes.into(), begun);
                    return Ok(());
                }
                Filled::Unfit => return queue.refuse(&chain, "too many pieces"),
                Filled::Nothing => queue.spend().await,
            }
        }
    }
}

async fn has_packets(switch: &Switch) {
    while !switch.has_packets() {
        switch.ready.notified().await;
    }
}

#[cfg(test)]
#[path = "receive_test.rs"]
mod tests;
