use std::thread;

use super::*;
use crate::kvm::sys::block_asynchronous_signals;

const MILLI: u64 = 1_000_000;
const MAX: Max = Max { quota: 20 * MILLI, period: 100 * MILLI };
const AWAKE: Sleeps = Sleeps { count: 0, waited: false };

/// The account of a limited VM with two vCPUs that have used nothing and hold nothing, both of which are this thread; as a
/// process that may not have exact timers, the test would say so and fail: the suite is run by root.
fn with_state(test: impl FnOnce(State) + Send) {
    thread::scope(|scope| {
        let ended = scope.spawn(|| {
            block_asynchronous_signals().unwrap();
            let member = || {
                let mut member = Member::new().unwrap();
                member.make_timers().unwrap();
                member.ask_for_exact();
                Some(member)
            };
            let members = vec![member(), member()];
            assert!(are_exact(&members), "CAP_PERFMON");
            let enforced = Some(Enforced::new(MAX, 0, 0, 0));
            test(State { members, gone: 0, enforced, weight: 100 });
        });
        ended.join().unwrap();
    });
}

fn left(millis: u64) -> Left {
    Left { now: MILLI, nanos: millis * MILLI, period_end: MAX.period }
}

/// What the timer of vCPU `index`, of two, lets it use.
fn held_by(state: &State, index: usize) -> u64 {
    held_by_others(&state.members, 1 - index)
}

#[test]
fn who_looks_again_takes_no_more_than_before_so_that_nobody_has_to_give_back() {
    with_state(|mut state| {
        assert!(state.go_on(0, AWAKE, left(20)).is_empty());
        assert_eq!(held_by(&state, 0), 10 * MILLI);
        assert!(state.claim_anew(0, left(20)).is_empty());
        assert_eq!(held_by(&state, 0), 10 * MILLI);
        assert!(state.go_on(1, AWAKE, left(20)).is_empty(), "there is enough for both");
        assert_eq!(held_by(&state, 1), 10 * MILLI);
    });
}

#[test]
fn who_holds_what_has_become_scarce_is_brought_out() {
    with_state(|mut state| {
        assert!(state.go_on(0, AWAKE, left(20)).is_empty());
        assert_eq!(state.go_on(1, AWAKE, left(6)), [0], "it may use more than there is");
        assert_eq!(held_by(&state, 1), 3 * MILLI, "and who looks has its own share at once");
        assert!(state.go_on(0, AWAKE, left(6)).is_empty());
        assert_eq!(held_by(&state, 0), 3 * MILLI);
    });
}

#[test]
fn a_vcpu_that_ran_gets_most_and_one_that_woke_for_a_moment_did_not_run() {
    with_state(|mut state| {
        let note = |state: &mut State, time, used: [u64; 2]| {
            let time = state.enforced.as_mut().unwrap().allow(time);
            for (member, used) in state.members.iter_mut().flatten().zip(used) {
                member.progress = used;
                member.note_progress(time);
            }
            state.members.iter().flatten().map(|member| member.active).collect::<Vec<_>>()
        };
        assert_eq!(note(&mut state, MILLI, [MILLI, 0]), [false, false], "too soon to say");
        assert_eq!(note(&mut state, 3 * MILLI, [0, 0]), [true, false], "a quarter of the time, altogether");
        assert_eq!(note(&mut state, MILLI, [MILLI, MILLI]), [true, false]);
        assert_eq!(note(&mut state, 9 * MILLI, [9 * MILLI, 0]), [true, false]);
        assert!(state.go_on(0, AWAKE, left(18)).is_empty());
        assert_eq!(held_by(&state, 0), 16 * MILLI);
    });
}

#[test]
fn nobody_is_given_time_without_a_limit() {
    with_state(|mut state| {
        state.enforced = None;
        assert!(state.go_on(0, AWAKE, left(20)).is_empty() && state.claim_anew(0, left(20)).is_empty());
        assert_eq!(held_by(&state, 0), 0);
        assert!(state.charge(MILLI, 0).is_none());
    });
}

#[test]
fn timers_that_wait_for_ticks_are_taken_back_when_all_have_exact_ones() {
    with_state(|mut state| {
        let ticking =
            |state: &State| state.members.iter().flatten().map(|member| member.ticking).collect::<Vec<_>>();
        let mut late = Member::new().unwrap();
        late.make_timers().unwrap();
        state.members[1] = Some(late);
        state.go_on(0, AWAKE, left(20));
        assert_eq!(ticking(&state), [true; 2], "one has not asked for an exact timer yet");
        state.keep_own_timers(1);
        state.go_on(1, AWAKE, left(20));
        assert_eq!(ticking(&state), [false; 2], "it would wake a vCPU for nothing");
    });
}
