//! Limits of one disk: what was asked against what was obtained.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringlet::{Bucket, Drive, EngineChoice, EngineKind, RateLimiter, Runtime, RuntimeOptions, VmConfig};

use super::super::launched::{Launched, executor, settle};
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::super::target::{Limit, Quantity, Target};
use super::super::{CliResult, progress};
use super::window::{Least, Look, Obtained, Window};

/// The disk, as its limiter is called.
pub(super) const DISK: &str = "disk0";
/// Bytes of it.
const DISK_SIZE: u64 = 64 << 20;
/// Bytes of a request.
const BLOCK: u64 = 4 << 10;
/// Bytes of one that is larger than its bucket: no multiple of that.
const LARGE_BLOCK: u64 = 10 << 10;
/// Requests that a guest has under way: as many as it can, so that it is not what holds them back.
const DEPTH: &str = "128";
/// Time that no guest needs, in seconds.
const FOREVER: &str = "100000";
/// Rows whose windows are longer are measured side by side.
const LONG: Duration = Duration::from_secs(3);
/// A window that is not full after so many times as long is not going to be.
const PATIENCE: u32 = 3;
/// Starting and emptying the bucket, at most.
const START: Duration = Duration::from_secs(10);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Refills of a window, of up to 1 s and above.
    refills: [u32; 2],
    requests: u64,
    /// The shortest window.
    shortest: Duration,
    /// The longest refill time, in milliseconds.
    longest_refill: u64,
}

impl Effort {
    pub(super) const USUAL: Self =
        Self { refills: [100, 30], requests: 1000, shortest: Duration::from_secs(2), longest_refill: 10_000 };
    pub(super) const QUICK: Self =
        Self { refills: [8, 8], requests: 80, shortest: Duration::from_millis(300), longest_refill: 1000 };

    fn is_quick(self) -> bool {
        self.longest_refill < Self::USUAL.longest_refill
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meter {
    Operations,
    Bytes,
}

/// The tokens of a request, compared with those of the full bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Below,
    At,
    Above,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Mixed,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Row {
    engine: EngineKind,
    refill_ms: u64,
    meter: Meter,
    request: Request,
    access: Access,
    queues: u16,
}

/// What is measured on each engine: every value of each dimension, and each refill time with several of them.
const ROWS: [(u64, Meter, Request, Access, u16); 18] = [
    (1, Meter::Operations, Request::Below, Access::Read, 1),
    (1, Meter::Operations, Request::At, Access::Write, 8),
    (1, Meter::Bytes, Request::Below, Access::Mixed, 8),
    (1, Meter::Bytes, Request::At, Access::Read, 1),
    (1, Meter::Bytes, Request::Above, Access::Write, 8),
    (10, Meter::Operations, Request::Below, Access::Mixed, 8),
    (10, Meter::Operations, Request::At, Access::Read, 1),
    (10, Meter::Bytes, Request::Below, Access::Write, 1),
    (10, Meter::Bytes, Request::At, Access::Read, 8),
    (10, Meter::Bytes, Request::Above, Access::Mixed, 1),
    (100, Meter::Operations, Request::Below, Access::Write, 1),
    (100, Meter::Operations, Request::At, Access::Mixed, 8),
    (100, Meter::Bytes, Request::Below, Access::Read, 8),
    (100, Meter::Bytes, Request::At, Access::Mixed, 1),
    (1000, Meter::Operations, Request::Below, Access::Mixed, 1),
    (1000, Meter::Bytes, Request::Below, Access::Write, 8),
    (10_000, Meter::Operations, Request::Below, Access::Read, 1),
    (10_000, Meter::Bytes, Request::Below, Access::Mixed, 8),
];

impl Row {
    fn all(effort: Effort, engines: &[EngineKind]) -> Vec<Self> {
        let rows = engines.iter().flat_map(|&engine| {
            ROWS.into_iter().map(move |(refill_ms, meter, request, access, queues)| Self {
                engine,
                refill_ms,
                meter,
                request,
                access,
                queues,
            })
        });
        rows.filter(|row| row.refill_ms <= effort.longest_refill).collect()
    }

    /// Bytes of a request.
    fn block(self) -> u64 {
        if self.request == Request::Above { LARGE_BLOCK } else { BLOCK }
    }

    /// Requests that the bucket holds, where it holds some.
    fn count(self) -> u64 {
        match (self.request, self.refill_ms) {
            (Request::At | Request::Above, _) => 1,
            (Request::Below, ..=1) => 8,
            (Request::Below, ..=100) => 50,
            (Request::Below, _) => 100,
        }
    }

    /// Tokens of the bucket.
    fn size(self) -> u64 {
        match self.meter {
            Meter::Operations => self.count(),
            Meter::Bytes => self.count() * BLOCK,
        }
    }

    /// Tokens of a request.
    fn tokens(self) -> u64 {
        match self.meter {
            Meter::Operations => 1,
            Meter::Bytes => self.block(),
        }
    }

    fn refill(self) -> Duration {
        Duration::from_millis(self.refill_ms)
    }

    /// Tokens a second.
    fn asked(self) -> f64 {
        self.size() as f64 / self.refill().as_secs_f64()
    }

    fn least(self, effort: Effort) -> Least {
        let [usual, long] = effort.refills;
        let refills = if self.refill_ms > 1000 { long } else { usual };
        Least { time: (self.refill() * refills).max(effort.shortest), operations: effort.requests }
    }

    /// How long its window will be.
    fn window(self, effort: Effort) -> Duration {
        let least = self.least(effort);
        let tokens = least.operations * self.tokens();
        least.time.max(Duration::from_secs_f64(tokens as f64 / self.asked()))
    }

    fn id(self) -> String {
        let Self { engine, refill_ms, meter, request, access, queues } = self;
        let (meter, request, access) = (meter.id(), request.id(), access.word());
        format!("limiter.disk.{engine}.{meter}.{refill_ms}.{request}.{access}.{queues}")
    }

    fn group(self) -> String {
        let what = match self.meter {
            Meter::Operations => "requests",
            Meter::Bytes => "bytes",
        };
        format!("A disk's {what}, {} …", self.engine)
    }

    fn name(self) -> String {
        let Self { refill_ms, access, queues, .. } = self;
        let (size, tokens, access) = (self.size(), self.tokens(), access.word());
        let queues = format!("{queues} queue{}", if queues == 1 { "" } else { "s" });
        match self.meter {
            Meter::Operations => format!("{size} in {refill_ms} ms, {access}, {queues}"),
            Meter::Bytes => format!("{size} in {refill_ms} ms by {tokens}, {access}, {queues}"),
        }
    }

    fn config(self) -> VmConfig {
        let bucket = Some(Bucket { size: self.size(), one_time_burst: None, refill_time: self.refill_ms });
        let limiter = match self.meter {
            Meter::Operations => RateLimiter { ops: bucket, bandwidth: None },
            Meter::Bytes => RateLimiter { ops: None, bandwidth: bucket },
        };
        let drive = Drive::null(DISK, DISK_SIZE).queues(self.queues).rate_limiter(limiter);
        let mut config = VmConfig::new("blkbench").memory_mib(32).args(arguments(
            self.access.word(),
            self.block(),
            self.queues,
            DEPTH,
        ));
        config.drives.push(drive);
        config
    }

    fn error(self, obtained: Obtained) -> f64 {
        self.rate(obtained) / self.asked() - 1.0
    }

    /// Tokens a second.
    fn rate(self, obtained: Obtained) -> f64 {
        let tokens = match self.meter {
            Meter::Operations => obtained.operations,
            Meter::Bytes => obtained.bytes,
        };
        tokens as f64 / obtained.time.as_secs_f64()
    }

    fn add_figures(self, obtained: Option<Obtained>, report: &mut Report) {
        let (id, group, name) = (self.id(), self.group(), self.name());
        let one = |value: Option<f64>| value.into_iter().collect::<Samples>();
        let unit = match self.meter {
            Meter::Operations => Unit::PerSecond,
            Meter::Bytes => Unit::BytesPerSecond,
        };
        let rate = obtained.map(|obtained| self.rate(obtained));
        report.add(Figure::new(format!("{id}.obtained"), group.clone(), &name, unit, &one(rate)));
        let error = obtained.map(|obtained| self.error(obtained));
        let name = "… more than asked";
        report.add(Figure::new(format!("{id}.error"), group, name, Unit::Share, &one(error)));
    }
}

impl Meter {
    fn id(self) -> &'static str {
        match self {
            Self::Operations => "operations",
            Self::Bytes => "bytes",
        }
    }
}

impl Request {
    fn id(self) -> &'static str {
        match self {
            Self::Below => "below",
            Self::At => "at",
            Self::Above => "above",
        }
    }
}

impl Access {
    /// The guest's word for it.
    fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Mixed => "mixed",
        }
    }
}

/// What a guest is told that asks for requests without end.
pub(super) fn arguments(access: &str, block: u64, queues: u16, depth: &str) -> Vec<String> {
    let (block, queues) = (block.to_string(), queues.to_string());
    [
        ["--mode", access],
        ["--block-size", &block],
        ["--queues", &queues],
        ["--depth", depth],
        ["--duration", FOREVER],
        ["--timeout", FOREVER],
    ]
    .iter()
    .flatten()
    .map(|&word| word.to_owned())
    .collect()
}

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
            runtimes.push((engine, runtime(engine)?));
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

/// A runtime on that engine.
fn runtime(engine: EngineKind) -> CliResult<Runtime> {
    let engine = match engine {
        EngineKind::Uring => EngineChoice::Uring,
        EngineKind::Epoll => EngineChoice::Epoll,
    };
    Ok(Runtime::new(RuntimeOptions { engine, ..RuntimeOptions::default() })?)
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
        let why_not_uring = ringlet_io::probe_uring().err().map(|error| error.to_string());
        let engines: &[_] = match why_not_uring {
            None => &[EngineKind::Uring, EngineKind::Epoll],
            Some(_) => &[EngineKind::Epoll],
        };
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
    pub(super) fn measure(self, report: &mut Report) -> CliResult<()> {
        let Self { effort, rows, slowest, why_not_uring } = self;
        let (long, short): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.window(effort) > LONG);
        let mut all = Vec::new();
        for row in short {
            progress(&row.id());
            let seen = measure(&[row], effort, Duration::from_micros(200))?;
            all.extend(seen.into_iter().map(|seen| (row, seen)));
        }
        progress(&format!("{} limits of disks whose windows are long, side by side", long.len()));
        let seen = measure(&long, effort, Duration::from_millis(1))?;
        all.extend(long.into_iter().zip(seen));
        progress("limits with refills of more than 1 s, begun at first");
        all.extend(slowest.join().map_err(|_| "the thread of the slowest limits panicked")??);
        add_figures(all, report);
        if let Some(why_not) = why_not_uring {
            report.note(format!("limits of disks on io_uring are not measured: {why_not}"));
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
            "--quick leaves out refills of 10 s; windows hold {usual} refills and {requests} requests"
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

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
