//! `ringlet bench net`: a guest's network, compared with the tap facade alone and with QEMU.
//!
//! [`place`] is where it happens: a network of this benchmark's own. [`contender`] says who is compared, [`tap_loop`] and
//! [`peer`] are one of them, [`client`] measures each from outside by what [`wire`] says, [`lane`] keeps what was measured,
//! [`limits`] looks at what a limited guest gets, and [`targets`] says what all that should be.

mod client;
mod contender;
mod lane;
mod limits;
mod peer;
mod place;
mod tap_loop;
mod targets;
mod wire;

use std::time::Duration;

use clap::Args;

use super::interleave::turns;
use super::report::Report;
use super::{CliResult, Options};
use client::Scenario;
use contender::{Contender, Setup};
use lane::Lane;

pub(super) use peer::{PeerArgs, run as run_peer};
pub(super) use tap_loop::{TapLoopArgs, run as run_tap_loop};

/// Options of `ringlet bench net`.
#[derive(Debug, Args)]
pub(super) struct NetOptions {
    #[command(flatten)]
    pub(super) options: Options,

    /// This process is in a network of its own, where it has every privilege
    #[arg(long, hide = true)]
    inside: bool,
}

/// How often everything is measured.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    /// How long a contender is busy in a round.
    time: Duration,
    /// How long a limit is watched.
    window: Duration,
}

impl Effort {
    const USUAL: Self = Self { rounds: 7, time: Duration::from_secs(1), window: Duration::from_secs(4) };
    const QUICK: Self = Self { rounds: 2, time: Duration::from_millis(300), window: Duration::from_secs(1) };
}

/// Measures everything, in a network of its own.
pub(super) fn run(args: &NetOptions) -> CliResult<Report> {
    let options = args.options;
    if !args.inside {
        return Err(place::enter(options).into());
    }
    let effort = if options.quick { Effort::QUICK } else { Effort::USUAL };
    let mut report = Report::new("net", options.quick);
    let setup = Setup::new()?;
    let mut lanes =
        Contender::ALL.into_iter().map(|who| Lane::begin(who, &setup)).collect::<CliResult<Vec<_>>>()?;
    for scenario in Scenario::ALL {
        measure(scenario, &mut lanes, effort, &mut report)?;
    }
    let compared =
        Contender::PEERS.map(|peer| lanes.iter().any(|lane| lane.who == peer && lane.why_not().is_none()));
    drop(lanes);
    limits::measure(effort.window, &mut report)?;
    note(effort, compared, &mut report);
    Ok(report.judge(&targets::targets(compared)))
}

fn measure(scenario: Scenario, lanes: &mut [Lane], effort: Effort, report: &mut Report) -> CliResult<()> {
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

fn note(effort: Effort, [qemu, vhost]: [bool; 2], report: &mut Report) {
    report.note(format!(
        "each contender has a tap of its own; a client on this side of it keeps it busy for {:?} a round",
        effort.time
    ));
    report.note("the tap loop carries frames from one tap to another, behind which Linux serves");
    report.note("CPU time is that of the contender's processes, without the client");
    if !qemu {
        report.note("QEMU is not measured, so there is no target that compares with it");
    } else if !vhost {
        report.note("QEMU with vhost is not measured: it only shows what the kernel can do there");
    }
}
