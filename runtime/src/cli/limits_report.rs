//! `--limits-report`: what each limit of a VM asked for, what came of it, and how long requests waited.
//!
//! Owns the words. The numbers are those that the metrics expose.

use std::fmt::Write;
use std::time::Duration;

use ringlet::{CpuMax, VSOCK_ID, Vm, VmConfig};
use ringlet_metrics::{BufferReading, LimiterReading, LimiterTokens};

/// The level of all network interfaces.
const NETS: &str = "vm.net";

/// The report of a VM that has run for `time`, a line for each limit.
pub(super) fn of(vm: &Vm, config: &VmConfig, time: Duration) -> String {
    let metrics = vm.metrics();
    let mut text = format!("limits over {:.3} s:\n", time.as_secs_f64());
    let limits = &config.ringlet.limits;
    if let Some(max) = limits.cpu.max {
        let used: u64 = metrics.vcpu_cpu_nanos().iter().map(|(_, nanos)| nanos).sum();
        let used = Duration::from_nanos(used + metrics.shard_busy_nanos.get());
        let throttled = Duration::from_nanos(metrics.cpu_throttled_nanos.get());
        let periods = (metrics.cpu_throttled_periods.get(), metrics.cpu_periods.get());
        text.push_str(&cpu(max, used, periods, throttled, time));
    }
    let limiters = metrics.limiters();
    let limited: Vec<_> = limiters.iter().filter(|(_, reading)| !reading.tokens.is_empty()).collect();
    for (name, reading) in &limited {
        let line = limiter(name, reading, time);
        text.push_str(&if has_directions(name, config) { in_words_of_networks(&line) } else { line });
    }
    if let (Some(max), Some(reading)) = (limits.buffers.max, metrics.buffers()) {
        text.push_str(&buffers(max, &reading));
    }
    if limited.is_empty() && limits.cpu.max.is_none() && limits.buffers.max.is_none() {
        text.push_str("  none\n");
    }
    text
}

/// Whether what a level limits is received and sent, in packets.
fn has_directions(level: &str, config: &VmConfig) -> bool {
    let is_interface = || config.network_interfaces.iter().any(|it| it.iface_id == level);
    level == NETS || level == VSOCK_ID || is_interface()
}

fn cpu(
    max: CpuMax,
    used: Duration,
    (throttled, all): (u64, u64),
    waited: Duration,
    time: Duration,
) -> String {
    let CpuMax { quota_us, period_us } = max;
    let share = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
    format!(
        "  cpu.max: asked {:.1} ms of each {:.1} ms ({:.1} % of a CPU); obtained {:.3} s ({:.1} %); throttled in \
         {throttled} of {all} periods, for {:.3} s\n",
        quota_us as f64 / 1e3,
        period_us as f64 / 1e3,
        share(quota_us as f64, period_us as f64),
        used.as_secs_f64(),
        share(used.as_secs_f64(), time.as_secs_f64()),
        waited.as_secs_f64(),
    )
}

fn buffers(max: u64, reading: &BufferReading) -> String {
    let BufferReading { peak, held_back, .. } = reading;
    format!(
        "  buffers.max: asked at most {max} bytes; {peak} at once; {held_back} requests waited for memory\n"
    )
}

fn limiter(name: &str, reading: &LimiterReading, time: Duration) -> String {
    let LimiterReading { operations, bytes, throttled, throttled_nanos, ref tokens, .. } = *reading;
    let asked: Vec<_> = tokens.iter().map(rate).collect();
    let seconds = time.as_secs_f64().max(1e-9);
    let mut line = format!("  {name}: asked {}; ", asked.join(", "));
    let _ = writeln!(
        line,
        "obtained {operations} requests ({:.1}/s), {bytes} bytes ({:.0}/s); {throttled} waited, {:.3} s in all",
        operations as f64 / seconds,
        bytes as f64 / seconds,
        Duration::from_nanos(throttled_nanos).as_secs_f64(),
    );
    line
}

/// What is read is received, what is written is sent, and each request is a packet.
fn in_words_of_networks(line: &str) -> String {
    [
        ("read operations", "rx packets"),
        ("write operations", "tx packets"),
        ("read ", "rx "),
        ("write ", "tx "),
    ]
    .into_iter()
    .fold(line.replace("requests", "packets"), |line, (word, ours)| line.replace(word, ours))
}

/// What a bucket grants in the long run.
fn rate(tokens: &LimiterTokens) -> String {
    let per_second = tokens.size as f64 * 1e9 / tokens.refill_nanos.max(1) as f64;
    format!("{per_second:.1} {}/s", tokens.meter.replace('_', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_sockets_receive_and_send() {
        let interface = ringlet::NetworkInterface::tap("eth0", "tap0");
        let config = VmConfig::new("http").network_interface(interface);
        for (level, expected) in
            [("vm.net", true), ("eth0", true), ("vsock0", true), ("vm.disk", false), ("rng0", false)]
        {
            assert_eq!(has_directions(level, &config), expected, "{level}");
        }
    }

    #[test]
    fn a_limit_is_told_with_what_came_of_it() {
        let tokens = LimiterTokens { meter: "read_bytes", left: 5, size: 1000, refill_nanos: 100_000_000 };
        let reading = LimiterReading {
            operations: 20,
            bytes: 20_000,
            throttled: 3,
            throttled_nanos: 1_500_000_000,
            waiting: 0,
            tokens: vec![tokens],
        };
        assert_eq!(
            limiter("disk0", &reading, Duration::from_secs(2)),
            "  disk0: asked 10000.0 read bytes/s; obtained 20 requests (10.0/s), 20000 bytes (10000/s); 3 waited, \
             1.500 s in all\n"
        );
        assert_eq!(
            in_words_of_networks(
                "  net0: asked 1.0 read bytes/s, 2.0 write operations/s; obtained 20 requests\n"
            ),
            "  net0: asked 1.0 rx bytes/s, 2.0 tx packets/s; obtained 20 packets\n"
        );
        let reading = BufferReading { max: 4096, used: 0, peak: 4000, held_back: 7 };
        assert_eq!(
            buffers(4096, &reading),
            "  buffers.max: asked at most 4096 bytes; 4000 at once; 7 requests waited for memory\n"
        );
        let max = CpuMax { quota_us: 50_000, period_us: 200_000 };
        assert_eq!(
            cpu(max, Duration::from_millis(500), (9, 10), Duration::from_secs(1), Duration::from_secs(2)),
            "  cpu.max: asked 50.0 ms of each 200.0 ms (25.0 % of a CPU); obtained 0.500 s (25.0 %); throttled in 9 \
             of 10 periods, for 1.000 s\n"
        );
    }
}
