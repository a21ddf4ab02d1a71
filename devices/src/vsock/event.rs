//! The one event that there is (virtio 1.2, section 5.10.6.7): connections are gone, and the context ID may be another.
//!
//! Owns whether the driver has to be told. That is so when a saved device is restored.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ringlet_io::DoorbellListener;
use tokio::sync::Notify;

use super::switch::Switch;
use crate::virtio::{Ordered, QueueError};

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: u32 = 0;
/// How long packets wait for the driver to take the event, lest it ends connections that are made after the restore. A
/// driver that takes no events does not wait longer.
const GRACE: Duration = Duration::from_millis(10);

/// What the driver is to be told.
#[derive(Debug, Default)]
pub(super) struct Events {
    reset: Cell<bool>,
    due: Notify,
    told: Notify,
}

impl Events {
    /// The driver knows connections that are gone, or not any more.
    pub(super) fn set_reset(&self, is_due: bool) {
        self.reset.set(is_due);
        if is_due {
            self.due.notify_one();
        } else {
            self.told.notify_waiters();
        }
    }

    /// Waits until the driver was told, for as long as is worth it. Cancel-safe.
    pub(super) async fn told(self: &Rc<Self>, switch: &Rc<Switch>) {
        if self.reset.get() {
            let grace = switch.cx.timer().sleep(GRACE);
            tokio::select! {
                biased;
                () = self.told.notified() => {}
                () = grace => {}
            }
        }
    }

    async fn is_due(&self) {
        while !self.reset.get() {
            self.due.notified().await;
        }
    }
}

/// Serves the event queue; ends only if it breaks.
pub(super) async fn tell(
    queue: Rc<Ordered>,
    mut doorbell: DoorbellListener,
    events: Rc<Events>,
) -> QueueError {
    loop {
        if let Err(error) = tell_one(&queue, &mut doorbell, &events).await {
            return error;
        }
    }
}

/// Tells the next event. At every await it is still to be told.
async fn tell_one(
    queue: &Ordered,
    doorbell: &mut DoorbellListener,
    events: &Events,
) -> Result<(), QueueError> {
    queue.wait_for(doorbell, events.is_due()).await?;
    let chain = queue.offered(doorbell).await?;
    let event = TRANSPORT_RESET.to_le_bytes();
    if chain.readable_len() > 0 || chain.writable_len() < event.len() as u64 {
        return queue.refuse(&chain, "no room for an event");
    }
    chain.copy_in(&queue.ram, 0, &event).map_err(|error| QueueError::Ring(error.to_string()))?;
    queue.complete(&chain, u32::try_from(event.len()).unwrap_or(u32::MAX))?;
    events.set_reset(false);
    Ok(())
}

#[cfg(test)]
#[path = "event_test.rs"]
mod tests;
