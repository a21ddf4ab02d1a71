use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const PACE: Pace = Pace { tick: 4 * MS };

fn look(left: u64) -> Look {
    Look {
        now: 1000 * MS,
        left,
        period_end: 1100 * MS,
        period: 100 * MS,
        users: 1,
        idle_looks: 0,
        sleeps: false,
        exact: None,
    }
}

fn alarm(cpu: u64, wake: u64) -> Alarm {
    Alarm { set_at: 1000 * MS, cpu, wake, near: false, watch: 0 }
}

fn near(cpu: u64, wake: u64) -> Alarm {
    Alarm { near: true, ..alarm(cpu, wake) }
}

#[test]
fn far_from_the_end_only_cpu_time_is_watched_a_tick_early() {
    assert_eq!(PACE.alarm(look(50 * MS), 0), alarm(50 * MS - 4_500_000, 1100 * MS));
}

#[test]
fn a_vcpu_that_sleeps_now_and_then_is_watched_by_the_event_loop() {
    let bursty = Look { sleeps: true, ..look(50 * MS) };
    assert_eq!(PACE.alarm(bursty, 0), Alarm { watch: 1050 * MS, ..alarm(50 * MS, 1100 * MS) });
}

#[test]
fn near_the_end_real_time_is_watched_too() {
    assert_eq!(PACE.alarm(look(3 * MS), 0), near(3 * MS, 1003 * MS));
    let late = Look { period_end: 1001 * MS, ..look(3 * MS) };
    assert_eq!(PACE.alarm(late, 0), near(3 * MS, 1001 * MS), "then there is a new quota");
}

#[test]
fn several_users_get_their_parts_but_no_part_is_too_small() {
    let two = |left| Look { users: 2, ..look(left) };
    assert_eq!(PACE.alarm(two(6 * MS), 0).wake, 1003 * MS);
    assert_eq!(PACE.alarm(two(40_000), 0).wake, 1000 * MS + 40_000);
}

#[test]
fn a_vcpu_that_slept_is_woken_once_a_period_and_watched_by_its_cpu_time() {
    let set = PACE.alarm(look(3 * MS), 0);
    let slept = Progress { nanos: 0, slept: true };
    let quiet = Pace::quiet_until(1003 * MS, set, slept, 100 * MS, 0);
    assert_eq!(quiet, 1103 * MS);
    let later = Look { now: 1003 * MS, ..look(3 * MS) };
    let next = PACE.alarm(later, quiet);
    assert_eq!((next.wake, next.watch), (quiet, 1006 * MS), "the event loop looks instead");
    assert_eq!(next.cpu, 3 * MS);
    let ran = Progress { nanos: next.cpu, slept: true };
    assert_eq!(Pace::quiet_until(1050 * MS, next, ran, 100 * MS, quiet), 0);
    assert_eq!(
        Pace::quiet_until(quiet, next, ran, 100 * MS, quiet),
        quiet + 100 * MS,
        "it took all that time"
    );
    let little = Progress { nanos: next.cpu - 1, slept: true };
    assert_eq!(Pace::quiet_until(1050 * MS, next, little, 100 * MS, quiet), quiet);
}

#[test]
fn the_event_loop_looks_when_all_may_be_used_until_nothing_was_for_a_period() {
    assert_eq!(Pace::watch(look(3 * MS), 0), Some(1003 * MS));
    assert_eq!(Pace::watch(look(60 * MS), 99 * MS), Some(1060 * MS));
    assert_eq!(Pace::watch(look(60 * MS), 100 * MS), None);
    assert_eq!(Pace::watch(look(1), 0), Some(1000 * MS + 2 * STEP));
    assert_eq!(Pace::watch(look(1), 1), Some(1000 * MS + 8 * STEP));
    let late = Look { period_end: 1001 * MS, ..look(3 * MS) };
    assert_eq!(Pace::watch(late, 0), Some(1001 * MS), "then there is a new quota");
}

#[test]
fn a_vcpu_that_waits_for_a_cpu_is_not_taken_to_be_asleep() {
    let set = PACE.alarm(look(3 * MS), 0);
    let waited = Progress { nanos: 0, slept: false };
    assert_eq!(Pace::quiet_until(1003 * MS, set, waited, 100 * MS, 0), 0);
}

#[test]
fn a_vm_that_does_nothing_is_looked_at_ever_less() {
    let idle = |idle_looks| PACE.alarm(Look { idle_looks, ..look(50 * MS) }, 0).wake - 1000 * MS;
    assert_eq!([1, 2, 3, 4, 60].map(idle), [200 * MS, 400 * MS, 800 * MS, 1000 * MS, 1000 * MS]);
    let long = Look { period: 1000 * MS, idle_looks: 5, ..look(50 * MS) };
    assert_eq!(PACE.alarm(long, 0).wake, 2000 * MS);
}

#[test]
fn with_exact_timers_real_time_only_tells_of_new_periods() {
    for left in [60 * MS, 3 * MS, 1] {
        let exact = |nanos| Look { exact: Some(nanos), sleeps: true, ..look(left) };
        assert_eq!(PACE.alarm(exact(2 * MS), 0), alarm(2 * MS, 1100 * MS));
        assert_eq!(PACE.alarm(exact(2 * MS), 1150 * MS), alarm(2 * MS, 1150 * MS));
    }
    let idle = Look { exact: Some(2 * MS), idle_looks: 2, ..look(50 * MS) };
    assert_eq!(PACE.alarm(idle, 0), alarm(2 * MS, 1400 * MS));
}

#[test]
fn who_ran_gets_more_of_what_is_left() {
    let shares = Shares::new(18 * MS, [true, false, true, false].into_iter(), false);
    assert_eq!((shares.of(true), shares.of(false)), (8 * MS, MS));
    let with_the_loop = Shares::new(17 * MS, [true, false].into_iter(), true);
    assert_eq!((with_the_loop.of(true), with_the_loop.of(false)), (8 * MS, MS));
    assert_eq!(Shares::new(50, [true].into_iter(), false).of(true), SHORTEST);
}

#[test]
fn others_give_back_what_is_too_much_only_when_nothing_else_is_free() {
    let shares = Shares::new(18 * MS, [true, true].into_iter(), false);
    let claim = |held| shares.claim(true, held);
    assert_eq!(claim(0), Claim { nanos: 9 * MS, give_back: false });
    assert_eq!(claim(12 * MS), Claim { nanos: 6 * MS, give_back: false });
    assert_eq!(claim(18 * MS - 2 * SHORTEST), Claim { nanos: 2 * SHORTEST, give_back: false });
    assert_eq!(claim(18 * MS - SHORTEST), Claim { nanos: 9 * MS, give_back: true });
    assert_eq!(claim(100 * MS), Claim { nanos: 9 * MS, give_back: true });
    assert!(shares.is_excess(true, 15 * MS) && !shares.is_excess(true, 9 * MS + SHORTEST));
}

proptest! {
    /// As long as nobody is asked to give something back, all together are never allowed more than is left, but for what it
    /// takes to come out.
    #[test]
    fn sec_02_claims_are_never_more_than_there_is(left in 0..u64::MAX, held in 0..u64::MAX, active: bool, other: bool) {
        let claim = Shares::new(left, [active, other].into_iter(), false).claim(active, held);
        prop_assert!(claim.nanos >= SHORTEST);
        prop_assert!(claim.nanos <= left.max(SHORTEST));
        prop_assert!(claim.give_back || claim.nanos <= left.saturating_sub(held).max(SHORTEST));
    }
}

#[test]
fn sec_02_timers_are_always_set() {
    for left in [1, 1000, MS, 100 * MS, u64::MAX] {
        for users in [0, 1, 3, u64::MAX] {
            for now in [0, u64::MAX] {
                let alarm = PACE.alarm(Look { now, users, ..look(left) }, u64::MAX);
                assert!(alarm.cpu > 0 && alarm.cpu <= left.max(1));
            }
        }
    }
}
