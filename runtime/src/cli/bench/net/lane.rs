//! What was measured of each contender in one scenario, and the figures that it makes.

use std::time::Duration;

use ringlet::EngineKind;

use super::super::report::{Figure, Report, Unit};
use super::super::traffic::{Measured, Quantity};
use super::client::Scenario;
use super::contender::{Contender, Served, Setup};
use crate::cli::CliResult;

/// One round.
#[derive(Debug, Clone)]
struct Run {
    measured: Measured,
    /// CPU time of the contender's processes meanwhile.
    cpu: Duration,
}

/// A contender, while it serves, and what was measured of it.
pub(super) struct Lane {
    pub(super) who: Contender,
    /// Or why it does not work here.
    served: Result<Served, String>,
    /// One for each round that counts.
    runs: Vec<Run>,
}

impl Lane {
    /// Has `who` serve. Only QEMU may fail: it is not ours.
    pub(super) fn begin(who: Contender, setup: &Setup) -> CliResult<Self> {
        let served = match who.why_not() {
            Some(why_not) => Err(why_not),
            None => match setup.start(who) {
                Err(error) if who.is_qemu() => Err(error.to_string()),
                result => Ok(result.map_err(|error| format!("{}: {error}", who.name()))?),
            },
        };
        Ok(Self { who, served, runs: Vec::new() })
    }

    pub(super) fn why_not(&self) -> Option<&str> {
        self.served.as_ref().err().map(String::as_str)
    }

    /// Forgets the last scenario.
    pub(super) fn forget(&mut self) {
        self.runs.clear();
    }

    pub(super) fn measure(&mut self, scenario: Scenario, time: Duration, warm_up: bool) -> CliResult<()> {
        let Ok(served) = &self.served else { return Ok(()) };
        let before = served.cpu()?;
        match scenario.run(self.who.address(), time) {
            Ok(measured) if !warm_up => {
                let cpu = served.cpu()?.saturating_sub(before);
                self.runs.push(Run { measured, cpu });
            }
            Ok(_) => {}
            Err(error) if self.who.is_qemu() => self.served = Err(format!("{}: {error}", scenario.name())),
            Err(error) => return Err(format!("{}: {}: {error}", self.who.name(), scenario.name()).into()),
        }
        Ok(())
    }

    fn figure(&self, scenario: Scenario, quantity: Quantity) -> Figure {
        let id = format!("net.{}.{}.{}", scenario.id(), self.who.id(), quantity.id());
        let name = format!("{}: {}", self.who.name(), quantity.name());
        if let Some(why_not) = self.why_not() {
            return Figure::missing(id, scenario.name(), name, quantity.unit(), why_not);
        }
        let samples = self.runs.iter().map(|run| quantity.of(&run.measured, run.cpu)).collect();
        Figure::new(id, scenario.name(), name, quantity.unit(), &samples)
    }
}

/// What is said of a contender.
fn all(scenario: Scenario) -> &'static [Quantity] {
    match scenario {
        Scenario::StreamIn | Scenario::StreamOut => &[Quantity::Throughput, Quantity::CpuOfGib],
        Scenario::PacketsIn | Scenario::PacketsOut => &[Quantity::Rate, Quantity::CpuOfEach],
        Scenario::Requests => &[Quantity::Rate, Quantity::P50, Quantity::P99, Quantity::CpuOfEach],
    }
}

/// Of what Ringlet's are compared with the others'.
fn compared(scenario: Scenario) -> &'static [Quantity] {
    match scenario {
        Scenario::StreamIn | Scenario::StreamOut => &[Quantity::Throughput],
        Scenario::PacketsIn | Scenario::PacketsOut => &[Quantity::Rate],
        Scenario::Requests => &[Quantity::P50, Quantity::P99],
    }
}

/// How much better `own` is than `other`.
fn better(quantity: Quantity, own: &Run, other: &Run) -> f64 {
    let [own, other] = [own, other].map(|run| quantity.of(&run.measured, run.cpu));
    match quantity {
        Quantity::Throughput | Quantity::Rate => own / other,
        Quantity::CpuOfGib | Quantity::CpuOfEach | Quantity::P50 | Quantity::P99 => other / own,
    }
}

/// Adds all figures of a scenario.
pub(super) fn add_figures(scenario: Scenario, lanes: &[Lane], report: &mut Report) {
    for quantity in all(scenario) {
        for lane in lanes {
            let figure = lane.figure(scenario, *quantity);
            let ceiling = lanes.iter().find(|other| other.who == lane.who.ceiling() && other.who != lane.who);
            report.add(match ceiling {
                Some(ceiling) => figure.compared_with(&ceiling.figure(scenario, *quantity), "tap loop"),
                None => figure,
            });
        }
    }
    for engine in [EngineKind::Uring, EngineKind::Epoll] {
        for (other, word) in [
            (Contender::Host(engine), "host"),
            (Contender::Qemu(false), "qemu"),
            (Contender::Qemu(true), "vhost"),
        ] {
            let find = |who| lanes.iter().find(|lane| lane.who == who);
            if let (Some(own), Some(other)) = (find(Contender::Ringlet(engine)), find(other)) {
                let quantities = compared(scenario).iter();
                quantities.for_each(|quantity| report.add(ratio(scenario, *quantity, (own, other), word)));
            }
        }
    }
}

/// How much better one is than the other, round by round.
fn ratio(scenario: Scenario, quantity: Quantity, (own, other): (&Lane, &Lane), word: &str) -> Figure {
    let what = if scenario == Scenario::Requests { format!(".{}", quantity.id()) } else { String::new() };
    let id = format!("net.{}.{}{what}.of_{word}", scenario.id(), own.who.id());
    let name = match scenario {
        Scenario::Requests => format!("{}, {} of {}", own.who.name(), quantity.id(), other.who.name()),
        _ => format!("{}, of {}", own.who.name(), other.who.name()),
    };
    if let Some(why_not) = own.why_not().or(other.why_not()) {
        return Figure::missing(id, scenario.name(), name, Unit::Ratio, why_not);
    }
    let samples = own.runs.iter().zip(&other.runs).map(|(own, other)| better(quantity, own, other)).collect();
    Figure::new(id, scenario.name(), name, Unit::Ratio, &samples)
}

#[cfg(test)]
#[path = "lane_test.rs"]
mod tests;
