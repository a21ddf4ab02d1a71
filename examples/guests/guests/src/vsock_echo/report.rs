//! What is printed.

use ringlet_guest::println;
use ringlet_guest::vsock::Vsock;

use crate::histogram::Histogram;
use crate::options::Options;

/// What was done; what a mode does not know is 0.
pub(crate) struct Outcome {
    /// Bytes that went, and came back.
    pub(crate) bytes: u64,
    pub(crate) nanoseconds: u64,
    pub(crate) requests: u64,
    pub(crate) latency: Histogram,
}

impl Outcome {
    pub(crate) fn new() -> Self {
        Self { bytes: 0, nanoseconds: 0, requests: 0, latency: Histogram::new() }
    }

    fn per_second(&self, count: u64) -> u64 {
        (u128::from(count) * 1_000_000_000 / u128::from(self.nanoseconds.max(1))) as u64
    }
}

/// For people and, in one line of JSON, for programs.
pub(crate) fn print(vsock: &Vsock, options: &Options, outcome: &Outcome) {
    let (name, bytes) = (options.mode.name(), outcome.bytes);
    let (rate, requests) = (outcome.per_second(bytes), outcome.per_second(outcome.requests));
    let percentile = |percent| outcome.latency.percentile(percent);
    println!("vsock-echo: {name}: {bytes} bytes there and back, {} MiB/s", rate >> 20);
    if outcome.requests > 0 {
        let (p50, p99) = (percentile(50) / 1000, percentile(99) / 1000);
        println!("vsock-echo: {requests} requests/s; latency p50 {p50} us, p99 {p99} us");
    }
    let counters = vsock.counters();
    println!(
        "vsock-result {{\"ok\":true,\"mode\":\"{name}\",\"streams\":{},\"size\":{},\"ns\":{},\"bytes\":{bytes},\
         \"bytes_per_second\":{rate},\"requests\":{},\"requests_per_second\":{requests},\"p50_ns\":{},\"p90_ns\":{},\
         \"p99_ns\":{},\"max_ns\":{},\"rx_packets\":{},\"tx_packets\":{},\"interrupts\":{},\"notifications\":{}}}",
        options.streams,
        options.size,
        outcome.nanoseconds,
        outcome.requests,
        percentile(50),
        percentile(90),
        percentile(99),
        outcome.latency.max(),
        counters.rx_packets,
        counters.tx_packets,
        counters.interrupts,
        counters.notifications,
    );
}
