//! `ringlet bench boot`: what starting, keeping, steering and ending VMs costs.
//!
//! One module for each group of figures; [`targets`] says what they should be.

mod control;
mod fleet;
mod floor;
mod idle;
mod lifecycle;
mod neighbour;
mod start;
mod targets;

use ringlet::{Runtime, RuntimeOptions};

use super::report::Report;
use super::{CliResult, Options};

/// How often everything is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Rounds of process starts, for each guest.
    starts: usize,
    /// VMs one after the other.
    lives: usize,
    /// Rounds of [`fleet::AT_ONCE`] VMs.
    fleets: usize,
    /// Processes full of idle VMs.
    idle_processes: usize,
    /// Seconds over which idle VMs are watched.
    idle_seconds: u32,
    /// Pauses, and as many stops.
    controls: usize,
    /// Rounds with and without a neighbour.
    neighbours: usize,
}

impl Effort {
    const USUAL: Self = Self {
        starts: 60,
        lives: 300,
        fleets: 20,
        idle_processes: 3,
        idle_seconds: 5,
        controls: 100,
        neighbours: 9,
    };
    const QUICK: Self = Self {
        starts: 10,
        lives: 50,
        fleets: 4,
        idle_processes: 1,
        idle_seconds: 2,
        controls: 20,
        neighbours: 3,
    };
}

/// Measures everything.
pub(super) fn run(options: Options) -> CliResult<Report> {
    let effort = if options.quick { Effort::QUICK } else { Effort::USUAL };
    let mut report = Report::new("boot", options.quick);
    start::measure(effort, &mut report)?;
    idle::measure(effort, &mut report)?;
    let runtime = Runtime::new(RuntimeOptions::default())?;
    lifecycle::measure(&runtime, effort, &mut report)?;
    fleet::measure(&runtime, effort, &mut report)?;
    control::measure(&runtime, effort, &mut report)?;
    neighbour::measure(&runtime, effort, &mut report)?;
    Ok(report.judge(&targets::TARGETS))
}
