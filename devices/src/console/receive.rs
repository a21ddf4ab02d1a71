//! Input on its way to the guest.
//!
//! Owns nothing: the bytes stay in their pipe until they are in a buffer of the guest. Buffers are looked at only
//! when there is input, because that is what they are for. Never takes a byte that it has no buffer for.

use std::rc::Rc;

use ringlet_io::{Cost, DoorbellListener, MonoTime};
use ringlet_metrics::RequestKind;

use super::pipe::PipeReader;
use crate::virtio::{Ordered, QueueError};

/// Most input that one buffer is given, in bytes.
pub(super) const CHUNK: usize = 4096;

/// Serves the receive queue; ends only if it breaks.
pub(super) async fn receive(
    queue: Rc<Ordered>,
    mut doorbell: DoorbellListener,
    input: Rc<PipeReader>,
) -> QueueError {
    if let Err(error) = queue.quiet() {
        return error;
    }
    loop {
        if let Err(error) = receive_one(&queue, &mut doorbell, &input).await {
            return error;
        }
    }
}

/// Waits for input; for ever, if nobody types any more.
async fn typed(input: &PipeReader) {
    if !input.ready().await {
        std::future::pending::<()>().await;
    }
}

/// Fills the next buffer, once there is something to fill it with. At every await nothing is taken of the input, nor
/// of the queue.
async fn receive_one(
    queue: &Ordered,
    doorbell: &mut DoorbellListener,
    input: &PipeReader,
) -> Result<(), QueueError> {
    queue.wait_for(doorbell, typed(input)).await?;
    let chain = queue.offered(doorbell).await?;
    let begun = MonoTime::now();
    if chain.readable_len() > 0 {
        return queue.refuse(&chain, "a part for the device to read");
    }
    let room = usize::try_from(chain.writable_len()).unwrap_or(CHUNK);
    let len = input.available().min(room).min(CHUNK);
    queue.admit(doorbell, Cost::read(len as u64)).await?;
    let mut buffer = [0; CHUNK];
    let bytes = buffer.get_mut(..len).unwrap_or_default();
    let len = input.peek(bytes);
    let bytes = bytes.get(..len).unwrap_or_default();
    // The chain was checked as a whole and has the room; if not, that is our mistake, and breaks the queue.
    chain.copy_in(&queue.ram, 0, bytes).map_err(|error| QueueError::Ring(error.to_string()))?;
    queue.complete(&chain, u32::try_from(len).unwrap_or(0))?;
    input.skip(len);
    queue.served(RequestKind::Receive, len as u64, begun);
    Ok(())
}
