//! What is printed.

use ringlet_guest::net::Net;
use ringlet_guest::println;

use crate::histogram::Histogram;
use crate::options::Options;

/// What was measured; what a mode does not know is 0.
pub(crate) struct Outcome {
    /// Bytes of payload that arrived.
    pub(crate) bytes: u64,
    pub(crate) nanoseconds: u64,
    /// Of requests.
    pub(crate) latency: Histogram,
    pub(crate) requests: u64,
    /// Datagrams.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) late: u64,
}

impl Outcome {
    pub(crate) fn new() -> Self {
        Self {
            bytes: 0,
            nanoseconds: 0,
            latency: Histogram::new(),
            requests: 0,
            sent: 0,
            received: 0,
            late: 0,
        }
    }

    fn per_second(&self, count: u64) -> u64 {
        (u128::from(count) * 1_000_000_000 / u128::from(self.nanoseconds.max(1))) as u64
    }
}

/// For people and, in one line of JSON, for programs.
pub(crate) fn print(net: &Net, options: &Options, outcome: &Outcome) {
    let name = options.mode.name();
    let lost = outcome.sent.saturating_sub(outcome.received);
    let bits = outcome.per_second(outcome.bytes).saturating_mul(8);
    let requests = outcome.per_second(outcome.requests);
    let percentile = |percent| outcome.latency.percentile(percent);
    println!("netbench: {name}: {}.{:03} Gbit/s", bits / 1_000_000_000, bits / 1_000_000 % 1000);
    if outcome.requests > 0 {
        let (p50, p99) = (percentile(50) / 1000, percentile(99) / 1000);
        println!("netbench: {requests} requests/s; latency p50 {p50} us, p99 {p99} us");
    }
    if options.mode.is_udp() {
        println!("netbench: {} datagrams sent, {lost} lost, {} late", outcome.sent, outcome.late);
    }
    let counters = net.counters();
    println!(
        "netbench-result {{\"ok\":true,\"mode\":\"{name}\",\"size\":{},\"streams\":{},\"ns\":{},\"bytes\":{},\
         \"bits_per_second\":{bits},\"requests\":{},\"requests_per_second\":{requests},\"p50_ns\":{},\"p90_ns\":{},\
         \"p99_ns\":{},\"max_ns\":{},\"datagrams\":{},\"lost\":{lost},\"late\":{},\"rx_packets\":{},\
         \"tx_packets\":{},\"interrupts\":{},\"notifications\":{}}}",
        options.size,
        options.streams,
        outcome.nanoseconds,
        outcome.bytes,
        outcome.requests,
        percentile(50),
        percentile(90),
        percentile(99),
        outcome.latency.max(),
        outcome.sent,
        outcome.late,
        counters.rx_packets,
        counters.tx_packets,
        counters.interrupts,
        counters.notifications,
    );
}
