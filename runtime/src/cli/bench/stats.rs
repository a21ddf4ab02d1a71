//! Samples and what is said of them: median, p90 and the ends. Pure.

use std::time::Duration;

use serde::Serialize;

/// Measured values of one quantity, in its base unit.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds a duration, in seconds.
    pub(super) fn push_time(&mut self, time: Duration) {
        self.push(time.as_secs_f64());
    }

    /// Adds all of `others`.
    pub(super) fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// The smallest one that at least 99 of 100 do not exceed; `None` without samples.
    pub(super) fn p99(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        percentile(&sorted, 99)
    }

    /// `None` without samples.
    pub(super) fn summary(&self) -> Option<Summary> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let (median, p90) = (median(&sorted)?, percentile(&sorted, 90)?);
        Some(Summary { samples: sorted.len(), median, p90, min, max })
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// What is said of some samples. All values are in the quantity's base unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Summary {
    /// How many there are; at least 1.
    pub(super) samples: usize,
    /// The middle one, or the mean of the two in the middle.
    pub(super) median: f64,
    /// The smallest one that at least nine tenths do not exceed.
    pub(super) p90: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    match sorted.len() % 2 {
        0 => Some(f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, upper)),
        _ => Some(upper),
    }
}

/// Nearest rank: the smallest sample that at least `percent` of them do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(values: impl IntoIterator<Item = u32>) -> Summary {
        values.into_iter().map(f64::from).collect::<Samples>().summary().unwrap()
    }

    #[test]
    fn nothing_is_said_of_no_samples() {
        assert_eq!(Samples::default().summary(), None);
    }

    #[test]
    fn order_does_not_matter() {
        let expected = Summary { samples: 5, median: 3.0, p90: 5.0, min: 1.0, max: 5.0 };
        assert_eq!(summary([1, 2, 3, 4, 5]), expected);
        assert_eq!(summary([4, 1, 5, 3, 2]), expected);
    }

    #[test]
    fn an_even_number_has_its_median_between_two() {
        assert_eq!(summary([1, 2, 3, 10]).median, 2.5);
    }

    #[test]
    fn p90_is_the_nearest_rank() {
        assert_eq!(summary(1..=10).p90, 9.0);
        assert_eq!(summary(1..=100).p90, 90.0);
        assert_eq!(summary([7]).p90, 7.0);
    }

    #[test]
    fn p99_is_the_nearest_rank() {
        let p99 = |most: u32| (1..=most).map(f64::from).collect::<Samples>().p99();
        assert_eq!((p99(0), p99(25), p99(100), p99(200)), (None, Some(25.0), Some(99.0), Some(198.0)));
    }
}
