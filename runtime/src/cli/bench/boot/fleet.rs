//! Many VMs at once in one process.

use std::num::NonZero;
use std::time::Instant;

use ringlet::{Runtime, VmConfig};

use super::super::launched::{Launched, Life, brief, executor, settle};
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::Effort;
use crate::cli::CliResult;

const GROUP: &str = "VMs at once";
/// How many.
pub(super) const AT_ONCE: usize = 50;

/// Measures rounds of VMs at once, each after the last one's descriptors are closed; then rounds without that
/// wait, until everything is closed.
pub(super) fn measure(runtime: &Runtime, effort: Effort, report: &mut Report) -> CliResult<()> {
    super::super::progress("VMs at once");
    let config = brief();
    let (mut rate, mut first_byte, mut sustained) =
        (Samples::default(), Samples::default(), Samples::default());
    for round in 0..=effort.fleets {
        settle(runtime);
        let begun = Instant::now();
        let lives = fleet(runtime, &config)?;
        if round > 0 {
            rate.push(lives.len() as f64 / begun.elapsed().as_secs_f64());
            lives.iter().for_each(|life| first_byte.push_time(life.first_byte));
        }
    }
    settle(runtime);
    let (begun, mut vms) = (Instant::now(), 0);
    for _ in 0..effort.fleets {
        vms += fleet(runtime, &config)?.len();
    }
    settle(runtime);
    sustained.push(vms as f64 / begun.elapsed().as_secs_f64());
    report.add(Figure::new(
        "fleet.rate",
        GROUP,
        format!("{AT_ONCE} at once, all gone"),
        Unit::PerSecond,
        &rate,
    ));
    report.add(Figure::new(
        "fleet.first_byte",
        GROUP,
        format!("{AT_ONCE} at once, create to first byte"),
        Unit::Seconds,
        &first_byte,
    ));
    report.add(Figure::new(
        "fleet.sustained",
        GROUP,
        format!("{AT_ONCE} at once on and on, all closed"),
        Unit::PerSecond,
        &sustained,
    ));
    Ok(())
}

/// Launches VMs from one thread for each CPU and waits until all are gone.
fn fleet(runtime: &Runtime, config: &VmConfig) -> CliResult<Vec<Life>> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(AT_ONCE);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let share = (AT_ONCE + thread) / threads;
                scope.spawn(move || squad(runtime, config, share).map_err(|error| error.to_string()))
            })
            .collect();
        let mut lives = Vec::with_capacity(AT_ONCE);
        for handle in handles {
            lives.extend(handle.join().map_err(|_| "a launching thread panicked")??);
        }
        Ok(lives)
    })
}

/// One thread's share of a fleet.
fn squad(runtime: &Runtime, config: &VmConfig, count: usize) -> CliResult<Vec<Life>> {
    let launched: Vec<Launched> =
        (0..count).map(|_| Launched::new(runtime, config)).collect::<CliResult<_>>()?;
    let executor = executor()?;
    launched.into_iter().map(|vm| executor.block_on(vm.live())).collect()
}
