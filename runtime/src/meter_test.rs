use super::*;

const BURST: u32 = 256;
const INTERVAL: Duration = Duration::from_millis(1);

#[test]
fn a_burst_is_free_and_the_next_ones_wait() {
    let start = Instant::now();
    let mut meter = Meter::new(BURST, INTERVAL);
    for change in 0..BURST {
        assert_eq!(meter.charge(start), None, "piece {change}");
    }
    assert_eq!(meter.charge(start), Some(start + INTERVAL));
    assert_eq!(meter.charge(start), Some(start + 2 * INTERVAL));
}

#[test]
fn sec_02_work_is_held_to_its_rate_however_long_it_goes_on() {
    let start = Instant::now();
    let mut meter = Meter::new(BURST, INTERVAL);
    let mut now = start;
    let pieces = 10_000;
    for _ in 0..pieces {
        now = meter.charge(now).unwrap_or(now);
    }
    assert_eq!(now - start, INTERVAL * (pieces - BURST));
}

#[test]
fn idleness_refills_no_more_than_the_burst() {
    let mut meter = Meter::new(BURST, INTERVAL);
    let start = Instant::now();
    meter.charge(start);
    let later = start + Duration::from_secs(3600);
    let free = (0..2 * BURST).take_while(|_| meter.charge(later).is_none()).count();
    assert_eq!(free, BURST as usize);
}
