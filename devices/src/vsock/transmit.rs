//! Packets on their way from the guest.
//!
//! Owns nothing: data stays in guest memory until a socket takes it. A header is copied once, and only the copy is
//! judged and used. A packet with a flaw is counted, ends its connection, and is given back; the queue goes on.

use std::rc::Rc;

use ringlet_io::unix::Scratch;
use ringlet_io::{Cost, DoorbellListener, MonoTime};
use ringlet_metrics::{GuestErrorKind, RequestKind, RequestStatus, guest_error};

use super::packet::{HEADER, Header, Op};
use super::switch::Switch;
use super::window::WIDE;
use crate::virtio::{Ordered, QueueError};

/// The task of the transmit queue.
pub(super) struct Transmitter {
    pub(super) queue: Rc<Ordered>,
    pub(super) doorbell: DoorbellListener,
    pub(super) switch: Rc<Switch>,
    pub(super) scratch: Scratch,
}

impl Transmitter {
    /// Serves the queue; ends only if it breaks.
    pub(super) async fn run(mut self) -> QueueError {
        loop {
            if let Err(error) = self.transmit_one().await {
                return error;
            }
        }
    }

    /// Takes the next packet. At every await it is still the driver's.
    async fn transmit_one(&mut self) -> Result<(), QueueError> {
        let Self { queue, doorbell, switch, scratch } = self;
        let chain = queue.offered(doorbell).await?;
        let begun = MonoTime::now();
        if chain.writable_len() > 0 {
            return queue.refuse(&chain, "a part for the device to write");
        }
        let mut bytes = [0; HEADER];
        let Some(there) = chain.readable_len().checked_sub(HEADER as u64) else {
            return queue.refuse(&chain, "no whole header");
        };
        // It is there; if not, that is our mistake, and breaks the queue.
        chain.copy_out(&queue.ram, 0, &mut bytes).map_err(|error| QueueError::Ring(error.to_string()))?;
        let header = Header::parse(&bytes);
        let is_data = header.op == Op::Data.number();
        let bytes = if is_data { u64::from(header.len).min(there) } else { 0 };
        // What is beyond the most that a guest is ever given room for is refused, and never moved: nobody pays for it.
        queue.wait_for(doorbell, has_room(switch)).await?;
        queue.admit(doorbell, Cost::write(bytes.min(WIDE.into()))).await?;
        match switch.take(&header, &queue.ram, &chain, scratch) {
            Ok(()) => {
                queue.complete(&chain, 0)?;
                let kind = if is_data { RequestKind::Transmit } else { RequestKind::Control };
                queue.served(kind, bytes, begun);
                Ok(())
            }
            Err(flaw) => {
                let (log, metrics) = (&queue.log, &queue.metrics);
                guest_error!(
                    log,
                    GuestErrorKind::BadRequest,
                    "{}: a packet is dropped: {flaw}",
                    metrics.id()
                );
                let time = MonoTime::now().since(begun);
                metrics.completed(RequestKind::Other, RequestStatus::IoError, 0, time);
                queue.complete(&chain, 0)
            }
        }
    }
}

/// Waits until the guest has taken answers that it asked for. It does not harm others by not doing so.
async fn has_room(switch: &Switch) {
    while !switch.has_room() {
        switch.room.notified().await;
    }
}

#[cfg(test)]
#[path = "transmit_test.rs"]
mod tests;
