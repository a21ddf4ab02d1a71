use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const TENTH: Max = Max { quota: 10 * MS, period: 100 * MS };

fn left(nanos: u64, period_end: u64) -> Standing {
    Standing::Left { nanos, period_end }
}

#[test]
fn a_quota_is_used_up_and_comes_again_with_the_next_period() {
    let mut budget = Budget::new(TENTH, 5 * MS, 7 * MS);
    assert_eq!(budget.charge(5 * MS, 7 * MS), left(10 * MS, 105 * MS));
    assert_eq!(budget.charge(9 * MS, 11 * MS), left(6 * MS, 105 * MS));
    assert_eq!(budget.charge(15 * MS, 17 * MS), Standing::Throttled { until: 105 * MS });
    assert_eq!(budget.charge(104 * MS, 17 * MS), Standing::Throttled { until: 105 * MS });
    assert_eq!(budget.charge(105 * MS, 17 * MS), left(10 * MS, 205 * MS));
    let stat = Stat { periods: 1, throttled_periods: 1, throttled_nanos: 90 * MS, overrun_nanos: 0 };
    assert_eq!(budget.stat(), stat);
}

#[test]
fn what_was_not_used_lapses() {
    let mut budget = Budget::new(TENTH, 0, 0);
    budget.charge(100 * MS, 4 * MS);
    assert_eq!(budget.charge(100 * MS, 4 * MS), left(10 * MS, 200 * MS));
    assert_eq!(budget.charge(10_000 * MS, 4 * MS), left(10 * MS, 10_100 * MS));
}

#[test]
fn what_was_used_too_much_is_taken_off_the_periods_after() {
    let mut budget = Budget::new(TENTH, 0, 0);
    assert_eq!(budget.charge(34 * MS, 34 * MS), Standing::Throttled { until: 300 * MS });
    assert_eq!(budget.charge(250 * MS, 34 * MS), Standing::Throttled { until: 300 * MS });
    // But for what stopping is expected to take from now on.
    assert_eq!(budget.charge(300 * MS, 34 * MS), left(6 * MS - 125_000, 400 * MS));
    let stat = Stat { periods: 3, throttled_periods: 3, throttled_nanos: 266 * MS, overrun_nanos: 24 * MS };
    assert_eq!(budget.stat(), stat);
}

#[test]
fn a_rest_that_is_not_worth_entering_for_counts_as_none_and_is_not_lost() {
    let mut budget = Budget::new(TENTH, 0, 0);
    let used = 10 * MS - GRAIN;
    assert_eq!(budget.charge(10 * MS, used), Standing::Throttled { until: 100 * MS });
    assert_eq!(budget.charge(100 * MS, used), left(10 * MS + GRAIN, 200 * MS));
    let used = used + 10 * MS;
    assert_eq!(budget.charge(110 * MS, used), Standing::Throttled { until: 200 * MS });
    // However long nobody looks, no more is kept.
    assert_eq!(budget.charge(1000 * MS, used), left(10 * MS + GRAIN, 1100 * MS));
    assert_eq!(budget.stat().overrun_nanos, 0);
}

#[test]
fn a_vm_is_told_to_stop_as_much_earlier_as_it_was_late_before() {
    let mut budget = Budget::new(TENTH, 0, 0);
    let (mut now, mut used, mut overruns) = (0, 0, Vec::new());
    for period in 1..=50 {
        let before = budget.stat().overrun_nanos;
        while let Standing::Left { nanos, .. } = budget.charge(now, used) {
            (now, used) = (now + nanos, used + nanos);
        }
        // It is told, and its other vCPU goes on for a while.
        (now, used) = (now + 200_000, used + 200_000);
        budget.charge(now, used);
        now = period * 100 * MS;
        budget.charge(now, used);
        overruns.push(budget.stat().overrun_nanos - before);
    }
    assert_eq!(overruns[0], 200_000);
    assert!(overruns[20..].iter().all(|late| *late < 60_000), "{overruns:?}");
    assert!(used.abs_diff(50 * 10 * MS) < 300_000, "{used}: all of its quota");
}

#[test]
fn who_is_woken_by_a_new_period_is_not_late() {
    let mut budget = Budget::new(TENTH, 0, 0);
    budget.charge(11 * MS, 11 * MS);
    // Its threads look 0.3 ms after the beginning, having used that.
    budget.charge(100 * MS + 300_000, 11 * MS + 300_000);
    assert_eq!(budget.stat().overrun_nanos, MS);
    // Unless they used more than there was time for since.
    budget.charge(150 * MS, 21 * MS);
    budget.charge(200 * MS + 300_000, 23 * MS);
    assert_eq!(budget.stat().overrun_nanos, MS + 2 * MS + 700_000);
}

#[test]
fn a_period_that_nobody_saw_begin_is_taken_to_be_used_evenly() {
    let mut budget = Budget::new(TENTH, 0, 0);
    budget.charge(50 * MS, 0);
    // Between 50 and 150 ms it used 8 ms: 4 of them before the new period.
    assert_eq!(budget.charge(150 * MS, 8 * MS), left(6 * MS, 200 * MS));
}

#[test]
fn clocks_that_go_back_stand_still() {
    let mut budget = Budget::new(TENTH, 50 * MS, 50 * MS);
    budget.charge(60 * MS, 55 * MS);
    assert_eq!(budget.charge(0, 0), left(5 * MS, 150 * MS));
}

#[test]
fn periods_without_use_are_not_counted() {
    let mut budget = Budget::new(TENTH, 0, 0);
    budget.charge(1_000 * MS, 0);
    assert_eq!(budget.stat(), Stat::default());
    budget.charge(1_200 * MS, MS);
    assert_eq!(budget.stat().periods, 2);
}

#[test]
fn a_new_limit_holds_at_once_and_old_overrun_is_still_owed() {
    let mut budget = Budget::new(TENTH, 0, 0);
    budget.charge(20 * MS, 15 * MS);
    let double = Max { quota: 20 * MS, period: 50 * MS };
    assert_eq!(budget.set_max(double, 30 * MS, 15 * MS), left(15 * MS - 125_000, 80 * MS));
    assert_eq!(budget.max(), double);
    assert_eq!(budget.stat().overrun_nanos, 5 * MS);
    let tiny = Max { quota: MS, period: 1000 * MS };
    assert_eq!(budget.set_max(tiny, 31 * MS, 40 * MS), Standing::Throttled { until: 10_031 * MS });
}

#[test]
fn sec_02_no_numbers_overflow() {
    for max in [Max { quota: MS, period: MS }, Max { quota: 32_000 * MS, period: 1_000 * MS }] {
        let mut budget = Budget::new(max, 0, 0);
        for (now, used) in [(u64::MAX, 0), (u64::MAX, u64::MAX), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            budget.charge(now, used);
        }
        let mut late = Budget::new(max, u64::MAX, u64::MAX);
        late.charge(u64::MAX, u64::MAX);
        late.set_max(TENTH, u64::MAX, u64::MAX);
    }
}

/// What a guest does next: for how long it goes on (µs), and what part of the CPUs it uses (percent).
type Step = (u64, u64);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((1..40_000_u64, prop_oneof![Just(0), Just(100), 0..=100_u64]), 1..200)
}

fn maxes() -> impl Strategy<Value = Max> {
    let quotas = prop_oneof![1_000..5_000_u64, 1_000..400_000_u64];
    (quotas, 1_000..=1_000_000_u64)
        .prop_map(|(quota, period)| Max { quota: quota * 1000, period: period * 1000 })
}

proptest! {
    /// Whatever a guest does, it is never told that it may use more than a quota for each period that has begun; and
    /// what it uses without being looked at is all that it can have beyond.
    #[test]
    fn sec_02_no_more_is_granted_than_a_quota_a_period(max in maxes(), cpus in 1..4_u64, steps in steps()) {
        let mut budget = Budget::new(max, 0, 0);
        let (mut now, mut used, mut most_unseen) = (0, 0, 0);
        for (time, percent) in steps {
            let begun = now / max.period + 1;
            match budget.charge(now, used) {
                Standing::Left { nanos, period_end } => {
                    prop_assert!(used + nanos <= begun * max.quota);
                    prop_assert!(nanos <= 2 * max.quota);
                    prop_assert!(period_end > now && period_end <= now + max.period);
                    let more = time * 1000 * cpus * percent / 100;
                    most_unseen = more.max(most_unseen);
                    used += more;
                    now += time * 1000;
                }
                Standing::Throttled { until } => {
                    prop_assert!(until > now);
                    now = until.min(now + time * 1000);
                }
            }
            prop_assert!(used <= (now / max.period + 1) * max.quota + most_unseen);
        }
        prop_assert!(budget.stat().throttled_nanos <= now);
        prop_assert!(budget.stat().throttled_periods <= now / max.period + 1);
        prop_assert!(budget.stat().periods <= now / max.period);
    }

    /// A guest that always wants to run gets all that it is granted, however late it is stopped.
    #[test]
    fn a_guest_that_always_runs_gets_its_whole_quota(max in maxes(), late in 0..5_000_000_u64) {
        prop_assume!(max.quota < max.period);
        let mut budget = Budget::new(max, 0, 0);
        let (mut now, mut used) = (0, 0);
        while now < 100 * max.period {
            match budget.charge(now, used) {
                Standing::Left { nanos, .. } => (now, used) = (now + nanos + late, used + nanos + late),
                Standing::Throttled { until } => {
                    let standing = budget.charge(until, used);
                    prop_assert!(matches!(standing, Standing::Left { .. }), "{standing:?}");
                    now = until;
                }
            }
        }
        let ended = now / max.period;
        // When it is stopped late in every period, it may owe as much, or be that far into the next.
        prop_assert!(used + late + max.quota >= ended * max.quota, "{used} in {ended} periods");
        prop_assert!(used <= (ended + 1) * max.quota + late);
    }
}
