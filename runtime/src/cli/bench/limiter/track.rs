//! What a VM with a CPU limit used, from one throttling to another. Pure.
//!
//! When a VM is throttled it has used what it was granted up to that period, and how much it used too much is known. So
//! between two such moments it should have used a quota for each period that began.

/// A VM's counters at a moment at which it had just been throttled. Times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    /// Periods that had passed.
    pub(super) periods: u64,
    /// How often it had been throttled.
    pub(super) throttled: u64,
    /// CPU time used.
    pub(super) used: u64,
    /// CPU time used beyond its quotas, up to the throttling before this.
    pub(super) overrun: u64,
}

/// Moments of one VM, in order.
#[derive(Debug, Default)]
pub(super) struct Track(Vec<Point>);

impl Track {
    /// Takes `point` if the VM has been throttled since the last one.
    pub(super) fn look(&mut self, point: Point) {
        if self.0.last().is_none_or(|last| point.throttled > last.throttled) {
            self.0.push(point);
        }
    }

    /// Periods between the first moment and the last.
    pub(super) fn periods(&self) -> u64 {
        self.ends().map_or(0, |(first, last)| last.periods - first.periods)
    }

    /// By how much the CPU time obtained differs from `quota` for each period, as a part of the latter.
    pub(super) fn error(&self, quota: u64) -> Option<f64> {
        let (first, last) = self.ends()?;
        let asked = quota.checked_mul(last.periods - first.periods).filter(|&asked| asked > 0)?;
        Some((last.used - first.used) as f64 / asked as f64 - 1.0)
    }

    /// The overrun of each throttling in nanoseconds.
    pub(super) fn overruns(&self) -> Vec<u64> {
        let each = |pair: &[Point]| match pair {
            // Of several at once it is not known which was late: each may have been.
            [before, after] => {
                let count = usize::try_from(after.throttled - before.throttled).unwrap_or(1);
                vec![after.overrun - before.overrun; count]
            }
            _ => Vec::new(),
        };
        self.0.windows(2).flat_map(each).collect()
    }

    fn ends(&self) -> Option<(&Point, &Point)> {
        self.0.first().zip(self.0.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(periods: u64, throttled: u64, used: u64, overrun: u64) -> Point {
        Point { periods, throttled, used, overrun }
    }

    fn track(points: &[Point]) -> Track {
        let mut track = Track::default();
        points.iter().for_each(|point| track.look(*point));
        track
    }

    #[test]
    fn what_was_used_is_compared_with_a_quota_a_period() {
        let track =
            track(&[point(1, 2, 20, 0), point(1, 2, 21, 0), point(2, 3, 31, 1), point(11, 12, 119, 3)]);
        assert_eq!(track.periods(), 10);
        assert!((track.error(10).unwrap() + 0.01).abs() < 1e-9);
    }

    #[test]
    fn one_moment_says_nothing() {
        assert_eq!(track(&[]).error(10), None);
        let one = track(&[point(1, 1, 1, 1)]);
        assert_eq!((one.error(10), one.overruns()), (None, vec![]));
    }

    #[test]
    fn overruns_that_were_not_seen_one_by_one_count_as_all_of_them_each() {
        let track = track(&[point(0, 0, 0, 0), point(1, 1, 1, 5), point(3, 3, 3, 105), point(4, 4, 4, 106)]);
        assert_eq!(track.overruns(), [5, 100, 100, 1]);
    }
}
