//! What was measured of each contender in one scenario, and the figures that it makes.

use std::time::Duration;

use ringlet::EngineKind;

use super::super::blkbench::Pattern;
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::contender::{Contender, Run};
use crate::cli::CliResult;

/// Requests a second that a contender is believed to make at first.
const GUESS: [f64; 3] = [4_000.0, 16_000.0, 1_500.0];

/// A pattern, through the page cache or past it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scenario {
    pub(super) direct: bool,
    pub(super) pattern: Pattern,
}

impl Scenario {
    /// Part of the figures' identifiers: `direct.randread.32`; sequential ones have no depth, `buffered.read`.
    fn id(self) -> String {
        let Pattern { mode, depth, .. } = self.pattern;
        let cache = if self.direct { "direct" } else { "buffered" };
        if mode.is_random() { format!("{cache}.{mode}.{depth}") } else { format!("{cache}.{mode}") }
    }

    /// In words: `direct, randread, 4 KiB, depth 32`.
    pub(super) fn name(self) -> String {
        let Pattern { mode, depth, block_size } = self.pattern;
        let cache = if self.direct { "direct" } else { "buffered" };
        format!("{cache}, {mode}, {} KiB, depth {depth}", block_size >> 10)
    }

    fn guess(self) -> f64 {
        let [alone, many, large] = GUESS;
        match self.pattern {
            Pattern { mode, .. } if !mode.is_random() => large,
            Pattern { depth: 1, .. } => alone,
            Pattern { .. } => many,
        }
    }
}

/// A contender and what was measured of it.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) who: Contender,
    /// Why it does not work here.
    pub(super) why_not: Option<String>,
    /// CPU time of starting and ending.
    pub(super) start: Samples,
    /// Requests a second, as far as is known.
    rate: f64,
    /// One for each round that counts.
    runs: Vec<Run>,
}

impl Lane {
    pub(super) fn new(who: Contender, why_not: Option<String>) -> Self {
        Self { who, why_not, start: Samples::default(), rate: 1.0, runs: Vec::new() }
    }

    /// Forgets the last scenario.
    pub(super) fn begin(&mut self, scenario: Scenario) {
        self.rate = scenario.guess();
        self.runs.clear();
    }

    /// How many requests will keep it busy for about `time`.
    pub(super) fn requests(&self, time: Duration) -> u64 {
        let least = 100.0;
        (self.rate * time.as_secs_f64()).clamp(least, 1e9) as u64
    }

    /// A run, if there was one. Only QEMU may fail: it is not ours.
    pub(super) fn accept(&mut self, run: Result<Run, String>) -> CliResult<Option<Run>> {
        match run {
            Ok(run) => Ok(Some(run)),
            Err(why_not) if self.who == Contender::Qemu => {
                self.why_not = Some(why_not);
                Ok(None)
            }
            Err(why_not) => Err(why_not.into()),
        }
    }

    pub(super) fn add(&mut self, run: Run, warm_up: bool) {
        self.rate = run.result.iops();
        if !warm_up {
            self.runs.push(run);
        }
    }

    /// CPU time of each request of a run, in seconds: without starting and ending, and never below 0.
    fn cpu_of_each(&self, run: &Run) -> f64 {
        let start = self.start.summary().map_or(0.0, |start| start.median);
        (run.cpu.as_secs_f64() - start).max(0.0) / run.result.requests() as f64
    }

    fn figure(&self, scenario: Scenario, quantity: Quantity) -> Figure {
        let (id, name) = (quantity.id(scenario, self.who), quantity.name(self.who));
        let (group, unit) = (scenario.name(), quantity.unit());
        if let Some(why_not) = &self.why_not {
            return Figure::missing(id, group, name, unit, why_not);
        }
        let samples = self.runs.iter().map(|run| quantity.of(self, run, scenario)).collect();
        Figure::new(id, group, name, unit, &samples)
    }
}

/// What is said of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Iops,
    Throughput,
    Cpu,
    P50,
    P99,
}

impl Quantity {
    fn all(scenario: Scenario) -> [Self; 4] {
        let speed = if scenario.pattern.mode.is_random() { Self::Iops } else { Self::Throughput };
        [speed, Self::Cpu, Self::P50, Self::P99]
    }

    fn id(self, scenario: Scenario, who: Contender) -> String {
        let what = match self {
            Self::Iops => "iops",
            Self::Throughput => "throughput",
            Self::Cpu => "cpu",
            Self::P50 => "p50",
            Self::P99 => "p99",
        };
        format!("block.{}.{}.{what}", scenario.id(), who.id())
    }

    fn name(self, who: Contender) -> String {
        let who = who.name();
        match self {
            Self::Iops => format!("{who}: requests"),
            Self::Throughput => format!("{who}: throughput"),
            Self::Cpu => format!("{who}: CPU a request"),
            Self::P50 => format!("{who}: latency, p50"),
            Self::P99 => format!("{who}: latency, p99"),
        }
    }

    fn unit(self) -> Unit {
        match self {
            Self::Iops => Unit::PerSecond,
            Self::Throughput => Unit::BytesPerSecond,
            Self::Cpu | Self::P50 | Self::P99 => Unit::Seconds,
        }
    }

    fn of(self, lane: &Lane, run: &Run, scenario: Scenario) -> f64 {
        let seconds = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64();
        match self {
            Self::Iops => run.result.iops(),
            Self::Throughput => run.result.iops() * f64::from(scenario.pattern.block_size),
            Self::Cpu => lane.cpu_of_each(run),
            Self::P50 => seconds(run.result.p50_ns),
            Self::P99 => seconds(run.result.p99_ns),
        }
    }
}

/// Adds all figures of a scenario.
pub(super) fn add_figures(scenario: Scenario, lanes: &[Lane], report: &mut Report) {
    for quantity in Quantity::all(scenario) {
        for lane in lanes {
            let figure = lane.figure(scenario, quantity);
            let ceiling = lanes.iter().find(|other| other.who == lane.who.ceiling() && other.who != lane.who);
            report.add(match ceiling {
                Some(ceiling) => figure.compared_with(&ceiling.figure(scenario, quantity), "host loop"),
                None => figure,
            });
        }
    }
    let [uring, epoll] = [EngineKind::Uring, EngineKind::Epoll];
    for (who, other, id) in [
        (Contender::Ringlet(uring), Contender::Host(uring), "uring.of_host"),
        (Contender::Ringlet(epoll), Contender::Host(epoll), "epoll.of_host"),
        (Contender::Ringlet(uring), Contender::Qemu, "uring.of_qemu"),
        (Contender::Ringlet(epoll), Contender::Qemu, "epoll.of_qemu"),
    ] {
        let find = |who| lanes.iter().find(|lane| lane.who == who);
        if let (Some(own), Some(other)) = (find(who), find(other)) {
            report.add(ratio(scenario, own, other, id));
        }
    }
}

/// How fast one is, of how fast the other is, round by round.
fn ratio(scenario: Scenario, own: &Lane, other: &Lane, id: &str) -> Figure {
    let id = format!("block.{}.ringlet.{id}", scenario.id());
    let name = format!("{}, of {}", own.who.name(), other.who.name());
    if let Some(why_not) = own.why_not.as_ref().or(other.why_not.as_ref()) {
        return Figure::missing(id, scenario.name(), name, Unit::Ratio, why_not);
    }
    let rounds = own.runs.iter().zip(&other.runs);
    let samples = rounds.map(|(own, other)| own.result.iops() / other.result.iops()).collect();
    Figure::new(id, scenario.name(), name, Unit::Ratio, &samples)
}

/// Says of a scenario why there are no figures.
pub(super) fn add_missing(scenario: Scenario, why_not: &str, report: &mut Report) {
    let speed = |who| {
        let [speed, ..] = Quantity::all(scenario);
        let (id, name) = (speed.id(scenario, who), speed.name(who));
        Figure::missing(id, scenario.name(), name, speed.unit(), why_not)
    };
    Contender::ALL.into_iter().for_each(|who| report.add(speed(who)));
}

#[cfg(test)]
#[path = "lane_test.rs"]
mod tests;
