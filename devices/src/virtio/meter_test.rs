use super::*;

#[test]
fn sec_02_a_burst_is_free_and_what_is_above_waits() {
    let mut meter = Meter::default();
    let now = MonoTime::now();
    for n in 0..BURST {
        assert_eq!(meter.charge(now), None, "write {n} is within the burst");
    }
    for n in 1..=10 {
        assert_eq!(meter.charge(now), Some(INTERVAL * n));
    }
    let later = now + INTERVAL * (BURST + 10);
    assert_eq!(meter.charge(later), None, "what was charged is paid");
}

#[test]
fn sec_02_the_rate_holds_in_the_long_run() {
    let mut meter = Meter::default();
    let start = MonoTime::now();
    let mut now = start;
    for _ in 0..10_000u32 {
        if let Some(wait) = meter.charge(now) {
            now = now + wait;
        }
    }
    let free = INTERVAL * BURST;
    assert_eq!(now.since(start), INTERVAL * 10_000 - free);
}
