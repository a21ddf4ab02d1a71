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
