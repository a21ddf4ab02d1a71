//! What a guest gets of what its interface's limits allow, by the counters of its tap. The guest is kept busy all the time.

use std::fs;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use ringlet::{Bucket, NetworkInterface, RateLimiter, Runtime, RuntimeOptions, VmConfig};

use super::super::launched::Launched;
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::client::Scenario;
use super::contender::IMAGE;
use super::peer::READY;
use super::place::make_tap;
use crate::cli::CliResult;

const TAP: &str = "limited";
const HOST: &str = "10.78.0.1/24";
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
const GROUP: &str = "Limits, what is obtained of what was asked";
/// What is asked for: bytes and packets a second.
const BYTES: u64 = 32 << 20;
const PACKETS: u64 = 10_000;
/// Milliseconds in which a bucket fills.
const REFILL: u64 = 50;
/// What a full bucket gives at first is over after this.
const SETTLING: Duration = Duration::from_millis(500);
/// A guest is ready after this, on any machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A limit, and what keeps it busy.
#[derive(Debug, Clone, Copy)]
struct Row {
    id: &'static str,
    name: &'static str,
    scenario: Scenario,
    counter: Counter,
}

/// A counter of the tap, which sees what the guest receives as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counter {
    BytesIn,
    PacketsIn,
    BytesOut,
    PacketsOut,
}

const ROWS: [Row; 4] = [
    Row {
        id: "rx.bytes",
        name: "bytes to the guest",
        scenario: Scenario::StreamIn,
        counter: Counter::BytesIn,
    },
    Row {
        id: "rx.packets",
        name: "packets to the guest",
        scenario: Scenario::PacketsIn,
        counter: Counter::PacketsIn,
    },
    Row {
        id: "tx.bytes",
        name: "bytes from the guest",
        scenario: Scenario::StreamOut,
        counter: Counter::BytesOut,
    },
    Row {
        id: "tx.packets",
        name: "packets from the guest",
        scenario: Scenario::PacketsOut,
        counter: Counter::PacketsOut,
    },
];

impl Counter {
    /// A second, as is asked for.
    fn asked(self) -> u64 {
        match self {
            Self::BytesIn | Self::BytesOut => BYTES,
            Self::PacketsIn | Self::PacketsOut => PACKETS,
        }
    }

    /// The limits of what is received and of what is sent.
    fn limiters(self) -> [RateLimiter; 2] {
        let bucket = Bucket { size: self.asked() * REFILL / 1000, one_time_burst: None, refill_time: REFILL };
        let none = RateLimiter { bandwidth: None, ops: None };
        let limited = match self {
            Self::BytesIn | Self::BytesOut => RateLimiter { bandwidth: Some(bucket), ops: None },
            Self::PacketsIn | Self::PacketsOut => RateLimiter { bandwidth: None, ops: Some(bucket) },
        };
        match self {
            Self::BytesIn | Self::PacketsIn => [limited, none],
            Self::BytesOut | Self::PacketsOut => [none, limited],
        }
    }

    /// What the guest is told besides. Segments whose checksums it leaves to the device may come to the tap as one packet, and
    /// their headers then are not counted there.
    fn word(self) -> Option<&'static str> {
        (self == Self::BytesOut).then_some("offloads=off")
    }

    /// Its column in `/proc/net/dev`, behind the name.
    fn column(self) -> usize {
        match self {
            Self::BytesOut => 0,
            Self::PacketsOut => 1,
            Self::BytesIn => 8,
            Self::PacketsIn => 9,
        }
    }

    fn read(self) -> CliResult<(u64, Instant)> {
        let text = fs::read_to_string("/proc/self/net/dev")?;
        let at = Instant::now();
        let count = find(&text, self.column()).ok_or("the tap is not in /proc/self/net/dev")?;
        Ok((count, at))
    }
}

fn find(text: &str, column: usize) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(TAP)?.strip_prefix(':'))?;
    line.split_whitespace().nth(column)?.parse().ok()
}

/// Measures all limits.
pub(super) fn measure(window: Duration, report: &mut Report) -> CliResult<()> {
    make_tap(TAP, HOST)?;
    let mut worst = 0.0_f64;
    for row in ROWS {
        super::super::progress(&format!("a limit of {}", row.name));
        let obtained = obtained(row, window)?;
        let error = obtained / row.counter.asked() as f64 - 1.0;
        worst = worst.max(error.abs());
        let unit = if row.counter.asked() == BYTES { Unit::BytesPerSecond } else { Unit::PerSecond };
        let samples = |value: f64| [value].into_iter().collect::<Samples>();
        let id = |what| format!("net.limiter.{}.{what}", row.id);
        report.add(Figure::new(id("rate"), GROUP, row.name, unit, &samples(obtained)));
        report.add(Figure::new(
            id("error"),
            GROUP,
            format!("{}: error", row.name),
            Unit::Share,
            &samples(error),
        ));
    }
    let samples = [worst].into_iter().collect::<Samples>();
    report.add(Figure::new("net.limiter.error", GROUP, "the worst error", Unit::Share, &samples));
    report.note(format!(
        "limits are {} MiB/s or {PACKETS} packets a second, watched for {window:?} after the first burst",
        BYTES >> 20
    ));
    Ok(())
}

/// What a guest gets a second.
fn obtained(row: Row, window: Duration) -> CliResult<f64> {
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let [received, sent] = row.counter.limiters();
    let interface = NetworkInterface::tap("net0", TAP).rate_limiters(received, sent);
    let config = VmConfig::new(IMAGE).network_interface(interface);
    let address = format!("ip={GUEST}/24");
    let config = config.args(["serve", &address].into_iter().chain(row.counter.word()));
    let guest = Launched::new(&runtime, &config)?;
    let begun = Instant::now();
    while !String::from_utf8_lossy(&guest.console.contents()).contains(READY) {
        if begun.elapsed() > PATIENCE {
            return Err("the guest does not come up".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    let busy = 3 * SETTLING + window;
    let traffic =
        thread::Builder::new().name("traffic".to_owned()).spawn(move || row.scenario.run(GUEST, busy))?;
    thread::sleep(SETTLING);
    let (first, begun) = at_the_limit(&guest, row.counter)?;
    thread::sleep(window);
    let (last, ended) = at_the_limit(&guest, row.counter)?;
    traffic.join().map_err(|_| "the thread of the traffic panicked")??;
    super::super::launched::executor()?.block_on(guest.vm.stop());
    Ok(last.saturating_sub(first) as f64 / ended.saturating_duration_since(begun).as_secs_f64())
}

/// The counter when a packet has just had to wait: the bucket is empty then, and what it held before does not count. Never,
/// if the limit holds nothing back; then the rate tells.
fn at_the_limit(guest: &Launched, counter: Counter) -> CliResult<(u64, Instant)> {
    let throttled =
        || guest.vm.metrics().limiters().iter().map(|(_, reading)| reading.throttled).sum::<u64>();
    let (before, begun) = (throttled(), Instant::now());
    while throttled() == before && begun.elapsed() < SETTLING {
        thread::sleep(Duration::from_micros(50));
    }
    counter.read()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
limited:   1000      10    0    0    0     0          0         0     2000      20    0    3    0     0       0          0
";

    #[test]
    fn counters_are_those_of_the_tap() {
        let of = |counter: Counter| find(TEXT, counter.column());
        let all = [Counter::BytesOut, Counter::PacketsOut, Counter::BytesIn, Counter::PacketsIn].map(of);
        assert_eq!(all, [Some(1000), Some(10), Some(2000), Some(20)]);
        assert_eq!(find("lo: 1 2\n", 0), None);
    }
}
