//! What the figures of `bench vsock` should be, on a machine of two cores that does nothing else.

use super::super::target::{Limit, Quantity, Target};

/// A byte there and back, in exits of the guest to user space: a notification and an interrupt take as many, at least, if
/// each wakes whom it is for.
const EXITS: f64 = 4.0;
/// Streams of a guest, of those that the same socket carries without one.
const OF_HOST: f64 = 0.6;

const fn exits(id: &'static str, what: &'static str, figure: &'static str) -> Target {
    Target { id, what, figure, quantity: Quantity::Median, limit: Limit::AtMost(EXITS) }
}

const fn stream(id: &'static str, what: &'static str, figure: &'static str) -> Target {
    Target { id, what, figure, quantity: Quantity::Median, limit: Limit::AtLeast(OF_HOST) }
}

pub(super) const TARGETS: [Target; 6] = [
    exits(
        "vsock.requests.socket.of_exit",
        "a byte there and back by the Unix socket, p50, in exits",
        "vsock.requests.ringlet.uring.socket.p50.of_exit",
    ),
    exits(
        "vsock.requests.stream.of_exit",
        "a byte there and back in the process, p50, in exits",
        "vsock.requests.ringlet.uring.stream.p50.of_exit",
    ),
    stream(
        "vsock.rx.socket.of_host",
        "a stream to the guest by the Unix socket, of the host loop's",
        "vsock.stream.rx.ringlet.uring.socket.of_host",
    ),
    stream(
        "vsock.tx.socket.of_host",
        "a stream from the guest by the Unix socket, of the host loop's",
        "vsock.stream.tx.ringlet.uring.socket.of_host",
    ),
    stream(
        "vsock.rx.stream.of_host",
        "a stream to the guest in the process, of the host loop's",
        "vsock.stream.rx.ringlet.uring.stream.of_host",
    ),
    stream(
        "vsock.tx.stream.of_host",
        "a stream from the guest in the process, of the host loop's",
        "vsock.stream.tx.ringlet.uring.stream.of_host",
    ),
];
