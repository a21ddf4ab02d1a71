//! The report: figures, verdicts and the machine, as a table for people and as JSON for programs.
//!
//! The JSON is a stable format, described in `docs/benchmarks.md`: fields may be added, but removing one or
//! changing what it means raises [`SCHEMA`].

use std::borrow::Cow;
use std::io::{self, Write};

use ringlet_metrics::Escaped;
use serde::Serialize;

use super::machine::Machine;
use super::stats::{Samples, Summary};
use super::target::{Target, Verdict};

/// Version of the JSON format.
const SCHEMA: u32 = 1;
/// Columns of the table that hold names.
const NAME_WIDTH: usize = 44;

/// What a figure counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Seconds,
    Bytes,
    PerSecond,
    BytesPerSecond,
    /// A part of something: 1 is all of it.
    Ratio,
    /// As [`Self::Ratio`], of something small: shown in percent.
    Share,
    /// CPU time by time: 1 is one core.
    Cores,
}

impl Unit {
    /// A value for people.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Seconds if value.abs() < 1e-3 => format!("{:.1} µs", value * 1e6),
            Self::Seconds if value.abs() < 1.0 => format!("{:.3} ms", value * 1e3),
            Self::Seconds => format!("{value:.3} s"),
            Self::Bytes => format!("{:.1} KiB", value / 1024.0),
            Self::PerSecond => format!("{value:.0} /s"),
            Self::BytesPerSecond if value < f64::from(10 << 20) => format!("{:.1} KiB/s", value / 1024.0),
            Self::BytesPerSecond => format!("{:.0} MiB/s", value / f64::from(1 << 20)),
            Self::Ratio => format!("{value:.3} ×"),
            Self::Share => format!("{:.3} %", value * 100.0),
            Self::Cores => format!("{:.3} %", value * 100.0),
        }
    }
}

/// One measured quantity.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    /// Stable identifier, `group.name`.
    pub(super) id: String,
    /// The heading that it stands under.
    pub(super) group: Cow<'static, str>,
    /// What was measured, in words.
    pub(super) name: String,
    pub(super) unit: Unit,
    /// `None` if it could not be measured; then `why_not` says why.
    pub(super) measured: Option<Summary>,
    pub(super) why_not: Option<String>,
    pub(super) baseline: Option<Baseline>,
}

/// What a figure is compared with.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Baseline {
    /// The other figure.
    pub(super) figure: String,
    /// The other figure in a word.
    pub(super) label: String,
    /// This figure's median divided by that of the other.
    pub(super) ratio: f64,
}

impl Figure {
    pub(super) fn new(
        id: impl Into<String>,
        group: impl Into<Cow<'static, str>>,
        name: impl Into<String>,
        unit: Unit,
        samples: &Samples,
    ) -> Self {
        let measured = samples.summary();
        let why_not = measured.is_none().then(|| "no sample was taken".to_owned());
        Self {
            id: id.into(),
            group: group.into(),
            name: name.into(),
            unit,
            measured,
            why_not,
            baseline: None,
        }
    }

    /// A figure that this host does not allow to measure.
    pub(super) fn missing(
        id: impl Into<String>,
        group: impl Into<Cow<'static, str>>,
        name: impl Into<String>,
        unit: Unit,
        why_not: impl AsRef<str>,
    ) -> Self {
        let why_not = Some(Escaped(why_not.as_ref()).to_string());
        Self {
            id: id.into(),
            group: group.into(),
            name: name.into(),
            unit,
            measured: None,
            why_not,
            baseline: None,
        }
    }

    /// Puts the figure in relation to another of the same unit.
    pub(super) fn compared_with(mut self, other: &Self, label: impl Into<String>) -> Self {
        if let (Some(own), Some(base)) = (self.measured, other.measured) {
            let ratio = own.median / base.median;
            self.baseline =
                ratio.is_finite().then(|| Baseline { figure: other.id.clone(), label: label.into(), ratio });
        }
        self
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let Some(Summary { samples, median, p90, .. }) = self.measured else {
            let why_not = self.why_not.as_deref().unwrap_or_default();
            return writeln!(out, "  {:<NAME_WIDTH$} not measured: {why_not}", self.name);
        };
        let (median, p90) = (self.unit.show(median), self.unit.show(p90));
        write!(out, "  {:<NAME_WIDTH$} {median:>13} {p90:>13} {samples:>5}", self.name)?;
        match &self.baseline {
            Some(Baseline { label, ratio, .. }) => writeln!(out, "   {ratio:.2} × {label}"),
            None => writeln!(out),
        }
    }
}

/// All that a benchmark found out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: u32,
    bench: &'static str,
    /// Ringlet's version.
    version: &'static str,
    /// Fewer samples than usual.
    quick: bool,
    machine: Machine,
    figures: Vec<Figure>,
    /// What a reader of the figures should know.
    notes: Vec<String>,
    targets: Vec<Verdict>,
    /// Every target is met.
    pub(super) met: bool,
}

impl Report {
    /// An empty report of the benchmark of this name.
    pub(super) fn new(bench: &'static str, quick: bool) -> Self {
        let mut report = Self {
            schema: SCHEMA,
            bench,
            version: env!("CARGO_PKG_VERSION"),
            quick,
            machine: Machine::describe(),
            figures: Vec::new(),
            notes: Vec::new(),
            targets: Vec::new(),
            met: false,
        };
        if cfg!(debug_assertions) {
            report.note("this is a debug build: nothing here says how fast Ringlet is");
        }
        report
    }

    pub(super) fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    pub(super) fn note(&mut self, note: impl AsRef<str>) {
        self.notes.push(Escaped(note.as_ref()).to_string());
    }

    /// The last step: compares with the targets and looks at the machine's load once more.
    pub(super) fn judge(mut self, targets: &[Target]) -> Self {
        self.targets = targets.iter().map(|target| target.judge(&self.figures)).collect();
        self.met = self.targets.iter().all(|verdict| verdict.met);
        self.machine.look_again();
        self
    }

    /// The targets that are not met.
    pub(super) fn missed(&self) -> impl Iterator<Item = &Verdict> {
        self.targets.iter().filter(|verdict| !verdict.met)
    }

    /// Prints the table.
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let quick = if self.quick { " --quick" } else { "" };
        writeln!(out, "ringlet {} bench {}{quick}", self.version, self.bench)?;
        self.machine.print(out)?;
        let mut group = "";
        for figure in &self.figures {
            if figure.group != group {
                group = &figure.group;
                writeln!(out, "\n{group:<0$} {1:>13} {2:>13} {3:>5}", NAME_WIDTH + 2, "median", "p90", "n")?;
            }
            figure.print(out)?;
        }
        if !self.notes.is_empty() {
            writeln!(out, "\nNotes")?;
        }
        for note in &self.notes {
            writeln!(out, "  {note}")?;
        }
        writeln!(out, "\nTargets")?;
        for verdict in &self.targets {
            writeln!(out, "  {:<6} {verdict}", if verdict.met { "met" } else { "MISSED" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
impl Report {
    /// The median of the figure that has this identifier; panics if there is none.
    pub(super) fn median(&self, id: &str) -> Option<f64> {
        let figure = self.figures.iter().find(|figure| figure.id == id);
        figure.unwrap_or_else(|| panic!("there is no {id}")).measured.map(|measured| measured.median)
    }

    pub(super) fn has(&self, id: impl Fn(&str) -> bool) -> bool {
        self.figures.iter().any(|figure| id(&figure.id))
    }
}

#[cfg(test)]
#[path = "report_test.rs"]
mod tests;
