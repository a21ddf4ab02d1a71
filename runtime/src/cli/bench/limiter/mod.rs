//! `ringlet bench limiter`: what VMs get of what their limits allow, and what holding them to it costs.
//!
//! One module for each resource.

mod cpu;
mod track;

use ringlet::{Runtime, RuntimeOptions};

use super::report::Report;
use super::{CliResult, Options};

/// Measures everything.
pub(super) fn run(options: Options) -> CliResult<Report> {
    let mut report = Report::new("limiter", options.quick);
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let effort = if options.quick { cpu::Effort::QUICK } else { cpu::Effort::USUAL };
    cpu::measure(&runtime, effort, &mut report)?;
    Ok(report.judge(&cpu::TARGETS))
}
