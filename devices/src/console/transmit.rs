//! Output on its way from the guest.
//!
//! Owns how far the first chain of the queue has been handed on. The rest of it stays in guest memory until there
//! is room for it, so a slow reader makes the guest wait and costs the host nothing. Never holds output back.

use std::cell::Cell;
use std::rc::Rc;

use ringlet_io::{Cost, DoorbellListener, MonoTime};
use ringlet_metrics::RequestKind;

use super::output::ConsoleOutput;
use crate::virtio::{Chain, InFlight, Ordered, QueueError};

/// Bytes that are copied at a time: what one request of the VM's share of a turn buys.
pub(super) const CHUNK: usize = 8192;

/// Serves the transmit queue; ends only if it breaks. `sent` counts the bytes of the first chain that were handed
/// on, and so tells where to go on after a stop.
pub(super) async fn transmit(
    queue: Rc<Ordered>,
    mut doorbell: DoorbellListener,
    output: Rc<ConsoleOutput>,
    sent: Rc<Cell<u32>>,
) -> QueueError {
    loop {
        if let Err(error) = transmit_one(&queue, &mut doorbell, &output, &sent).await {
            return error;
        }
    }
}

/// Hands the next chain on, which may be 4 GiB long: so it is charged piece by piece, each an operation. At every await
/// `sent` says how much of it is done, and nothing else is paid for.
async fn transmit_one(
    queue: &Ordered,
    doorbell: &mut DoorbellListener,
    output: &ConsoleOutput,
    sent: &Cell<u32>,
) -> Result<(), QueueError> {
    let chain = queue.offered(doorbell).await?;
    let begun = MonoTime::now();
    if chain.writable_len() > 0 {
        return queue.refuse(&chain, "a part for the device to write");
    }
    let len = chain.readable_len();
    let waiting = InFlight::begin(&queue.metrics);
    while u64::from(sent.get()) < len {
        let room = queue.wait_for(doorbell, output.room()).await?;
        let left = len.saturating_sub(sent.get().into());
        let piece = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK).min(room);
        queue.admit(doorbell, Cost::write(piece as u64)).await?;
        send(queue, &chain, output, sent, piece)?;
        if u64::from(sent.get()) < len {
            queue.spend().await;
        }
    }
    drop(waiting);
    queue.complete(&chain, 0)?;
    sent.set(0);
    queue.served(RequestKind::Transmit, len, begun);
    Ok(())
}

/// Hands on the next `piece` bytes of the chain, at most [`CHUNK`], as far as there is room.
fn send(
    queue: &Ordered,
    chain: &Chain,
    output: &ConsoleOutput,
    sent: &Cell<u32>,
    piece: usize,
) -> Result<(), QueueError> {
    let mut buffer = [0; CHUNK];
    let from = u64::from(sent.get());
    let bytes = buffer.get_mut(..piece).unwrap_or_default();
    // The chain was checked as a whole and has these bytes; if not, that is our mistake, and breaks the queue.
    chain.copy_out(&queue.ram, from, bytes).map_err(|error| QueueError::Ring(error.to_string()))?;
    let put = output.put(bytes);
    queue.metrics.dropped_bytes.add(put.lost);
    sent.set(sent.get().saturating_add(u32::try_from(put.taken).unwrap_or(0)));
    Ok(())
}
