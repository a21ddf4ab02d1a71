//! `ringlet bench victim`: how many requests a VM's disk serves beside VMs that mean harm, in one process and on one
//! event loop.
//!
//! [`storm`] says who they are, [`placement`] on which CPUs everything runs.

mod placement;
mod storm;

use std::path::Path;
use std::time::Duration;

use ringlet::{Drive, Runtime, RuntimeOptions, VmConfig};

use super::blkbench::{BlockResult, Mode, Pattern};
use super::interleave::turns;
use super::launched::{Launched, executor, settle};
use super::report::{Figure, Report, Unit};
use super::stats::Samples;
use super::target::{Limit, Quantity, Target};
use super::unnamed::Unnamed;
use super::{CliResult, Options};
use placement::Placement;
use storm::{STORMS, Storm};

/// What the victim does.
const PATTERN: Pattern = Pattern { mode: Mode::RandRead, depth: 32, block_size: 4 << 10 };
/// Requests of its first run.
const GUESS: u64 = 2000;
/// Bytes of its disk: small enough for the page cache.
const DISK_SIZE: u64 = 64 << 20;
/// A victim that takes longer is not served at all.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests beside a storm, of those alone.
const OF_SOLO: f64 = 0.9;

const GROUPS: [&str; 2] =
    ["Random reads, 4 KiB, of a null disk …", "Random reads, 4 KiB, of a cached file …"];

/// How often everything is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    /// How long the victim is to be busy when it is alone.
    time: Duration,
}

impl Effort {
    const USUAL: Self = Self { rounds: 9, time: Duration::from_millis(800) };
    const QUICK: Self = Self { rounds: 3, time: Duration::from_millis(150) };
}

/// The victim.
struct Victim<'a> {
    /// Part of the figures' identifiers.
    id: &'static str,
    group: &'static str,
    config: VmConfig,
    runtime: &'a Runtime,
    placement: Placement,
}

/// What was measured beside one storm, or, the first of all, alone.
#[derive(Default)]
struct Beside {
    iops: Samples,
    p99: Samples,
    /// Of the requests alone in the same round.
    ratio: Samples,
}

/// Measures everything.
pub(super) fn run(options: Options) -> CliResult<Report> {
    let effort = if options.quick { Effort::QUICK } else { Effort::USUAL };
    let mut report = Report::new("victim", options.quick);
    let placement = Placement::of_this_process();
    let runtime = placement.beside_shard(|| Runtime::new(RuntimeOptions::default()))??;
    let file = file(&std::env::temp_dir())?;
    let disks = [Drive::null("disk0", DISK_SIZE), Drive::file("disk0", file.path()).read_only()];
    for ((id, group), disk) in ["null", "file"].into_iter().zip(GROUPS).zip(disks) {
        let mut config = VmConfig::new("blkbench").timeout(PATIENCE);
        config.drives.push(disk);
        let victim = Victim { id, group, config, runtime: &runtime, placement };
        victim.measure(effort, &mut report)?;
    }
    report.note(placement.to_string());
    report.note("storms: VMs that are made anew with another seed whenever they end");
    Ok(report.judge(&targets()))
}

/// The victim's file, in the page cache.
fn file(folder: &Path) -> CliResult<Unnamed> {
    let file = Unnamed::new_in(folder)?;
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..DISK_SIZE >> 20 {
        std::io::Write::write_all(&mut file.file(), &chunk)?;
    }
    file.file().sync_all()?;
    Ok(file)
}

impl Victim<'_> {
    /// Alone, and beside each storm, alternately.
    fn measure(&self, effort: Effort, report: &mut Report) -> CliResult<()> {
        super::progress(&format!("a VM with a disk ({}) beside storms", self.id));
        let mut seen: Vec<Beside> = (0..=STORMS.len()).map(|_| Beside::default()).collect();
        let (mut requests, mut seed) = (GUESS, 0);
        let mut round = Vec::with_capacity(seen.len());
        for turn in turns(seen.len(), effort.rounds) {
            let storm = turn.contender.checked_sub(1).and_then(|index| STORMS.get(index));
            let result = match storm {
                None => self.run(requests)?,
                Some(storm) => {
                    storm.beside(self.runtime, self.placement, &mut seed, || self.run(requests))?
                }
            };
            settle(self.runtime);
            self.placement.close_beside_storm()?;
            round.push((turn.contender, result));
            if round.len() == seen.len() {
                let alone = finish(&mut seen, &round, turn.warm_up);
                requests = (alone * effort.time.as_secs_f64()).max(100.0) as u64;
                round.clear();
            }
        }
        self.add_figures(&seen, report);
        Ok(())
    }

    /// One run of the guest.
    fn run(&self, requests: u64) -> CliResult<BlockResult> {
        self.placement
            .beside_victim(|| {
                let config = self.config.clone().args(PATTERN.arguments(requests));
                let launched = Launched::new(self.runtime, &config).map_err(|error| error.to_string())?;
                let console = launched.console.clone();
                let executor = executor().map_err(|error| error.to_string())?;
                let ended = executor.block_on(launched.live());
                let printed = String::from_utf8_lossy(&console.contents()).into_owned();
                let result = ended.and_then(|_| BlockResult::find(&printed));
                result.map_err(|error| format!("the victim: {error}; it said {printed:?}"))
            })?
            .map_err(Into::into)
    }

    fn add_figures(&self, seen: &[Beside], report: &mut Report) {
        let Self { id, group, .. } = *self;
        let Some((alone, beside)) = seen.split_first() else { return };
        let solo = format!("victim.{id}.solo");
        report.add(Figure::new(&solo, group, "alone", Unit::PerSecond, &alone.iops));
        report.add(Figure::new(
            format!("{solo}.p99"),
            group,
            "alone: latency, p99",
            Unit::Seconds,
            &alone.p99,
        ));
        for (Storm { id: storm, name, .. }, seen) in STORMS.iter().zip(beside) {
            let beside = format!("victim.{id}.{storm}");
            report.add(Figure::new(&beside, group, format!("beside {name}"), Unit::PerSecond, &seen.iops));
            let words = "… latency, p99";
            report.add(Figure::new(format!("{beside}.p99"), group, words, Unit::Seconds, &seen.p99));
            let words = "… of alone";
            report.add(Figure::new(format!("{beside}.of_solo"), group, words, Unit::Ratio, &seen.ratio));
        }
    }
}

/// Takes a round in; how many requests a second there were alone.
fn finish(seen: &mut [Beside], round: &[(usize, BlockResult)], warm_up: bool) -> f64 {
    let alone = round.iter().find(|(contender, _)| *contender == 0).map_or(0.0, |(_, result)| result.iops());
    for (contender, result) in round {
        if let Some(beside) = seen.get_mut(*contender).filter(|_| !warm_up) {
            beside.iops.push(result.iops());
            beside.p99.push_time(Duration::from_nanos(result.p99_ns));
            beside.ratio.push(result.iops() / alone);
        }
    }
    alone
}

fn targets() -> Vec<Target> {
    let target = |figure, what| Target {
        id: figure,
        what,
        figure,
        quantity: Quantity::Median,
        limit: Limit::AtLeast(OF_SOLO),
    };
    STORMS.iter().flat_map(|storm| storm.targets.iter().map(|&(figure, what)| target(figure, what))).collect()
}

#[cfg(test)]
#[path = "victim_test.rs"]
mod tests;
