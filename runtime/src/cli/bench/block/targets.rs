//! What the figures of `bench block` should be, on a machine of two cores that does nothing else.

use super::super::target::{Limit, Quantity, Target};

/// Requests of a guest, of those that the ring facade can make without one, past the page cache: the guest's own time,
/// its exits and the queue's work must fit beside the disk's.
const OF_HOST: f64 = 0.7;
/// Requests of a guest, of those of the same guest on QEMU, from the page cache: there the VMM is all that counts.
const OF_QEMU: f64 = 1.5;

/// `qemu`: with those that compare with QEMU.
pub(super) fn targets(qemu: bool) -> Vec<Target> {
    const fn target(id: &'static str, what: &'static str, figure: &'static str, limit: f64) -> Target {
        Target { id, what, figure, quantity: Quantity::Median, limit: Limit::AtLeast(limit) }
    }
    let mut targets = vec![
        target(
            "block.read.of_host",
            "random reads past the cache, depth 32, of the host loop's",
            "block.direct.randread.32.ringlet.uring.of_host",
            OF_HOST,
        ),
        target(
            "block.write.of_host",
            "random writes past the cache, depth 32, of the host loop's",
            "block.direct.randwrite.32.ringlet.uring.of_host",
            OF_HOST,
        ),
    ];
    if qemu {
        targets.push(target(
            "block.cached.of_qemu",
            "random reads of a cached file, depth 32, of QEMU's",
            "block.buffered.randread.32.ringlet.uring.of_qemu",
            OF_QEMU,
        ));
    }
    targets
}
