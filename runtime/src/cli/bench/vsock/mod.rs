//! `ringlet bench vsock`: streams between host and guest, compared with a loop on the same kind of socket without a VM, and
//! with the time of an exit.
//!
//! [`contender`] says who is compared, [`reach`] how each is connected to, [`host_loop`] is one of them; [`client`] measures
//! them all, [`exit`] understands what a guest says of its exits, [`lane`] keeps what was measured, and [`targets`] says
//! what all that should be.

mod client;
mod contender;
mod exit;
mod host_loop;
mod lane;
mod reach;
mod targets;

use std::time::Duration;

use super::interleave::turns;
use super::report::Report;
use super::{CliResult, Options};
use client::Scenario;
use contender::{Contender, Setup};
use lane::Lane;

/// How often everything is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    /// How long a contender is busy in a round.
    time: Duration,
}

impl Effort {
    const USUAL: Self = Self { rounds: 7, time: Duration::from_secs(1) };
    const QUICK: Self = Self { rounds: 2, time: Duration::from_millis(300) };
}

/// Measures everything.
pub(super) fn run(options: Options) -> CliResult<Report> {
    let effort = if options.quick { Effort::QUICK } else { Effort::USUAL };
    let mut report = Report::new("vsock", options.quick);
    let setup = Setup::new()?;
    let lanes = Contender::ALL.into_iter().map(|who| Lane::new(who, &setup));
    let mut lanes = lanes.collect::<CliResult<Vec<_>>>()?;
    for scenario in Scenario::ALL {
        measure(scenario, &mut lanes, effort, &mut report)?;
    }
    drop(lanes);
    setup.stop()?;
    note(effort, &mut report);
    Ok(report.judge(&targets::TARGETS))
}

fn measure(scenario: Scenario, lanes: &mut [Lane<'_>], effort: Effort, report: &mut Report) -> CliResult<()> {
    super::progress(scenario.name());
    lanes.iter_mut().for_each(Lane::forget);
    for turn in turns(lanes.len(), effort.rounds) {
        if let Some(lane) = lanes.get_mut(turn.contender) {
            lane.measure(scenario, effort.time, turn.warm_up)?;
        }
    }
    lane::add_figures(scenario, lanes, report);
    Ok(())
}

fn note(effort: Effort, report: &mut Report) {
    report.note(format!("a client in this process keeps each contender busy for {:?} a round", effort.time));
    report.note("the host loop is a thread that does on a Unix socket what the guest does behind one");
    report.note("CPU time is that of this process without the client's thread");
    report.note("an exit is a guest's read of a register that this process answers, and was timed right after the requests");
    report.note("QEMU has vsock by the kernel's vhost-vsock only, which is another interface on the host's side; it is not measured");
}
