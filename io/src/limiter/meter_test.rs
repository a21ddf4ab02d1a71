use proptest::prelude::*;

use super::*;

fn at(nanos: u64) -> MonoTime {
    MonoTime::from_nanos(nanos)
}

fn bucket(size: u64, one_time_burst: u64, refill: u64) -> TokenBucket {
    TokenBucket { size, one_time_burst, refill_time: Duration::from_nanos(refill) }
}

fn meter(size: u64, burst: u64, refill: u64) -> Meter {
    Meter::new(bucket(size, burst, refill), at(0)).unwrap().unwrap()
}

/// Takes `n` as soon as that may be, but not before `asked`; says when.
fn grant(meter: &mut Meter, n: u64, asked: MonoTime) -> MonoTime {
    let instant = meter.earliest(n).max(asked);
    meter.charge(n, instant);
    instant
}

#[test]
fn it_starts_full_and_refills_at_its_rate() {
    let mut meter = meter(10, 0, 1_000);
    assert_eq!(grant(&mut meter, 10, at(0)), at(0));
    assert_eq!(meter.earliest(0), at(0));
    assert_eq!(meter.earliest(1), at(100));
    assert_eq!(meter.earliest(10), at(1_000));
    assert_eq!(grant(&mut meter, 3, at(0)), at(300));
    // Idleness fills it, and no more than that.
    assert_eq!(grant(&mut meter, 10, at(1_000_000)), at(1_000_000));
    assert_eq!(meter.earliest(1), at(1_000_100));
}

#[test]
fn the_burst_is_extra_spent_first_and_does_not_come_back() {
    let mut meter = meter(10, 5, 1_000);
    assert_eq!(grant(&mut meter, 4, at(0)), at(0));
    assert_eq!(meter.burst(), 1);
    // One from the burst and ten from the bucket.
    assert_eq!(grant(&mut meter, 11, at(0)), at(0));
    assert_eq!(meter.burst(), 0);
    assert_eq!(meter.earliest(1), at(100));
    assert_eq!(grant(&mut meter, 10, at(50_000)), at(50_000));
    assert_eq!(meter.earliest(1), at(50_100));
}

#[test]
fn nothing_is_refilled_while_burst_is_left() {
    let mut meter = meter(10, 100, 1_000);
    assert_eq!(grant(&mut meter, 99, at(0)), at(0));
    // However long that takes, only what is left of the burst and a full bucket are there.
    assert_eq!(grant(&mut meter, 11, at(1_000_000)), at(1_000_000));
    assert_eq!(meter.earliest(1), at(1_000_100));
}

#[test]
fn a_request_above_the_size_waits_for_the_full_bucket_and_pays_in_full() {
    let mut meter = meter(10, 0, 1_000);
    assert_eq!(grant(&mut meter, 25, at(0)), at(0));
    // Fifteen are owed.
    assert_eq!(meter.earliest(0), at(1_500));
    assert_eq!(meter.earliest(1), at(1_600));
    assert_eq!(meter.earliest(1_000), at(2_500));
}

#[test]
fn zero_is_no_limit() {
    for zero in [TokenBucket::ZERO, bucket(0, 7, 1_000), bucket(10, 7, 0)] {
        assert!(zero.is_zero());
        assert_eq!(Meter::new(zero, at(0)), Ok(None));
    }
}

#[test]
fn a_refill_time_beyond_the_clock_is_refused() {
    for refill_time in [MAX_REFILL_TIME + Duration::from_nanos(1), Duration::from_secs(u64::MAX)] {
        let bucket = TokenBucket { size: 1, one_time_burst: 0, refill_time };
        assert_eq!(Meter::new(bucket, at(0)), Err(LimitError::RefillTime(refill_time)));
        assert!(bucket.check().is_err());
    }
    assert!(TokenBucket::new(1, MAX_REFILL_TIME).check().is_ok());
}

#[test]
fn a_charge_belongs_to_the_instant_at_which_its_tokens_were_there() {
    let mut meter = meter(10, 0, 1_000);
    assert_eq!(grant(&mut meter, 10, at(0)), at(0));
    // Whoever waits for the full bucket and wakes late has lost nothing: the next time is the same.
    for period in 1..=100 {
        assert_eq!(grant(&mut meter, 10, at(0)), at(period * 1_000));
    }
}

#[test]
fn a_clock_that_goes_back_gives_nothing() {
    let mut meter = meter(10, 0, 1_000);
    assert_eq!(grant(&mut meter, 10, at(5_000)), at(5_000));
    meter.charge(1, at(3_000));
    assert_eq!(meter.earliest(0), at(5_100));
    // The time between is not counted twice.
    meter.charge(0, at(5_050));
    meter.charge(0, at(4_000));
    meter.charge(0, at(5_100));
    assert_eq!(meter.earliest(1), at(5_200));
}

#[test]
fn extremes_neither_overflow_nor_create_tokens() {
    let longest = u64::try_from(MAX_REFILL_TIME.as_nanos()).unwrap();
    for size in [1, 2, u64::MAX - 1, u64::MAX] {
        for refill in [1, 3, longest - 1, longest] {
            for burst in [0, 1, u64::MAX] {
                let mut meter = meter(size, burst, refill);
                assert_eq!(meter.earliest(u64::MAX), at(0));
                meter.charge(u64::MAX, at(0));
                meter.charge(burst, at(0));
                let (owed, free) = (meter.earliest(0), meter.earliest(u64::MAX));
                assert!(owed <= free);
                let debt = u128::from(u64::MAX) - u128::from(size);
                let nanos = (debt * u128::from(refill)).div_ceil(u128::from(size));
                assert_eq!(u128::from(owed.as_nanos()), nanos.min(u128::from(u64::MAX)));
                meter.charge(u64::MAX, at(u64::MAX));
                meter.charge(u64::MAX, at(u64::MAX));
                meter.charge(u64::MAX, at(u64::MAX));
                assert_eq!(meter.earliest(0).max(meter.full_at()), at(u64::MAX));
                let _ = meter.length(u64::MAX);
            }
        }
    }
}

#[test]
fn years_of_idleness_fill_it_once() {
    let mut meter = meter(1 << 40, 0, 1_000_000);
    meter.charge(1 << 40, at(0));
    let century = at(100 * 365 * 86_400 * 1_000_000_000);
    meter.charge(1 << 40, century);
    assert_eq!(meter.earliest(1 << 40), century + Duration::from_millis(1));
}

#[test]
fn what_is_given_back_was_never_taken() {
    let mut meter = meter(10, 5, 1_000);
    let untouched = meter.clone();
    let taken = meter.take(12, at(0));
    meter.give_back(taken);
    assert_eq!(meter, untouched);
    // Neither does the refill meanwhile make more of it.
    let taken = meter.take(15, at(0));
    meter.charge(0, at(700));
    meter.give_back(taken);
    assert_eq!((meter.burst(), meter.full_at()), (5, at(700)));
    meter.charge(5, at(700));
    assert_eq!(meter.earliest(10), at(700));
    assert_eq!(meter.earliest(11), at(700));
    meter.charge(10, at(700));
    assert_eq!(meter.earliest(1), at(800));
}

#[test]
fn it_goes_on_from_a_saved_state() {
    let mut meter = meter(10, 5, 1_000);
    meter.charge(22, at(0));
    let saved = meter.save(at(350));
    assert_eq!(saved, MeterState { burst: 0, balance: -7 * 1_000, elapsed: 350 });
    let restored = Meter::restore(bucket(10, 5, 1_000), saved, at(70_350)).unwrap().unwrap();
    for n in [0, 1, 10, 100] {
        assert_eq!(restored.earliest(n).as_nanos(), meter.earliest(n).as_nanos() + 70_000);
    }
}

#[test]
fn sec_10_an_impossible_saved_state_is_refused() {
    let full = 10 * 1_000;
    let sound = MeterState { burst: 5, balance: full, elapsed: u64::MAX };
    let restore = |state| Meter::restore(bucket(10, 5, 1_000), state, at(9));
    assert_eq!(restore(sound).unwrap().unwrap().full_at(), at(9));
    let refused = |state, field| assert_eq!(restore(state), Err(LimitError::State { field }));
    refused(MeterState { burst: 6, ..sound }, "burst");
    refused(MeterState { balance: full + 1, ..sound }, "balance");
    refused(MeterState { balance: i128::MAX, ..sound }, "balance");
    refused(MeterState { balance: i128::MIN, ..sound }, "balance");
    let deepest = -i128::from(u64::MAX) * 1_000;
    refused(MeterState { balance: deepest - 1, ..sound }, "balance");
    assert!(restore(MeterState { balance: deepest, elapsed: 0, ..sound }).is_ok());
}

/// The rules, told one nanosecond after the other, in units of which a token has `refill` and which cannot
/// overflow where it is used.
#[derive(Clone)]
struct Model {
    size: i64,
    refill: i64,
    burst: i64,
    balance: i64,
    now: u64,
}

impl Model {
    fn tick(&mut self) {
        self.now += 1;
        self.balance = (self.balance + self.size).min(self.size * self.refill);
    }

    fn admits(&self, n: u64) -> bool {
        let rest = (i64::try_from(n).unwrap() - self.burst).max(0);
        self.balance >= rest.min(self.size) * self.refill
    }

    fn charge(&mut self, n: u64) {
        let n = i64::try_from(n).unwrap();
        let burst = n.min(self.burst);
        self.burst -= burst;
        self.balance -= (n - burst) * self.refill;
    }
}

/// Every sequence of requests and pauses of the depth, against the model; gives how many states it saw.
fn explore(meter: &Meter, model: &Model, depth: u32) -> u64 {
    let mut seen = 1;
    let largest = u64::try_from(model.size + model.burst).unwrap() + 2;
    for n in 0..=largest {
        let mut reference = model.clone();
        while !reference.admits(n) {
            reference.tick();
        }
        let due = at(reference.now);
        assert_eq!(meter.earliest(n).max(at(model.now)), due, "{meter:?} asked for {n}");
        let mut charged = meter.clone();
        charged.charge(n, due);
        reference.charge(n);
        assert_eq!(charged.balance, i128::from(reference.balance), "{meter:?} after {n}");
        assert_eq!(charged.burst, u64::try_from(reference.burst).unwrap());
        let (again, elapsed) = (charged.save(due), 3);
        let saved = MeterState { elapsed, ..again };
        let later = Meter::restore(meter.bucket, saved, due).unwrap().unwrap();
        for pause in 0..=3 {
            if pause == elapsed {
                assert_eq!(later.balance, i128::from(reference.balance), "saved and restored");
            }
            if depth > 0 {
                seen += explore(&charged, &reference, depth - 1);
            }
            reference.tick();
        }
    }
    seen
}

/// With what `extremes_neither_overflow_nor_create_tokens` shows this is the proof of the arithmetic: it does the
/// same as the rules in every small case, and large numbers differ from small ones only by overflow.
#[test]
fn every_small_case_is_what_the_rules_say() {
    let mut seen = 0;
    for size in 1..=4 {
        for refill in 1..=5 {
            for burst in 0..=2 {
                let meter = meter(size, burst, refill);
                let [size, refill, burst] = [size, refill, burst].map(|n| i64::try_from(n).unwrap());
                let model = Model { size, refill, burst, balance: size * refill, now: 0 };
                seen += explore(&meter, &model, 3);
            }
        }
    }
    assert!(seen > 500_000, "{seen}");
}

/// Sizes and times of every magnitude.
fn magnitude(largest: u32) -> impl Strategy<Value = u64> {
    (0..=largest).prop_flat_map(|bits| {
        let top = 1_u64 << bits;
        top..=top.saturating_mul(2).saturating_sub(1).max(top)
    })
}

prop_compose! {
    fn buckets()(size in magnitude(63), burst in prop_oneof![Just(0), magnitude(63)], refill in magnitude(61))
        -> TokenBucket { bucket(size, burst, refill) }
}

proptest! {
    /// In any window of charges there is no more than burst + size + rate · T and one request.
    #[test]
    fn sec_02_no_window_has_more_than_its_due(
        bucket in buckets(),
        requests in prop::collection::vec((magnitude(40), magnitude(45), any::<bool>()), 1..40),
    ) {
        let mut meter = Meter::new(bucket, at(0)).unwrap().unwrap();
        let (mut now, mut granted) = (at(0), Vec::new());
        for (n, pause, back) in requests {
            let asked = if back { at(now.as_nanos().saturating_sub(pause)) } else { now + Duration::from_nanos(pause) };
            let instant = grant(&mut meter, n, asked);
            if instant == at(u64::MAX) {
                break; // beyond the clock
            }
            // Charged at a past instant of the clock, it counts at the last one of the meter.
            now = now.max(instant);
            granted.push((now, n));
        }
        let unit = bucket.refill_time.as_nanos();
        for (first, (start, _)) in granted.iter().enumerate() {
            let mut sum = 0_u128;
            for (end, n) in &granted[first..] {
                // The last one may overdraw by what it is larger than what had to be there.
                let due = u128::from((*n).min(bucket.size));
                let allowed = u128::from(bucket.one_time_burst) + u128::from(bucket.size);
                let refill = u128::from(bucket.size) * u128::from(end.nanos_since(*start));
                let asked = (sum + due).saturating_sub(allowed);
                prop_assert!(asked.checked_mul(unit).is_some_and(|units| units <= refill), "{sum} and {n}");
                sum += u128::from(*n);
            }
        }
    }

    /// Whoever waits until the instant that he was told is admitted then, and not a nanosecond before.
    #[test]
    fn nobody_starves_and_nobody_is_early(
        bucket in buckets(),
        requests in prop::collection::vec(magnitude(40), 1..20),
    ) {
        let mut meter = Meter::new(bucket, at(0)).unwrap().unwrap();
        for n in requests {
            let instant = meter.earliest(n);
            if instant == at(u64::MAX) {
                break;
            }
            let mut then = meter.clone();
            then.charge(0, instant);
            prop_assert_eq!(then.earliest(n), instant, "not enough when it was said to be");
            if instant > meter.last {
                let mut before = meter.clone();
                before.charge(0, at(instant.as_nanos() - 1));
                prop_assert_eq!(before.earliest(n), instant, "enough before it was said to be");
            }
            meter.charge(n, instant);
        }
    }

    /// Any saved state that is accepted keeps what a fresh bucket promises.
    #[test]
    fn a_crafted_state_has_no_more_than_a_fresh_bucket(
        bucket in buckets(),
        burst in any::<u64>(),
        balance in any::<i128>(),
        elapsed in any::<u64>(),
        now in any::<u64>(),
    ) {
        if let Ok(Some(meter)) = Meter::restore(bucket, MeterState { burst, balance, elapsed }, at(now)) {
            let fresh = Meter::new(bucket, at(now)).unwrap().unwrap();
            prop_assert!(meter.burst <= fresh.burst && meter.balance <= fresh.balance);
            prop_assert!(meter.full_at() >= fresh.full_at());
        }
    }
}
