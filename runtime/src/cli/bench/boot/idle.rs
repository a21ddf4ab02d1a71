//! What idle VMs cost: memory and CPU time.

use super::super::idle_vms::{Crowd, Level, Observation, observe};
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::Effort;
use crate::cli::CliResult;

const GROUP: &str = "Idle VMs";
/// At how many VMs memory is looked at. At the last one CPU time is, too.
const COUNTS: [u32; 3] = [1, 100, MOST];
const MOST: u32 = 1000;
/// What is said of each level, divided by the number of its VMs.
const COSTS: [Cost; 5] = [
    ("private", "private memory of each", |level| level.memory.private()),
    ("private.anonymous", "… stacks, arenas", |level| level.memory.anonymous),
    ("private.heap", "… heap", |level| level.memory.heap),
    ("ram", "guest RAM in use", |level| level.memory.guest_ram),
    ("lost", "MemAvailable lost for each", |level| level.lost),
];
/// Identifier, name, value in bytes.
type Cost = (&'static str, &'static str, fn(&Level) -> u64);

/// Measures idle VMs.
pub(super) fn measure(effort: Effort, report: &mut Report) -> CliResult<()> {
    super::super::progress("idle VMs");
    let crowd =
        Crowd { seconds: effort.idle_seconds, vms: &COUNTS, threads: 1, disk: None, guest: &["idle"] };
    let seen: Vec<Observation> =
        (0..effort.idle_processes).map(|_| observe(&crowd)).collect::<CliResult<_>>()?;
    for (place, vms) in COUNTS.into_iter().enumerate() {
        let of_each = |value: fn(&Level) -> u64| -> Samples {
            let levels = seen.iter().filter_map(|seen| seen.levels.get(place));
            levels.map(|level| value(level) as f64 / f64::from(level.vms)).collect()
        };
        for (id, name, value) in COSTS {
            let (id, name) = (format!("idle.{id}.{vms}"), format!("{vms}: {name}"));
            report.add(Figure::new(id, GROUP, name, Unit::Bytes, &of_each(value)));
        }
    }
    let cpu = seen.iter().map(|seen| seen.cpu).collect();
    let name = format!("{MOST}: CPU of all, of one core");
    report.add(Figure::new("idle.cpu", GROUP, name, Unit::Cores, &cpu));
    Ok(())
}
