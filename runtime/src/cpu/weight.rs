//! `cpu.weight` as the nice value of threads.
//!
//! The kernel gives each step of niceness 1.25 times the CPU time of the next (sched(7)), and shows a group's weight as
//! the nice value that is nearest to it (`cpu.weight.nice`, Documentation/admin-guide/cgroup-v2.rst). The same here.

/// The weight of a VM that does not say, which changes nothing.
pub const DEFAULT_CPU_WEIGHT: u32 = 100;

/// Nice values, from the most favoured.
const NICE: std::ops::RangeInclusive<i32> = -20..=19;
/// CPU time of a nice value, of that of the next.
const STEP: f64 = 1.25;

/// The nice value of a thread with this weight, if that of weight 100 is 0.
pub(crate) fn nice(weight: u32) -> i32 {
    let distance = |nice: i32| (f64::from(DEFAULT_CPU_WEIGHT) * STEP.powi(-nice) - f64::from(weight)).abs();
    NICE.min_by(|a, b| distance(*a).total_cmp(&distance(*b))).unwrap_or(0)
}

/// The nice value of a thread with this weight that had the value `own` before it was given one.
pub(crate) fn nice_from(own: i32, weight: u32) -> i32 {
    (own + nice(weight)).clamp(*NICE.start(), *NICE.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_nearest_nice_values() {
        for (weight, expected) in
            [(1, 19), (2, 18), (50, 3), (79, 1), (80, 1), (100, 0), (125, -1), (200, -3), (10_000, -20)]
        {
            assert_eq!(nice(weight), expected, "{weight}");
        }
    }

    #[test]
    fn what_the_process_runs_at_is_where_weights_begin() {
        assert_eq!(nice_from(0, 50), 3);
        assert_eq!(nice_from(10, 100), 10);
        assert_eq!(nice_from(18, 50), 19);
        assert_eq!(nice_from(-19, 200), -20);
    }
}
