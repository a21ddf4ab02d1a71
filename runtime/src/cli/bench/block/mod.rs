//! `ringlet bench block`: a guest's disk, compared with the ring facade alone and with QEMU.
//!
//! [`contender`] says who is compared, [`host_loop`] is one of them, [`lane`] keeps what was measured, and [`targets`]
//! says what it should be.

mod contender;
mod file;
mod host_loop;
mod lane;
mod targets;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueHint};

use super::blkbench::{Mode, Pattern};
use super::interleave::turns;
use super::report::Report;
use super::{CliResult, Options};
use contender::{Contender, Setup};
use lane::{Lane, Scenario};

pub(super) use host_loop::{HostLoopArgs, run as run_host_loop};

/// Options of `ringlet bench block`.
#[derive(Debug, Args)]
pub(super) struct BlockOptions {
    #[command(flatten)]
    pub(super) options: Options,

    /// Where the file is made that is read and written: a folder of the file system and disk to be measured
    #[arg(long, value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// How often everything is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Bytes of the file.
    size: u64,
    rounds: usize,
    /// How long a contender is to be busy in a round.
    time: Duration,
    /// Runs of one request, for the CPU time of starting and ending.
    starts: usize,
    scenarios: &'static [Scenario],
}

impl Effort {
    const USUAL: Self =
        Self { size: 1 << 30, rounds: 5, time: Duration::from_secs(1), starts: 5, scenarios: &ALL };
    const QUICK: Self =
        Self { size: 256 << 20, rounds: 2, time: Duration::from_millis(150), starts: 1, scenarios: &FEW };
}

const fn small(direct: bool, mode: Mode, depth: u16) -> Scenario {
    Scenario { direct, pattern: Pattern { mode, depth, block_size: 4 << 10 } }
}

const fn large(direct: bool, mode: Mode) -> Scenario {
    Scenario { direct, pattern: Pattern { mode, depth: 32, block_size: 128 << 10 } }
}

const ALL: [Scenario; 16] = [
    small(false, Mode::RandRead, 1),
    small(false, Mode::RandRead, 32),
    small(false, Mode::RandRead, 128),
    large(false, Mode::Read),
    small(false, Mode::RandWrite, 1),
    small(false, Mode::RandWrite, 32),
    small(false, Mode::RandWrite, 128),
    large(false, Mode::Write),
    small(true, Mode::RandRead, 1),
    small(true, Mode::RandRead, 32),
    small(true, Mode::RandRead, 128),
    large(true, Mode::Read),
    small(true, Mode::RandWrite, 1),
    small(true, Mode::RandWrite, 32),
    small(true, Mode::RandWrite, 128),
    large(true, Mode::Write),
];

const FEW: [Scenario; 6] = [
    small(false, Mode::RandRead, 32),
    large(false, Mode::Read),
    small(false, Mode::RandWrite, 32),
    small(true, Mode::RandRead, 1),
    small(true, Mode::RandRead, 32),
    small(true, Mode::RandWrite, 32),
];

/// Measures everything.
pub(super) fn run(args: &BlockOptions) -> CliResult<Report> {
    let options = args.options;
    let effort = if options.quick { Effort::QUICK } else { Effort::USUAL };
    let mut report = Report::new("block", options.quick);
    let folder = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut bench = Bench::new(effort, &folder)?;
    for &scenario in effort.scenarios {
        bench.measure(scenario, &mut report)?;
    }
    report.note(format!("a file of {} MiB in {}", effort.size >> 20, folder.display()));
    report.note("CPU time is that of the contender's process without what it takes to start and end");
    let measured_qemu = bench.lanes.iter().any(|lane| lane.who == Contender::Qemu && lane.why_not.is_none());
    if !measured_qemu {
        report.note("QEMU is not measured, so there is no target that compares with it");
    }
    Ok(report.judge(&targets::targets(measured_qemu)))
}

/// The contenders, and what they need.
struct Bench {
    effort: Effort,
    setup: Setup,
    lanes: Vec<Lane>,
    why_not_direct: Option<String>,
}

impl Bench {
    fn new(effort: Effort, folder: &Path) -> CliResult<Self> {
        super::progress(&format!("nothing yet: a file of {} MiB is written", effort.size >> 20));
        let disk = file::make(folder, effort.size)?;
        let why_not_direct = file::why_not_direct(&disk);
        let setup = Setup::new(folder, disk)?;
        let no_uring = ringlet_io::probe_uring().err().map(|error| error.to_string());
        let lane = |who: Contender| Lane::new(who, no_uring.clone().filter(|_| who.is_uring()));
        let lanes = Contender::ALL.into_iter().map(lane).collect();
        let mut bench = Self { effort, setup, lanes, why_not_direct };
        bench.measure_starts()?;
        Ok(bench)
    }

    /// What it takes to start and end with a single request between.
    fn measure_starts(&mut self) -> CliResult<()> {
        let Scenario { direct, pattern } = small(false, Mode::RandRead, 32);
        for turn in turns(self.lanes.len(), self.effort.starts) {
            if let Some(lane) = self.lanes.get_mut(turn.contender).filter(|lane| lane.why_not.is_none()) {
                let run = self.setup.run(lane.who, pattern, direct, 1);
                if let Some(run) = lane.accept(run)?
                    && !turn.warm_up
                {
                    lane.start.push_time(run.cpu);
                }
            }
        }
        Ok(())
    }

    fn measure(&mut self, scenario: Scenario, report: &mut Report) -> CliResult<()> {
        super::progress(&scenario.name());
        let Scenario { direct, pattern } = scenario;
        if let Some(why_not) = self.why_not_direct.as_ref().filter(|_| direct) {
            lane::add_missing(scenario, why_not, report);
            return Ok(());
        }
        let prepare = if direct { file::cool } else { file::warm };
        prepare(&self.setup.disk)?;
        self.lanes.iter_mut().for_each(|lane| lane.begin(scenario));
        for turn in turns(self.lanes.len(), self.effort.rounds) {
            if let Some(lane) = self.lanes.get_mut(turn.contender).filter(|lane| lane.why_not.is_none()) {
                let run = self.setup.run(lane.who, pattern, direct, lane.requests(self.effort.time));
                if let Some(run) = lane.accept(run)? {
                    lane.add(run, turn.warm_up);
                }
            }
        }
        lane::add_figures(scenario, &self.lanes, report);
        Ok(())
    }
}
