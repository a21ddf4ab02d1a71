//! `ringlet bench density`: many VMs, each with a disk, in one process: how fast they come and go, and what they cost
//! while they do nothing.

use std::io::Write;
use std::num::NonZero;

use super::idle_vms::{Crowd, Level, Observation, observe};
use super::report::{Figure, Report, Unit};
use super::stats::Samples;
use super::target::{Limit, Quantity, Target};
use super::{CliResult, Options};

/// How many VMs, and with how many `--quick`.
const VMS: u32 = 1000;
const VMS_QUICK: u32 = 200;
/// The guest: it reads a sector of its disk, says that it is ready, and sleeps. So queues and their tasks are there.
const GUEST: [&str; 2] = ["storm", "calm"];
/// Bytes of the file that all VMs read.
const FILE_SIZE: usize = 16 << 20;

/// VMs a second, made until all are ready, and ended until all is closed.
const RATE: f64 = 300.0;
/// Private memory of a VM in bytes, beside its RAM.
const PRIVATE_MEMORY: f64 = 96.0 * 1024.0;

const GROUPS: [&str; 3] =
    ["VMs with a null disk", "VMs with a disk in memory", "VMs with a file to read, one for all"];

/// Whose disk.
#[derive(Debug, Clone, Copy)]
struct Kind {
    /// Part of the figures' identifiers.
    id: &'static str,
    group: &'static str,
}

/// Measures everything.
pub(super) fn run(options: Options) -> CliResult<Report> {
    let (vms, processes, seconds) = if options.quick { (VMS_QUICK, 1, 1) } else { (VMS, 3, 5) };
    let mut report = Report::new("density", options.quick);
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&vec![0x5a; FILE_SIZE])?;
    let path =
        file.path().to_str().filter(|path| !path.contains(',')).ok_or("the temporary folder's name")?;
    let disks = ["null:1G".to_owned(), "memory:64M".to_owned(), format!("path={path},readonly")];
    let ids = ["null", "memory", "file"];
    for ((id, group), disk) in ids.into_iter().zip(GROUPS).zip(&disks) {
        super::progress(&format!("{vms} VMs with the disk {disk}"));
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let crowd = Crowd { seconds, vms: &[vms], threads, disk: Some(disk), guest: &GUEST };
        let seen = (0..processes).map(|_| observe(&crowd)).collect::<CliResult<Vec<_>>>()?;
        add_figures(Kind { id, group }, &seen, &mut report);
    }
    report.note(format!("{vms} VMs in one process, made from one thread for each CPU"));
    Ok(report.judge(&targets()))
}

fn add_figures(kind: Kind, seen: &[Observation], report: &mut Report) {
    let Kind { id, group } = kind;
    let mut add = |name: &str, words: &str, unit, value: &dyn Fn(&Observation, &Level) -> f64| {
        let levels = seen.iter().filter_map(|seen| seen.levels.last().map(|level| (seen, level)));
        let samples: Samples = levels.map(|(seen, level)| value(seen, level)).collect();
        report.add(Figure::new(format!("density.{id}.{name}"), group, words, unit, &samples));
    };
    let count = |level: &Level| f64::from(level.vms);
    add("made", "made (the calls return)", Unit::PerSecond, &|_, level| count(level) / level.made);
    add("create", "made, until all are ready", Unit::PerSecond, &|_, level| count(level) / level.ready);
    add("delete", "stopped, until all is closed", Unit::PerSecond, &|seen, level| count(level) / seen.gone);
    add("private", "private memory of each", Unit::Bytes, &|_, level| {
        level.memory.private() as f64 / count(level)
    });
    add("private.anonymous", "… stacks, arenas", Unit::Bytes, &|_, level| {
        level.memory.anonymous as f64 / count(level)
    });
    add("private.heap", "… heap", Unit::Bytes, &|_, level| level.memory.heap as f64 / count(level));
    add("ram", "guest RAM in use", Unit::Bytes, &|_, level| level.memory.guest_ram as f64 / count(level));
    add("lost", "MemAvailable lost for each", Unit::Bytes, &|_, level| level.lost as f64 / count(level));
    add("cpu", "CPU of all, of one core", Unit::Cores, &|seen, _| seen.cpu);
}

fn targets() -> Vec<Target> {
    const fn target(id: &'static str, what: &'static str, limit: Limit) -> Target {
        Target { id, what, figure: id, quantity: Quantity::Median, limit }
    }
    let (rate, memory) = (Limit::AtLeast(RATE), Limit::AtMost(PRIVATE_MEMORY));
    vec![
        target("density.null.create", "VMs with a null disk, made until ready", rate),
        target("density.null.delete", "VMs with a null disk, ended until closed", rate),
        target("density.null.private", "private memory of a VM with a null disk", memory),
        target("density.memory.create", "VMs with a disk in memory, made until ready", rate),
        target("density.memory.delete", "VMs with a disk in memory, ended until closed", rate),
        target("density.memory.private", "private memory of a VM with a disk in memory", memory),
        target("density.file.create", "VMs with a file to read, made until ready", rate),
        target("density.file.delete", "VMs with a file to read, ended until closed", rate),
        target("density.file.private", "private memory of a VM with a file to read", memory),
    ]
}
