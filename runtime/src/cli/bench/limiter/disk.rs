//! Limits of one disk: what was asked against what was obtained.

use std::num::NonZero;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringlet::{EngineChoice, EngineKind, Runtime, RuntimeOptions};

use super::super::launched::{Launched, executor, settle};
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::super::target::{Limit, Quantity, Target};
use super::super::undisturbed::Undisturbed;
use super::super::{CliResult, progress};
use super::row::{DISK, Effort, Meter, Row};
use super::window::{Look, Obtained, Window};

/// Rows whose windows are longer are measured side by side.
const LONG: Duration = Duration::from_secs(3);
/// A window that is not full after so many times as long is not going to be.
const PATIENCE: u32 = 3;
/// Starting and emptying the bucket, at most.
const START: Duration = Duration::from_secs(10);

/// Looks at the limiter of a VM's disk; `None` before it has one.
pub(super) fn look(launched: &Launched, name: &str, begun: Instant) -> Option<Look> {
    let limiters = launched.vm.metrics().limiters();
    let (_, reading) = limiters.into_iter().find(|(limiter, _)| limiter == name)?;
    let (operations, bytes, throttled) = (reading.operations, reading.bytes, reading.throttled);
    Some(Look { at: begun.elapsed(), operations, bytes, throttled })
}

/// Measures rows side by side.
fn measure(rows: &[Row], effort: Effort, interval: Duration) -> CliResult<Vec<Option<Obtained>>> {
    let mut runtimes = Vec::new();
    for engine in [EngineKind::Uring, EngineKind::Epoll] {
        if rows.iter().any(|row| row.engine == engine) {
            runtimes.push((engine, runtime(engine, None)?));
        }
    }
    let of = |row: &Row| runtimes.iter().find(|(engine, _)| *engine == row.engine);
    let vms = rows.iter().filter_map(of).zip(rows);
    let vms = vms.map(|((_, runtime), row)| Launched::new(runtime, &row.config()));
    let vms: Vec<_> = vms.collect::<CliResult<_>>()?;
    let mut windows: Vec<_> = rows.iter().map(|row| (Window::default(), row.least(effort))).collect();
    let longest = rows.iter().map(|row| row.window(effort)).max().unwrap_or_default();
    let (begun, last) = (Instant::now(), longest * PATIENCE + START);
    while begun.elapsed() < last && windows.iter().any(|(window, least)| !window.is_full(*least)) {
        thread::sleep(interval);
        for (vm, (window, least)) in vms.iter().zip(&mut windows) {
            if let Some(look) = look(vm, DISK, begun).filter(|_| !window.is_full(*least)) {
                window.look(look, *least);
            }
        }
    }
    stop(vms)?;
    runtimes.iter().for_each(|(_, runtime)| settle(runtime));
    Ok(windows
        .into_iter()
        .map(|(window, least)| window.obtained().filter(|_| window.is_full(least)))
        .collect())
}

/// Ends VMs.
pub(super) fn stop(vms: Vec<Launched>) -> CliResult<()> {
    let executor = executor()?;
    vms.iter().for_each(|launched| drop(executor.block_on(launched.vm.stop())));
    Ok(())
}

/// A runtime on that engine, with so many event loops, or as many as there usually are.
pub(super) fn runtime(engine: EngineKind, shards: Option<NonZero<u32>>) -> CliResult<Runtime> {
    let engine = match engine {
        EngineKind::Uring => EngineChoice::Uring,
        EngineKind::Epoll => EngineChoice::Epoll,
    };
    Ok(Runtime::new(RuntimeOptions { engine, shards, ..RuntimeOptions::default() })?)
}

/// The engines that the host has, and why not io_uring.
pub(super) fn engines() -> (&'static [EngineKind], Option<String>) {
    match ringlet_io::probe_uring() {
        Ok(_) => (&[EngineKind::Uring, EngineKind::Epoll], None),
        Err(error) => (&[EngineKind::Epoll], Some(error.to_string())),
    }
}

/// A row and what came of it.
type Seen = (Row, Option<Obtained>);

/// The measurement of disks, under way.
pub(super) struct Disk {
    effort: Effort,
    rows: Vec<Row>,
    /// Those that last longest and ask for next to nothing.
    slowest: JoinHandle<Result<Vec<Seen>, String>>,
    why_not_uring: Option<String>,
}

impl Disk {
    /// Begins with what is measured beside everything else.
    pub(super) fn begin(effort: Effort) -> CliResult<Self> {
        let (engines, why_not_uring) = engines();
        let (slowest, rows): (Vec<_>, _) =
            Row::all(effort, engines).into_iter().partition(|row| row.refill_ms > 1000);
        let watch = move || {
            let seen = measure(&slowest, effort, Duration::from_millis(5));
            let seen = seen.map_err(|error| error.to_string())?;
            Ok(slowest.into_iter().zip(seen).collect())
        };
        let slowest = thread::Builder::new().name("slowest".to_owned()).spawn(watch)?;
        Ok(Self { effort, rows, slowest, why_not_uring })
    }

    /// Measures the rest.
    pub(super) fn measure(self, undisturbed: &mut Undisturbed, report: &mut Report) -> CliResult<()> {
        let Self { effort, rows, slowest, why_not_uring } = self;
        let (long, short): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.window(effort) > LONG);
        let mut all = Vec::new();
        for row in short {
            progress(&row.id());
            let seen = undisturbed.measure(|| measure(&[row], effort, Duration::from_micros(200)))?;
            all.extend(seen.into_iter().map(|seen| (row, seen)));
        }
        progress(&format!("{} limits of disks whose windows are long, side by side", long.len()));
        let seen = measure(&long, effort, Duration::from_millis(1))?;
        all.extend(long.into_iter().zip(seen));
        progress("limits with refills of more than 1 s, begun at first");
        all.extend(slowest.join().map_err(|_| "the thread of the slowest limits panicked")??);
        add_figures(all, report);
        if let Some(why_not) = why_not_uring {
            report.note(format!("limits of disks and tenants on io_uring are not measured: {why_not}"));
        }
        note(effort, report);
        Ok(())
    }
}

fn note(effort: Effort, report: &mut Report) {
    let Effort { refills: [usual, long], requests, .. } = effort;
    report.note("limits of disks: from the first admission seen after a request had to wait to a later one");
    if effort.is_quick() {
        report.note(format!(
            "--quick leaves out refills of 1 s and 10 s; windows hold {usual} refills and {requests} requests"
        ));
    } else {
        report.note(format!(
            "windows hold {usual} refills, {long} of those above 1 s, and {requests} requests at least"
        ));
    }
}

/// Adds the figures of all rows, in the order of their headings, and the worst of them.
fn add_figures(mut all: Vec<Seen>, report: &mut Report) {
    all.sort_by_key(|(row, _)| {
        (row.engine != EngineKind::Uring, row.meter != Meter::Operations, row.refill_ms)
    });
    let mut worst = 0.0_f64;
    for (row, obtained) in all {
        row.add_figures(obtained, report);
        // A limit that could not be measured held nothing back, or let nothing pass.
        worst = worst.max(obtained.map_or(1.0, |obtained| row.error(obtained).abs()));
    }
    let worst = [worst].into_iter().collect::<Samples>();
    let (id, name) = ("limiter.disk.error", "error");
    report.add(Figure::new(id, "Disks, the worst of these", name, Unit::Share, &worst));
}

/// What the figures should be.
pub(super) const TARGETS: [Target; 1] = [Target {
    id: "limiter.disk.error",
    what: "what a disk is given, by how much it is not what was asked",
    figure: "limiter.disk.error",
    quantity: Quantity::Median,
    limit: Limit::AtMost(0.01),
}];
