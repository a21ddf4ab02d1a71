//! Targets: what a figure should be, and whether it is. Pure; the numbers are each benchmark's own.

use std::fmt;

use serde::Serialize;

use super::report::{Figure, Unit};

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// Stable identifier.
    pub(super) id: &'static str,
    /// In words.
    pub(super) what: &'static str,
    /// The [`Figure`] it is about.
    pub(super) figure: &'static str,
    /// Which of its numbers.
    pub(super) quantity: Quantity,
    pub(super) limit: Limit,
}

/// A number of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Quantity {
    Median,
    P90,
    /// Its ratio to its baseline.
    Ratio,
    P90OverMedian,
}

/// What the number should be, in the figure's base unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// What became of a target.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Verdict {
    pub(super) id: &'static str,
    pub(super) what: &'static str,
    pub(super) figure: &'static str,
    pub(super) quantity: Quantity,
    pub(super) limit: Limit,
    /// In the figure's base unit, or a ratio; `None` if it could not be measured, which misses the target.
    pub(super) value: Option<f64>,
    pub(super) met: bool,
    #[serde(skip)]
    unit: Unit,
}

impl Target {
    /// Looks for the target's figure and compares.
    pub(super) fn judge(&self, figures: &[Figure]) -> Verdict {
        let Self { id, what, figure, quantity, limit } = *self;
        let found = figures.iter().find(|candidate| candidate.id == figure);
        let value = found.and_then(|figure| quantity.of(figure));
        let met = value.is_some_and(|value| limit.holds(value));
        let unit = match quantity {
            Quantity::Median | Quantity::P90 => found.map_or(Unit::Ratio, |figure| figure.unit),
            Quantity::Ratio | Quantity::P90OverMedian => Unit::Ratio,
        };
        Verdict { id, what, figure, quantity, limit, value, met, unit }
    }
}

impl Quantity {
    fn of(self, figure: &Figure) -> Option<f64> {
        let summary = figure.measured?;
        match self {
            Self::Median => Some(summary.median),
            Self::P90 => Some(summary.p90),
            Self::Ratio => figure.baseline.as_ref().map(|baseline| baseline.ratio),
            Self::P90OverMedian => Some(summary.p90 / summary.median).filter(|ratio| ratio.is_finite()),
        }
    }
}

impl Limit {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        match self.value {
            Some(value) => f.write_str(&self.unit.show(value))?,
            None => f.write_str("not measured")?,
        }
        match self.limit {
            Limit::AtMost(limit) => write!(f, ", at most {}", self.unit.show(limit)),
            Limit::AtLeast(limit) => write!(f, ", at least {}", self.unit.show(limit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stats::Samples;
    use super::*;

    fn figure() -> Figure {
        let samples = [1.0, 2.0, 4.0].into_iter().collect::<Samples>();
        Figure::new("a.b", "a", "b", Unit::Seconds, &samples)
    }

    fn judge(figure: &Figure, quantity: Quantity, limit: Limit) -> Verdict {
        let target = Target { id: "t", what: "it", figure: "a.b", quantity, limit };
        target.judge(std::slice::from_ref(figure))
    }

    #[test]
    fn limits_include_their_value() {
        for (quantity, value) in
            [(Quantity::Median, 2.0), (Quantity::P90, 4.0), (Quantity::P90OverMedian, 2.0)]
        {
            for limit in [Limit::AtMost(value), Limit::AtLeast(value)] {
                assert!(judge(&figure(), quantity, limit).met, "{quantity:?} {limit:?}");
            }
            assert!(!judge(&figure(), quantity, Limit::AtMost(value - 0.1)).met);
            assert!(!judge(&figure(), quantity, Limit::AtLeast(value + 0.1)).met);
        }
    }

    #[test]
    fn a_ratio_needs_a_baseline() {
        let baseline = figure();
        let twice =
            Figure::new("a.b", "a", "b", Unit::Seconds, &[2.0, 4.0, 8.0].into_iter().collect::<Samples>())
                .compared_with(&baseline, "half of it");
        assert_eq!(judge(&twice, Quantity::Ratio, Limit::AtMost(2.0)).value, Some(2.0));
        assert!(!judge(&figure(), Quantity::Ratio, Limit::AtMost(2.0)).met);
    }

    #[test]
    fn what_was_not_measured_is_missed() {
        let missing = Figure::missing("a.b", "a", "b", Unit::Seconds, "no cc");
        let verdict = judge(&missing, Quantity::Median, Limit::AtMost(1e9));
        assert!(!verdict.met);
        assert_eq!(verdict.to_string(), "it: not measured, at most 1000000000.000 s");
        let absent = Target {
            id: "t",
            what: "it",
            figure: "c",
            quantity: Quantity::Median,
            limit: Limit::AtMost(1.0),
        };
        assert!(!absent.judge(&[figure()]).met);
    }
}
