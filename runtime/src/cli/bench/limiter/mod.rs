//! `ringlet bench limiter`: what VMs get of what their limits allow, and what holding them to it costs.
//!
//! Modules for each resource: [`cpu`], its [`track`], and the [`floor`] of threads without a VM; [`disk`] and its [`window`], [`shares`] of
//! tenants, and the [`cost`] of having no limits.

mod cost;
mod cpu;
mod disk;
mod floor;
mod row;
mod shares;
mod track;
mod window;

use clap::{Args, ValueEnum};
use ringlet::{Runtime, RuntimeOptions};

use super::report::Report;
use super::target::Target;
use super::undisturbed::Undisturbed;
use super::{CliResult, Options};

/// Options of `ringlet bench limiter`.
#[derive(Debug, Args)]
pub(super) struct LimiterOptions {
    #[command(flatten)]
    pub(super) options: Options,

    /// Measure the limits of this only
    #[arg(long, value_enum)]
    resource: Option<Resource>,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resource {
    /// CPU time
    Cpu,
    /// Requests and bytes of disks
    Disk,
}

/// Measures everything.
pub(super) fn run(args: &LimiterOptions) -> CliResult<Report> {
    let LimiterOptions { options, resource } = *args;
    let wants = |one| resource.is_none_or(|only| only == one);
    let mut report = Report::new("limiter", options.quick);
    let (mut targets, mut undisturbed): (Vec<Target>, _) = (Vec::new(), Undisturbed::default());
    let disk_effort = if options.quick { row::Effort::QUICK } else { row::Effort::USUAL };
    let disk = if wants(Resource::Disk) { Some(disk::Disk::begin(disk_effort)?) } else { None };
    if wants(Resource::Cpu) {
        let runtime = Runtime::new(RuntimeOptions::default())?;
        let effort = if options.quick { cpu::Effort::QUICK } else { cpu::Effort::USUAL };
        cpu::measure(&runtime, effort, &mut undisturbed, &mut report)?;
        targets.extend(cpu::TARGETS);
    }
    if let Some(disk) = disk {
        let effort = if options.quick { shares::Effort::QUICK } else { shares::Effort::USUAL };
        shares::measure_all(effort, &mut undisturbed, &mut report)?;
        cost::measure(options.quick, &mut report)?;
        disk.measure(&mut undisturbed, &mut report)?;
        targets.extend(disk::TARGETS);
        targets.extend(cost::TARGETS);
        targets.extend(shares::TARGETS);
    }
    undisturbed.add_figures("limiter", &mut report);
    Ok(report.judge(&targets))
}
