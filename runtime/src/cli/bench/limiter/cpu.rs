//! CPU time: `cpu.max` of VMs that compute, that sleep in between, and that mostly sleep; alone and beside others that
//! want every CPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringlet::{LimitsConfig, Runtime, VmConfig, VmMetrics};
use ringlet_metrics::ExitKind;

use super::super::launched::{Launched, executor, settle};
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::super::target::{Limit, Quantity, Target};
use super::super::undisturbed::Undisturbed;
use super::super::{CliResult, progress};
use super::floor::Quota;
use super::track::{Point, Track};

/// How often a VM is looked at: often enough to see every throttling, and rarely enough to be no neighbour.
const LOOK: Duration = Duration::from_micros(500);
/// A window that is not full after so many times as long is not going to be.
const PATIENCE: u32 = 3;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Periods of a window.
    periods: u32,
    /// All rows, or some.
    all: bool,
}

impl Effort {
    pub(super) const USUAL: Self = Self { periods: 100, all: true };
    pub(super) const QUICK: Self = Self { periods: 25, all: false };
}

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    Spinning,
    Bursty,
    MostlyHalted,
}

impl Guest {
    const ALL: [Self; 3] = [Self::Spinning, Self::Bursty, Self::MostlyHalted];

    fn id(self) -> &'static str {
        match self {
            Self::Spinning => "spinning",
            Self::Bursty => "bursty",
            Self::MostlyHalted => "halted",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Spinning => "computing",
            Self::Bursty => "computing 3 ms, sleeping 2 ms",
            Self::MostlyHalted => "computing 0.05 ms, sleeping 10 ms",
        }
    }

    /// For how many microseconds it computes and sleeps.
    fn turns(self) -> [&'static str; 2] {
        match self {
            Self::Spinning => ["1000", "0"],
            Self::Bursty => ["3000", "2000"],
            Self::MostlyHalted => ["50", "10000"],
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Row {
    guest: Guest,
    quota_ms: u32,
    period_ms: u32,
    vcpus: u32,
    contended: bool,
}

/// What came of it.
struct Seen {
    error: Option<f64>,
    overruns: Samples,
    /// A period.
    wakes: f64,
}

/// What is judged, of all rows together.
#[derive(Default)]
struct Judged {
    errors: Samples,
    contended_errors: Samples,
    /// Of VMs that are alone.
    overruns: Samples,
    /// Of threads without a VM, as often and with the same quotas.
    floor: Samples,
    wakes: Samples,
}

/// Quota and period in milliseconds. Together with the number of vCPUs: what is more than these can use is left out.
const LIMITS: [(u32, u32); 6] = [(5, 20), (10, 100), (20, 100), (50, 100), (150, 100), (200, 100)];

/// The rows, in the order of their headings.
fn rows(effort: Effort, cpus: u32) -> Vec<Row> {
    let mut rows = Vec::new();
    for contended in [false, true] {
        for guest in Guest::ALL {
            for (quota_ms, period_ms) in LIMITS {
                for vcpus in [1, 2] {
                    let row = Row { guest, quota_ms, period_ms, vcpus, contended };
                    if row.is_possible(cpus) && (effort.all || row.is_quick()) {
                        rows.push(row);
                    }
                }
            }
        }
    }
    rows
}

impl Row {
    /// Whether the guest can use its quota up, in its part of the CPUs.
    fn is_possible(self, cpus: u32) -> bool {
        let Self { guest, quota_ms, period_ms, vcpus, contended } = self;
        let whole = period_ms * vcpus.min(cpus);
        match guest {
            // Beside one that computes on each CPU, half of them; and some to spare.
            Guest::Spinning if contended => quota_ms * 3 <= whole,
            // On two CPUs, 200/100 is all that there is.
            Guest::Spinning => quota_ms < whole || quota_ms == 2 * period_ms && vcpus == 2,
            Guest::Bursty => !contended && quota_ms * 5 <= whole * 2,
            Guest::MostlyHalted => !contended && quota_ms <= period_ms / 2,
        }
    }

    fn is_quick(self) -> bool {
        matches!((self.quota_ms, self.period_ms), (5, 20) | (20, 100))
    }

    /// Whether what it gets is compared with the target: not where the quota is all that there is.
    fn is_judged(self, cpus: u32) -> bool {
        self.quota_ms < self.period_ms * self.vcpus.min(cpus)
    }

    fn id(self) -> String {
        let Self { guest, quota_ms, period_ms, vcpus, contended } = self;
        let company = if contended { "contended" } else { "alone" };
        format!("limiter.cpu.{}.{company}.{quota_ms}_{period_ms}.{vcpus}", guest.id())
    }

    fn group(self) -> String {
        let company = if self.contended { ", beside one that computes on each CPU" } else { "" };
        format!("CPU, {}{company} …", self.guest.words())
    }

    fn name(self) -> String {
        let Self { quota_ms, period_ms, vcpus, .. } = self;
        format!("{quota_ms}/{period_ms} ms, {vcpus} vCPU{}", if vcpus == 1 { "" } else { "s" })
    }

    /// Whether its overruns are judged, and compared with those of threads without a VM.
    fn has_floor(self) -> bool {
        self.guest != Guest::MostlyHalted && !self.contended
    }

    /// The same for threads without a VM.
    fn floor(self) -> Quota {
        let millis = |millis: u32| Duration::from_millis(millis.into());
        let Self { quota_ms, period_ms, vcpus: threads, .. } = self;
        Quota { quota: millis(quota_ms), period: millis(period_ms), threads }
    }

    fn config(self) -> VmConfig {
        let limits = LimitsConfig::default()
            .cpu_max(u64::from(self.quota_ms) * 1000, u64::from(self.period_ms) * 1000);
        VmConfig::new("burst").memory_mib(16).vcpus(self.vcpus).args(self.guest.turns()).limits(limits)
    }

    fn measure(self, runtime: &Runtime, effort: Effort) -> CliResult<Seen> {
        let launched = Launched::new(runtime, &self.config())?;
        launched.until_first_byte()?;
        let seen = if self.contended {
            beside_others(|| self.watch(launched.vm.metrics(), effort))
        } else {
            self.watch(launched.vm.metrics(), effort)
        };
        executor()?.block_on(launched.vm.stop());
        settle(runtime);
        Ok(seen)
    }

    /// Looks at the VM until the window is full.
    fn watch(self, metrics: &VmMetrics, effort: Effort) -> Seen {
        let period = Duration::from_millis(self.period_ms.into());
        // Start and first periods are not what is measured.
        thread::sleep(period * 3);
        // A timer of CPU time fires while the guest runs.
        let wakes = || metrics.exits.get(ExitKind::Interrupted).saturating_sub(metrics.cpu_timer_exits.get());
        let (begun, wakes_before, mut track) = (Instant::now(), wakes(), Track::default());
        let mut counted = metrics.cpu_throttled_periods.get();
        let window = period * effort.periods;
        while !(begun.elapsed() >= window && enough(&track, effort) || begun.elapsed() >= window * PATIENCE) {
            thread::sleep(LOOK);
            let now = metrics.cpu_throttled_periods.get();
            if now > counted {
                counted = now;
                track.look(point(metrics));
            }
            // Nobody is throttled who does not want more.
            if self.guest == Guest::MostlyHalted && begun.elapsed() >= window {
                break;
            }
        }
        // A window touches one period more than it is long.
        let periods = (begun.elapsed().as_secs_f64() / period.as_secs_f64()).floor() + 1.0;
        Seen {
            error: track.error(u64::from(self.quota_ms) * 1_000_000),
            overruns: track.overruns().into_iter().map(|nanos| nanos as f64 / 1e9).collect(),
            wakes: (wakes() - wakes_before) as f64 / periods,
        }
    }

    fn add_figures(self, seen: &Seen, report: &mut Report) {
        let (id, group, name) = (self.id(), self.group(), self.name());
        let one = |value: Option<f64>| value.into_iter().collect::<Samples>();
        if self.guest == Guest::MostlyHalted {
            let (id, name) = (format!("{id}.wakes"), format!("{name}: brought out, a period"));
            report.add(Figure::new(id, group, name, Unit::Ratio, &one(Some(seen.wakes))));
            return;
        }
        let error = format!("{name}: obtained, more than asked");
        report.add(Figure::new(format!("{id}.error"), group.clone(), error, Unit::Share, &one(seen.error)));
        let overrun = format!("{name}: overrun");
        let overrun_id = format!("{id}.overrun");
        report.add(Figure::new(&overrun_id, group.clone(), &overrun, Unit::Seconds, &seen.overruns));
        let (overrun, overrun_id) = (format!("{overrun}, p99"), format!("{overrun_id}.p99"));
        report.add(Figure::new(overrun_id, group.clone(), overrun, Unit::Seconds, &one(seen.overruns.p99())));
        let exits = format!("{name}: brought out, a period");
        report.add(Figure::new(format!("{id}.exits"), group, exits, Unit::Ratio, &one(Some(seen.wakes))));
    }
}

fn enough(track: &Track, effort: Effort) -> bool {
    track.periods() >= u64::from(effort.periods)
}

/// The VM's counters now.
fn point(metrics: &VmMetrics) -> Point {
    let threads: u64 = metrics.vcpu_cpu_nanos().iter().map(|(_, nanos)| nanos).sum();
    Point {
        periods: metrics.cpu_periods.get(),
        throttled: metrics.cpu_throttled_periods.get(),
        used: threads + metrics.shard_busy_nanos.get(),
        overrun: metrics.cpu_overrun_nanos.get(),
    }
}

/// Does `measure` beside a thread for each CPU that never stops computing.
fn beside_others<T>(measure: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..cpus() {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let measured = measure();
        done.store(true, Ordering::Relaxed);
        measured
    })
}

fn cpus() -> u32 {
    thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// Measures all rows.
pub(super) fn measure(
    runtime: &Runtime,
    effort: Effort,
    undisturbed: &mut Undisturbed,
    report: &mut Report,
) -> CliResult<()> {
    let mut judged = Judged::default();
    let cpus = cpus();
    for row in rows(effort, cpus) {
        progress(&format!("cpu.max {} {}", row.name(), row.id()));
        let seen = undisturbed.measure(|| row.measure(runtime, effort))?;
        row.add_figures(&seen, report);
        judged.take(row, seen, cpus);
        if row.is_judged(cpus) && row.has_floor() {
            // Beside each row, so that both meet the same moods of the machine.
            judged.floor.append(undisturbed.measure(|| Ok(row.floor().overruns(effort.periods)))?);
        }
    }
    judged.add_figures(report);
    report.note("obtained: from one throttling to another, of as many quotas as periods passed between them");
    report.note("brought out: by timers of real time and other vCPUs; each wakes a guest that is halted at that moment");
    if cpus <= 2 {
        report.note("200/100 ms with 2 vCPUs is all that two CPUs have: whatever else runs is missing, so it is not judged");
    }
    Ok(())
}

impl Judged {
    fn take(&mut self, row: Row, seen: Seen, cpus: u32) {
        match row.guest {
            Guest::MostlyHalted => self.wakes.push(seen.wakes),
            _ if !row.is_judged(cpus) => {}
            _ => {
                let errors = if row.contended { &mut self.contended_errors } else { &mut self.errors };
                // A VM that was never throttled got nothing of what it should have been held to.
                errors.push(seen.error.map_or(1.0, f64::abs));
                if row.has_floor() {
                    self.overruns.append(seen.overruns);
                }
            }
        }
    }

    fn add_figures(&self, report: &mut Report) {
        let one = |value: Option<f64>| value.into_iter().collect::<Samples>();
        let worst = |samples: &Samples| one(samples.summary().map(|all| all.max));
        let (overrun, floor) = (self.overruns.p99(), self.floor.p99());
        let beyond = overrun.zip(floor).map(|(overrun, floor)| (overrun - floor).max(0.0));
        for (id, name, unit, samples) in [
            ("limiter.cpu.error", "error, the worst", Unit::Share, &worst(&self.errors)),
            (
                "limiter.cpu.error.contended",
                "error beside others, the worst",
                Unit::Share,
                &worst(&self.contended_errors),
            ),
            ("limiter.cpu.overrun.all", "overrun", Unit::Seconds, &self.overruns),
            ("limiter.cpu.overrun.floor", "overrun of threads without a VM", Unit::Seconds, &self.floor),
            ("limiter.cpu.overrun", "overrun, p99", Unit::Seconds, &one(overrun)),
            (
                "limiter.cpu.overrun.floor.p99",
                "overrun of threads without a VM, p99",
                Unit::Seconds,
                &one(floor),
            ),
            (
                "limiter.cpu.overrun.beyond",
                "overrun, p99, beyond that of threads",
                Unit::Seconds,
                &one(beyond),
            ),
            (
                "limiter.cpu.wakes",
                "wake-ups of a halted guest, a period, the most",
                Unit::Ratio,
                &worst(&self.wakes),
            ),
        ] {
            report.add(Figure::new(id, "CPU, all of these together", name, unit, samples));
        }
    }
}

const fn target(figure: &'static str, what: &'static str, most: f64) -> Target {
    Target { id: figure, what, figure, quantity: Quantity::Median, limit: Limit::AtMost(most) }
}

/// What the figures should be.
pub(super) const TARGETS: [Target; 4] = [
    target("limiter.cpu.error", "CPU time, by how much it is not what was asked", 0.01),
    target("limiter.cpu.error.contended", "the same beside others that want every CPU", 0.01),
    target("limiter.cpu.overrun.beyond", "how late a VM is stopped, p99, beyond threads without one", 0.0005),
    target("limiter.cpu.wakes", "wake-ups of a halted guest, a period", 1.0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_an_id_of_its_own_and_can_be_used_up() {
        let rows = rows(Effort::USUAL, 2);
        let mut ids: Vec<_> = rows.iter().map(|row| row.id()).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), rows.len());
        assert!(rows.iter().any(|row| row.quota_ms == 200) && rows.iter().any(|row| row.contended));
        let quick = super::rows(Effort::QUICK, 2);
        assert!(!quick.is_empty() && quick.len() < rows.len());
    }
}
