//! How fast a VM computes beside a hostile one, which is made anew with another seed whenever it ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ringlet::{Outcome, Runtime, VmConfig};

use super::super::interleave::turns;
use super::super::launched::{Launched, executor, settle};
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::Effort;
use crate::cli::CliResult;

const GROUP: &str = "A VM beside a hostile one";
/// What the victim computes, in the guest's own measure: a few hundred milliseconds.
const MILLIONS: &str = "200";
/// A hostile guest that runs longer is stopped.
const HOSTILE_LIMIT: Duration = Duration::from_secs(2);

/// Measures the victim alone and in company, alternately.
pub(super) fn measure(runtime: &Runtime, effort: Effort, report: &mut Report) -> CliResult<()> {
    super::super::progress("a VM beside a hostile one");
    let (mut solo, mut beside, mut progress) = (Samples::default(), Samples::default(), Samples::default());
    let (mut last_solo, seeds) = (None, AtomicU64::new(0));
    for turn in turns(2, effort.neighbours) {
        let time = match turn.contender {
            0 => victim(runtime)?,
            _ => in_company(runtime, &seeds)?,
        };
        settle(runtime);
        if turn.warm_up {
            continue;
        }
        match turn.contender {
            0 => solo.push_time(time),
            _ => beside.push_time(time),
        }
        // Each round has one of both, in either order.
        match last_solo.take() {
            None => last_solo = Some((turn.contender, time)),
            Some((0, alone)) => progress.push(alone.as_secs_f64() / time.as_secs_f64()),
            Some((_, company)) => progress.push(time.as_secs_f64() / company.as_secs_f64()),
        }
    }
    let name = |what| format!("{MILLIONS} million iterations, {what}");
    let solo = Figure::new("neighbour.solo", GROUP, name("alone"), Unit::Seconds, &solo);
    let beside = Figure::new("neighbour.beside", GROUP, name("in company"), Unit::Seconds, &beside);
    report.add(beside.compared_with(&solo, "alone"));
    report.add(solo);
    report.add(Figure::new("neighbour.progress", GROUP, "speed, of that alone", Unit::Ratio, &progress));
    report.note(format!("{} hostile VMs ran beside the victim", seeds.load(Ordering::Relaxed)));
    Ok(())
}

/// One run of the victim: how long its computation took by its own clock.
fn victim(runtime: &Runtime) -> CliResult<Duration> {
    let launched = Launched::new(runtime, &VmConfig::new("spin").args([MILLIONS]))?;
    let console = launched.console.clone();
    executor()?.block_on(launched.live())?;
    let text = String::from_utf8_lossy(&console.contents()).into_owned();
    computed(&text).ok_or_else(|| format!("`spin` does not say how long it took: {text:?}").into())
}

/// The time in `spin`'s last line, `… iterations in 12.345678 ms`.
fn computed(text: &str) -> Option<Duration> {
    let (_, time) = text.trim_end().rsplit_once(" in ")?;
    let milliseconds: f64 = time.strip_suffix(" ms")?.parse().ok()?;
    Duration::try_from_secs_f64(milliseconds / 1e3).ok().filter(|time| !time.is_zero())
}

/// One run of the victim with a hostile VM beside it all the time.
fn in_company(runtime: &Runtime, seeds: &AtomicU64) -> CliResult<Duration> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hostility = scope.spawn(|| harass(runtime, seeds, &over).map_err(|error| error.to_string()));
        let time = victim(runtime);
        over.store(true, Ordering::Relaxed);
        hostility.join().map_err(|_| "the thread of the hostile VMs panicked")??;
        time
    })
}

/// Runs hostile VMs one after the other until it is over.
fn harass(runtime: &Runtime, seeds: &AtomicU64, over: &AtomicBool) -> CliResult<()> {
    let executor = executor()?;
    while !over.load(Ordering::Relaxed) {
        let seed = seeds.fetch_add(1, Ordering::Relaxed);
        let config = VmConfig::new("hostile").args([seed.to_string()]).timeout(HOSTILE_LIMIT);
        let outcome = executor.block_on(Launched::new(runtime, &config)?.vm.wait());
        if let Outcome::Failed { error } = &*outcome {
            return Err(format!("hostile {seed}: {error}").into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_victims_time_is_read_from_its_last_line() {
        let time = computed("spin\n200 million iterations in 61.250000 ms\n");
        assert_eq!(time, Some(Duration::from_micros(61_250)));
        for text in ["", "spin\n", "1 million iterations in x ms\n", "in 0.000000 ms", "… in -1 ms"] {
            assert_eq!(computed(text), None, "{text:?}");
        }
    }
}
