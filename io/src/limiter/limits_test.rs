use std::time::Duration;

use super::*;
use crate::limiter::LimiterStats;

const PERIOD: Duration = Duration::from_millis(1);

fn at(nanos: u64) -> MonoTime {
    MonoTime::from_nanos(nanos)
}

fn bucket(size: u64) -> TokenBucket {
    TokenBucket::new(size, PERIOD)
}

fn unit(operations: u64, bytes: u64) -> PerUnit<TokenBucket> {
    PerUnit { operations: Some(bucket(operations)), bytes: Some(bucket(bytes)) }
}

/// Sizes tell the meters apart: operations 10, 20, 40, bytes a hundred times that.
fn all() -> Limits {
    Limits { read: unit(10, 1_000), write: unit(20, 2_000), total: unit(40, 4_000) }
}

fn meters(limits: &Limits) -> Meters {
    Meters::new(limits, at(0)).unwrap()
}

/// Tokens missing from each meter, in the order of the slots; -1 where there is no meter.
fn missing(meters: &Meters) -> [i64; SLOTS] {
    let stats = LimiterStats::default();
    stats.changed(meters);
    let left = stats.tokens(at(0)).into_slots();
    let limits = meters.limits().into_slots();
    std::array::from_fn(|index| match (limits[index], left[index]) {
        (Some(bucket), Some(left)) => i64::try_from(bucket.size).unwrap() - left,
        (None, None) => -1,
        _ => panic!("a figure without a limit, or the reverse"),
    })
}

#[test]
fn a_request_is_charged_to_the_meters_that_it_concerns() {
    for (cost, taken) in [
        (Cost::read(100), [1, 100, 0, 0, 1, 100]),
        (Cost::write(200), [0, 0, 1, 200, 1, 200]),
        (Cost::other(), [0, 0, 1, 0, 1, 0]),
    ] {
        let mut meters = meters(&all());
        let receipt = meters.take(cost, at(0));
        assert_eq!(missing(&meters), taken, "{cost:?}");
        meters.give_back(receipt);
        assert_eq!(missing(&meters), [0; SLOTS]);
    }
}

#[test]
fn it_is_due_when_the_last_of_its_meters_is() {
    let mut meters = meters(&all());
    let _ = meters.take(Cost::read(2_500), at(0));
    // 1,500 bytes of reads are owed, 1,500 in all are left.
    assert_eq!(meters.due(Cost::read(0)), Due { at: at(1_500_000), total: at(0) });
    assert_eq!(meters.due(Cost::write(1_500)), Due { at: at(0), total: at(0) });
    assert_eq!(meters.due(Cost::write(1_900)), Due { at: at(100_000), total: at(100_000) });
    assert_eq!(meters.due(Cost::other()), Due { at: at(0), total: at(0) });
}

#[test]
fn an_operation_without_data_does_not_wait_for_bytes() {
    let total = PerUnit { bytes: Some(bucket(10)), ..PerUnit::default() };
    let mut meters = meters(&Limits { total, ..Limits::default() });
    let _ = meters.take(Cost::read(1_000), at(0));
    assert_eq!(meters.due(Cost::other()).at, at(0));
    // Whereas a read of a length that is not known yet waits until nothing is owed.
    assert_eq!(meters.due(Cost::read(0)).at, at(99_000_000));
}

#[test]
fn no_limits_are_no_wait() {
    let mut meters = Meters::default();
    assert!(meters.limits().is_empty() && !meters.has_total());
    let _ = meters.take(Cost::write(u64::MAX), at(7));
    assert_eq!(meters.due(Cost::write(u64::MAX)).at, at(0));
    assert_eq!(missing(&meters), [-1; SLOTS]);
}

#[test]
fn a_change_fills_what_it_names_and_leaves_the_rest() {
    let mut meters = meters(&all());
    let _ = meters.take(Cost::read(100), at(0));
    let read = PerUnit { operations: Some(TokenBucket::ZERO), bytes: Some(bucket(5)) };
    meters.change(&Limits { read, ..Limits::default() }, at(0)).unwrap();
    assert_eq!(missing(&meters), [-1, 0, 0, 0, 1, 100]);
    assert_eq!(meters.limits().read, PerUnit { operations: None, bytes: Some(bucket(5)) });
}

#[test]
fn a_change_is_made_as_a_whole_or_not_at_all() {
    let mut meters = meters(&all());
    let bad = TokenBucket::new(1, Duration::MAX);
    let total = PerUnit { operations: Some(bucket(1)), bytes: Some(bad) };
    let change = Limits { total, ..Limits::default() };
    assert_eq!(change.check(), Err(LimitError::RefillTime(Duration::MAX)));
    assert!(meters.change(&change, at(0)).is_err());
    assert_eq!(meters.limits(), all());
}

#[test]
fn a_replaced_meter_is_not_given_what_the_old_one_gave() {
    let mut meters = meters(&all());
    let receipt = meters.take(Cost::read(100), at(0));
    let read = PerUnit { operations: None, bytes: Some(bucket(1_000)) };
    meters.change(&Limits { read, ..Limits::default() }, at(0)).unwrap();
    let _ = meters.take(Cost::read(300), at(0));
    meters.give_back(receipt);
    assert_eq!(missing(&meters), [1, 300, 0, 0, 1, 300]);
}

#[test]
fn the_change_to_a_target_names_what_differs() {
    let target = Limits { read: unit(10, 1_500), write: PerUnit::default(), total: unit(40, 4_000) };
    let change = all().change_to(&target);
    let zero = Some(TokenBucket::ZERO);
    let expected = [None, Some(bucket(1_500)), zero, zero, None, None];
    assert_eq!(change.into_slots(), expected);
    let mut meters = meters(&all());
    meters.change(&change, at(0)).unwrap();
    assert_eq!(meters.limits(), target);
    assert!(target.change_to(&target).is_empty());
    assert_eq!(Limits::default().change_to(&target).into_slots(), target.into_slots());
}

#[test]
fn meters_go_on_from_their_states() {
    let mut meters = meters(&all());
    let _ = meters.take(Cost::write(1_234), at(0));
    let state = meters.save(at(10));
    let restored = Meters::restore(&all(), &state, at(10)).unwrap();
    assert_eq!(restored.due(Cost::write(2_000)).at, meters.due(Cost::write(2_000)).at);
    // A limit that was not there starts full; the state of one that is gone is forgotten.
    let limits = Limits { read: unit(1, 1), ..Limits::default() };
    let write_only = LimitsState { write: state.write, ..LimitsState::default() };
    assert_eq!(missing(&Meters::restore(&limits, &write_only, at(0)).unwrap()), [0, 0, -1, -1, -1, -1]);
    // A state that is not of these limits is refused.
    let swapped = LimitsState { read: state.write, ..LimitsState::default() };
    assert!(matches!(Meters::restore(&limits, &swapped, at(0)), Err(LimitError::State { .. })));
}

#[test]
fn the_length_is_that_of_the_scarcest_resource() {
    let meters = meters(&all());
    // A tenth of the operations' period, against a hundredth of the bytes'.
    let tenth = 100_000_u128 << 20;
    assert_eq!(meters.length(Cost::read(10)), tenth);
    assert_eq!(meters.length(Cost::read(500)), 5 * tenth);
    assert_eq!(meters.length(Cost::other()), tenth / 2);
    assert_eq!(Meters::default().length(Cost::other()), 0);
}

#[test]
fn the_figures_for_readers_follow_the_clock() {
    let burst = TokenBucket { one_time_burst: 5, ..bucket(10) };
    let total = PerUnit { operations: None, bytes: Some(burst) };
    let mut meters = meters(&Limits { total, ..Limits::default() });
    let stats = LimiterStats::default();
    stats.changed(&meters);
    let left = |stats: &LimiterStats, nanos| stats.tokens(at(nanos)).total.bytes;
    assert_eq!(left(&stats, 0), Some(15));
    let _ = meters.take(Cost::write(25), at(0));
    stats.admitted(Cost::write(25), &meters);
    assert_eq!((stats.operations.get(), stats.bytes.get()), (1, 25));
    assert_eq!(
        [0, 500_000, 1_000_000, 1_550_000, 9_000_000].map(|t| left(&stats, t).unwrap()),
        [-10, -5, 0, 5, 10]
    );
    assert_eq!(stats.tokens(at(0)).total.operations, None);
}
