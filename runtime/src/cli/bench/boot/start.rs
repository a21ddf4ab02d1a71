//! From the start of a process to its guest's first byte, and to its own end: Ringlet, the floor, QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringlet::{VmConfig, images};

use super::super::interleave::turns;
use super::super::process::{self, Run};
use super::super::qemu;
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::{Effort, floor};
use crate::cli::CliResult;

const GROUP: &str = "Process start to …";
/// One round of so many is QEMU's, too.
const QEMU_EVERY: usize = 5;

/// What the guest is asked for.
struct Guest {
    /// Part of the figures' identifiers.
    id: &'static str,
    name: &'static str,
    /// Arguments of `ringlet run`.
    args: &'static [&'static str],
    /// The command line that the guest is given for them.
    cmdline: &'static str,
}

const GUESTS: [Guest; 2] = [
    Guest { id: "hello", name: "run hello", args: &["run", "hello"], cmdline: "" },
    Guest {
        id: "brief",
        name: "run hello -- --brief",
        args: &["run", "hello", "--", "--brief"],
        cmdline: "-- \"--brief\"",
    },
];

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    Ringlet,
    Floor,
    Qemu,
}

impl Vmm {
    const ALL: [Self; 3] = [Self::Ringlet, Self::Floor, Self::Qemu];

    fn id(self) -> &'static str {
        match self {
            Self::Ringlet => "ringlet",
            Self::Floor => "floor",
            Self::Qemu => "qemu",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ringlet => "ringlet",
            Self::Floor => "floor",
            Self::Qemu => "QEMU microvm",
        }
    }

    /// QEMU takes a hundred times as long and has its turn in some rounds only.
    fn takes_part_in(self, round: usize) -> bool {
        self != Self::Qemu || round.is_multiple_of(QEMU_EVERY)
    }

    /// The status with which it reports that the guest exited with 0.
    fn success(self) -> i32 {
        match self {
            Self::Ringlet | Self::Floor => 0,
            Self::Qemu => qemu::SUCCESS,
        }
    }
}

/// The programs, and the image as a file.
struct Programs {
    ringlet: PathBuf,
    floor: PathBuf,
    image: PathBuf,
    /// What `ringlet run` gives a VM.
    memory_mib: u32,
}

/// What was measured of one contender with one guest.
#[derive(Default)]
struct Times {
    first_byte: Samples,
    exit: Samples,
    /// Why it does not run here.
    why_not: Option<String>,
}

/// Measures process starts.
pub(super) fn measure(effort: Effort, report: &mut Report) -> CliResult<()> {
    let folder = tempfile::tempdir()?;
    let programs = Programs::prepare(folder.path())?;
    for guest in &GUESTS {
        super::super::progress(&format!("process starts: {}", guest.name));
        let times = programs.measure(guest, effort.starts)?;
        for (part, name) in [("first_byte", "first byte"), ("exit", "exit")] {
            add_figures(guest, &times, part, name, report);
        }
    }
    Ok(())
}

impl Programs {
    fn prepare(folder: &Path) -> CliResult<Self> {
        let hello = images::find("hello").ok_or("the image `hello` is not bundled")?;
        let image = folder.join("hello");
        std::fs::write(&image, hello.bytes)?;
        Ok(Self {
            ringlet: std::env::current_exe()?,
            floor: floor::build(folder)?,
            image,
            memory_mib: VmConfig::new("hello").machine_config.mem_size_mib,
        })
    }

    fn command(&self, vmm: Vmm, guest: &Guest) -> Command {
        match vmm {
            Vmm::Ringlet => {
                let mut command = Command::new(&self.ringlet);
                command.args(guest.args);
                command
            }
            Vmm::Floor => {
                let mut command = Command::new(&self.floor);
                command.arg(&self.image).arg(self.memory_mib.to_string()).arg(guest.cmdline);
                command.env_remove("FLOOR_PVH").env_remove("FLOOR_STATS");
                command
            }
            Vmm::Qemu => qemu::command(&self.image, self.memory_mib, guest.cmdline),
        }
    }

    /// Times of all contenders, in the order of [`Vmm::ALL`].
    fn measure(&self, guest: &Guest, rounds: usize) -> CliResult<[Times; 3]> {
        let mut times: [Times; 3] = Default::default();
        let mut lines = None;
        for (number, turn) in turns(Vmm::ALL.len(), rounds).enumerate() {
            let round = number / Vmm::ALL.len();
            let (Some(&vmm), Some(own)) = (Vmm::ALL.get(turn.contender), times.get_mut(turn.contender))
            else {
                continue;
            };
            if !vmm.takes_part_in(round) || own.why_not.is_some() {
                continue;
            }
            match self.boot(vmm, guest, &mut lines) {
                Ok(_) if turn.warm_up => {}
                Ok(run) => {
                    own.first_byte.push_time(run.first_byte);
                    own.exit.push_time(run.exit);
                }
                Err(why_not) if vmm == Vmm::Qemu => own.why_not = Some(why_not),
                Err(why_not) => return Err(why_not.into()),
            }
        }
        Ok(times)
    }

    /// Boots the guest once. An error is why it does not run as it does elsewhere: `lines` is how many it printed
    /// there.
    fn boot(&self, vmm: Vmm, guest: &Guest, lines: &mut Option<usize>) -> Result<Run, String> {
        let run = process::time(&mut self.command(vmm, guest))
            .map_err(|error| format!("{} cannot be run: {error}", vmm.name()))?;
        let printed = run.stdout.iter().filter(|&&byte| byte == b'\n').count();
        let same = *lines.get_or_insert(printed) == printed && printed > 0;
        if run.status.code() == Some(vmm.success()) && same {
            return Ok(run);
        }
        Err(format!("{} does not run this guest here: {}", vmm.name(), run.complaint()))
    }
}

/// Figures of one moment (`part`) for all contenders, each compared with the floor.
fn add_figures(guest: &Guest, times: &[Times; 3], part: &str, name: &str, report: &mut Report) {
    let figure = |vmm: Vmm, times: &Times| {
        let id = format!("start.{}.{}.{part}", guest.id, vmm.id());
        let name = format!("{name}, `{}`, {}", guest.name, vmm.name());
        let samples = if part == "exit" { &times.exit } else { &times.first_byte };
        match &times.why_not {
            Some(why_not) => Figure::missing(id, GROUP, name, Unit::Seconds, why_not),
            None => Figure::new(id, GROUP, name, Unit::Seconds, samples),
        }
    };
    let [_, floor, _] = times;
    let floor = figure(Vmm::Floor, floor);
    for (vmm, times) in Vmm::ALL.into_iter().zip(times) {
        let figure = figure(vmm, times);
        report.add(if vmm == Vmm::Floor { figure } else { figure.compared_with(&floor, "floor") });
    }
}
