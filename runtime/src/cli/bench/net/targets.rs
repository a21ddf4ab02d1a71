//! What the figures of `bench net` should be, on a machine of two cores that does nothing else.

use super::super::target::{Limit, Quantity, Target};

/// How much better than the same guest on QEMU without vhost.
const OF_QEMU: f64 = 1.5;
/// Streams of a guest, of those that the tap loop carries.
const OF_HOST: f64 = 0.6;
/// By how much a limited guest may get something else than its limits say.
const LIMIT_ERROR: f64 = 0.01;

/// `qemu`: with those that compare with QEMU.
pub(super) fn targets([qemu, _]: [bool; 2]) -> Vec<Target> {
    const fn target(id: &'static str, what: &'static str, figure: &'static str, limit: f64) -> Target {
        Target { id, what, figure, quantity: Quantity::Median, limit: Limit::AtLeast(limit) }
    }
    let mut targets = vec![
        target(
            "net.rx.of_host",
            "a stream to the guest, of the tap loop's",
            "net.stream.rx.ringlet.uring.of_host",
            OF_HOST,
        ),
        target(
            "net.tx.of_host",
            "a stream from the guest, of the tap loop's",
            "net.stream.tx.ringlet.uring.of_host",
            OF_HOST,
        ),
        Target {
            id: "net.limiter.error",
            what: "what a limited guest sends and receives, by how much it is not what was asked",
            figure: "net.limiter.error",
            quantity: Quantity::Median,
            limit: Limit::AtMost(LIMIT_ERROR),
        },
    ];
    if qemu {
        targets.extend([
            target(
                "net.rx.of_qemu",
                "a stream to the guest, of QEMU's",
                "net.stream.rx.ringlet.uring.of_qemu",
                OF_QEMU,
            ),
            target(
                "net.tx.of_qemu",
                "a stream from the guest, of QEMU's",
                "net.stream.tx.ringlet.uring.of_qemu",
                OF_QEMU,
            ),
            target(
                "net.packets.rx.of_qemu",
                "datagrams to the guest, of QEMU's",
                "net.packets.rx.ringlet.uring.of_qemu",
                OF_QEMU,
            ),
            target(
                "net.packets.tx.of_qemu",
                "datagrams from the guest, of QEMU's",
                "net.packets.tx.ringlet.uring.of_qemu",
                OF_QEMU,
            ),
            target(
                "net.p50.of_qemu",
                "latency, p50, how much better than QEMU's",
                "net.requests.ringlet.uring.p50.of_qemu",
                OF_QEMU,
            ),
            target(
                "net.p99.of_qemu",
                "latency, p99, how much better than QEMU's",
                "net.requests.ringlet.uring.p99.of_qemu",
                OF_QEMU,
            ),
        ]);
    }
    targets
}
