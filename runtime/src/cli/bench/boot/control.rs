//! How long it takes to pause and to stop a VM that computes.

use std::time::{Duration, Instant};

use ringlet::{Outcome, Runtime, VmConfig};

use super::super::launched::{Launched, executor, settle};
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::Effort;
use crate::cli::CliResult;

const GROUP: &str = "A VM that computes";
/// How long it computes between two measurements.
const BETWEEN: Duration = Duration::from_millis(2);

/// Measures pauses of one VM, then stops of several.
pub(super) fn measure(runtime: &Runtime, effort: Effort, report: &mut Report) -> CliResult<()> {
    super::super::progress("pausing and stopping");
    let (config, executor) = (VmConfig::new("spin"), executor()?);
    let (mut pauses, mut stops) = (Samples::default(), Samples::default());
    let spin = Launched::new(runtime, &config)?;
    spin.until_first_byte()?;
    for _ in 0..effort.controls {
        std::thread::sleep(BETWEEN);
        let begun = Instant::now();
        executor.block_on(spin.vm.pause())?;
        pauses.push_time(begun.elapsed());
        executor.block_on(spin.vm.resume())?;
    }
    drop(spin);
    for _ in 0..effort.controls {
        let spin = Launched::new(runtime, &config)?;
        spin.until_first_byte()?;
        std::thread::sleep(BETWEEN);
        let begun = Instant::now();
        let outcome = executor.block_on(spin.vm.stop());
        stops.push_time(begun.elapsed());
        if *outcome != Outcome::Stopped {
            return Err(format!("a stopped guest ended otherwise: {outcome}").into());
        }
    }
    settle(runtime);
    report.add(Figure::new("control.pause", GROUP, "pause, until no vCPU runs", Unit::Seconds, &pauses));
    report.add(Figure::new("control.stop", GROUP, "stop, until the outcome is known", Unit::Seconds, &stops));
    Ok(())
}
