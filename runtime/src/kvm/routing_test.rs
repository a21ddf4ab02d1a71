use super::*;

#[test]
fn a_burst_of_route_changes_is_free_and_the_next_ones_wait() {
    let start = Instant::now();
    let mut meter = Meter::default();
    for change in 0..BURST {
        assert_eq!(meter.charge(start), None, "change {change}");
    }
    assert_eq!(meter.charge(start), Some(start + INTERVAL));
    assert_eq!(meter.charge(start), Some(start + 2 * INTERVAL));
}

#[test]
fn sec_02_route_changes_are_held_to_their_rate_however_long_they_go_on() {
    let start = Instant::now();
    let mut meter = Meter::default();
    let mut now = start;
    let changes = 10_000;
    for _ in 0..changes {
        now = meter.charge(now).unwrap_or(now);
    }
    assert_eq!(now - start, INTERVAL * (changes - BURST));
}

#[test]
fn idleness_refills_no_more_than_the_burst() {
    let mut meter = Meter::default();
    let start = Instant::now();
    meter.charge(start);
    let later = start + Duration::from_secs(3600);
    let free = (0..2 * BURST).take_while(|_| meter.charge(later).is_none()).count();
    assert_eq!(free, BURST as usize);
}
