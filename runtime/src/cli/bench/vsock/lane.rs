//! What was measured of each contender in one scenario, and the figures that it makes.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::super::report::{Figure, Report, Unit};
use super::super::traffic::{Measured, Quantity};
use super::super::usage::cpu_time;
use super::client::{Reach, Scenario, exits};
use super::contender::{Contender, Setup};
use super::exit::Exit;
use crate::cli::CliResult;

/// One round.
#[derive(Debug, Clone)]
struct Run {
    measured: Measured,
    /// CPU time of all but the client meanwhile.
    cpu: Duration,
    /// What the guest's exits took right after it, where that was asked.
    exit: Option<Exit>,
}

/// A contender and what was measured of it.
pub(super) struct Lane<'a> {
    pub(super) who: Contender,
    /// Or why it does not work here.
    reach: Result<Box<dyn Reach + 'a>, String>,
    /// One for each round that counts.
    runs: Vec<Run>,
}

impl<'a> Lane<'a> {
    pub(super) fn new(who: Contender, setup: &'a Setup) -> CliResult<Self> {
        Ok(Self { who, reach: setup.reach(who)?, runs: Vec::new() })
    }

    /// Forgets the last scenario.
    pub(super) fn forget(&mut self) {
        self.runs.clear();
    }

    pub(super) fn measure(&mut self, scenario: Scenario, time: Duration, warm_up: bool) -> CliResult<()> {
        let Ok(reach) = &self.reach else { return Ok(()) };
        let failed = |error| format!("{}: {}: {error}", self.who, scenario.name());
        let before = cpu_of_others();
        let measured = scenario.run(&**reach, time).map_err(failed)?;
        let cpu = cpu_of_others().saturating_sub(before);
        let asked = scenario == Scenario::Requests && self.who.is_guest();
        let exit = asked.then(|| exits(&**reach)).transpose().map_err(failed)?;
        if !warm_up {
            self.runs.push(Run { measured, cpu, exit });
        }
        Ok(())
    }

    fn figure(&self, scenario: Scenario, quantity: Said) -> Figure {
        let id = format!("vsock.{}.{}.{}", scenario.id(), self.who.id(), quantity.id());
        let name = format!("{}: {}", self.who, quantity.name());
        match &self.reach {
            Err(why_not) => Figure::missing(id, scenario.name(), name, quantity.unit(), why_not),
            Ok(_) => {
                let samples = self.runs.iter().filter_map(|run| quantity.of(run)).collect();
                Figure::new(id, scenario.name(), name, quantity.unit(), &samples)
            }
        }
    }
}

/// CPU time of this process so far without that of this thread: it is the client.
fn cpu_of_others() -> Duration {
    let own = clock_gettime(ClockId::ThreadCPUTime);
    let own = Duration::new(own.tv_sec.try_into().unwrap_or(0), own.tv_nsec.try_into().unwrap_or(0));
    cpu_time().saturating_sub(own)
}

/// What is said of a contender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// Of any.
    Of(Quantity),
    /// An exit of the guest, by port.
    ExitByPort,
    /// … and by memory.
    ExitByMemory,
    /// The median latency, of an exit by port: that is the shorter one.
    P50OfExit,
}

impl Said {
    fn all(scenario: Scenario) -> &'static [Self] {
        match scenario {
            Scenario::Requests => &[
                Self::Of(Quantity::Rate),
                Self::Of(Quantity::P50),
                Self::Of(Quantity::P99),
                Self::Of(Quantity::CpuOfEach),
                Self::ExitByPort,
                Self::ExitByMemory,
                Self::P50OfExit,
            ],
            Scenario::StreamIn | Scenario::StreamOut => {
                &[Self::Of(Quantity::Throughput), Self::Of(Quantity::CpuOfGib)]
            }
            Scenario::Connections => &[Self::Of(Quantity::Rate), Self::Of(Quantity::CpuOfEach)],
        }
    }

    /// Only a guest has it.
    fn takes_a_guest(self) -> bool {
        !matches!(self, Self::Of(_))
    }

    fn id(self) -> &'static str {
        match self {
            Self::Of(quantity) => quantity.id(),
            Self::ExitByPort => "exit.port",
            Self::ExitByMemory => "exit.memory",
            Self::P50OfExit => "p50.of_exit",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Of(quantity) => quantity.name(),
            Self::ExitByPort => "an exit, port",
            Self::ExitByMemory => "an exit, memory",
            Self::P50OfExit => "p50, in exits",
        }
    }

    fn unit(self) -> Unit {
        match self {
            Self::Of(quantity) => quantity.unit(),
            Self::P50OfExit => Unit::Ratio,
            Self::ExitByPort | Self::ExitByMemory => Unit::Seconds,
        }
    }

    /// `None` of what was not asked.
    fn of(self, Run { measured, cpu, exit }: &Run) -> Option<f64> {
        Some(match self {
            Self::Of(quantity) => quantity.of(measured, *cpu),
            Self::ExitByPort => (*exit)?.port.as_secs_f64(),
            Self::ExitByMemory => (*exit)?.memory.as_secs_f64(),
            Self::P50OfExit => measured.percentile(50).as_secs_f64() / (*exit)?.port.as_secs_f64(),
        })
    }
}

/// Adds all figures of a scenario.
pub(super) fn add_figures(scenario: Scenario, lanes: &[Lane<'_>], report: &mut Report) {
    let host = lanes.iter().find(|lane| lane.who == Contender::Host);
    for quantity in Said::all(scenario) {
        for lane in lanes.iter().filter(|lane| lane.who.is_guest() || !quantity.takes_a_guest()) {
            let figure = lane.figure(scenario, *quantity);
            report.add(match host.filter(|_| lane.who.is_guest() && !quantity.takes_a_guest()) {
                Some(host) => figure.compared_with(&host.figure(scenario, *quantity), "host loop"),
                None => figure,
            });
        }
    }
    if let Some(host) = host.filter(|_| matches!(scenario, Scenario::StreamIn | Scenario::StreamOut)) {
        lanes
            .iter()
            .filter(|lane| lane.who.is_guest())
            .for_each(|lane| report.add(ratio(scenario, lane, host)));
    }
}

/// How much of the ceiling a stream reaches, round by round.
fn ratio(scenario: Scenario, own: &Lane<'_>, host: &Lane<'_>) -> Figure {
    let id = format!("vsock.{}.{}.of_host", scenario.id(), own.who.id());
    let name = format!("{}: of the {}", own.who, host.who);
    if let Err(why_not) = own.reach.as_ref().and(host.reach.as_ref()) {
        return Figure::missing(id, scenario.name(), name, Unit::Ratio, why_not);
    }
    let of = |(own, host): (&Run, &Run)| own.measured.rate() / host.measured.rate();
    let samples = own.runs.iter().zip(&host.runs).map(of).collect();
    Figure::new(id, scenario.name(), name, Unit::Ratio, &samples)
}

#[cfg(test)]
#[path = "lane_test.rs"]
mod tests;
