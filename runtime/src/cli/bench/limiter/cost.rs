//! What VMs without limits pay for being able to have some.
//!
//! Every device has its levels, limited or not, so there is no VM without to compare with. Instead: what the admission of a
//! request takes, of the time that a request of an unlimited VM takes in all.

use std::hint::black_box;
use std::time::Duration;

use ringlet::{Drive, Runtime, RuntimeOptions, VmConfig};
use ringlet_io::MonoTime;
use ringlet_io::limiter::{Cost, Level, LimitError, Limiter, Limits};

use super::super::blkbench::{BlockResult, Mode, Pattern};
use super::super::launched::{Launched, executor, settle};
use super::super::own_shard::run_on_shard;
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::super::target::{Limit, Quantity, Target};
use super::super::{CliResult, progress};

/// Bytes of the null disk.
const DISK_SIZE: u64 = 64 << 20;
/// What its guest does.
const PATTERN: Pattern = Pattern { mode: Mode::RandRead, depth: 32, block_size: 4 << 10 };
/// Requests of a round, and admissions of one.
const REQUESTS: u64 = 20_000;
const ADMISSIONS: u32 = 200_000;
/// Levels of a disk: its own and that of all disks.
const LEVELS: usize = 2;
const GROUP: &str = "Without limits, a null disk …";

/// Measures admissions and requests in turn.
pub(super) fn measure(quick: bool, report: &mut Report) -> CliResult<()> {
    progress("what a VM without limits pays");
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let rounds = if quick { 3 } else { 9 };
    let [mut admissions, mut requests, mut parts] = [(); 3].map(|()| Samples::default());
    for _ in 0..rounds {
        let admission = admission(&runtime)?;
        let request = 1.0 / run(&runtime)?.iops();
        settle(&runtime);
        admissions.push(admission);
        requests.push(request);
        parts.push(admission / request);
    }
    let mut add = |id: &str, name: &str, unit, samples: &Samples| {
        report.add(Figure::new(format!("limiter.unlimited.{id}"), GROUP, name, unit, samples));
    };
    add("request", "a request, of 32 at once", Unit::Seconds, &requests);
    add("admission", "its admission at two levels", Unit::Seconds, &admissions);
    add("cost", "admission, of the request", Unit::Share, &parts);
    report.note(
        "without limits: an admission that need not wait, less one without levels; by the event loop alone",
    );
    Ok(())
}

/// A guest's requests.
fn run(runtime: &Runtime) -> CliResult<BlockResult> {
    let mut config = VmConfig::new("blkbench").args(PATTERN.arguments(REQUESTS));
    config.drives.push(Drive::null("disk0", DISK_SIZE));
    let launched = Launched::new(runtime, &config)?;
    let console = launched.console.clone();
    executor()?.block_on(launched.live())?;
    BlockResult::find(&String::from_utf8_lossy(&console.contents()))
}

/// Seconds that the admission of a request takes that need not wait.
fn admission(runtime: &Runtime) -> CliResult<f64> {
    let [without, with] = run_on_shard(runtime.engine().kind, |cx| async move {
        let open = || Level::new(&Limits::default(), MonoTime::now());
        let levels = (0..LEVELS).map(|_| open()).collect::<Result<_, _>>()?;
        let without = admit(&Limiter::unlimited()).await;
        Ok::<_, LimitError>([without, admit(&Limiter::levels(cx.timer(), levels)).await])
    })??;
    Ok(with.saturating_sub(without).as_secs_f64() / f64::from(ADMISSIONS))
}

async fn admit(limiter: &Limiter) -> Duration {
    let begun = MonoTime::now();
    for _ in 0..ADMISSIONS {
        limiter.admit(black_box(Cost::read(4096))).await;
    }
    MonoTime::now().since(begun)
}

/// What the figures should be.
pub(super) const TARGETS: [Target; 1] = [Target {
    id: "limiter.unlimited.cost",
    what: "what a VM without limits pays for a request's admission, of the request",
    figure: "limiter.unlimited.cost",
    quantity: Quantity::Median,
    limit: Limit::AtMost(0.01),
}];
