use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn passes(gcra: &mut Gcra, now: u64, rate: Rate) -> bool {
    gcra.admit(now, rate) != Verdict::Suppress
}

#[test]
fn a_burst_then_one_each_interval() {
    let mut gcra = Gcra::new();
    let at_once = (0..100).filter(|_| passes(&mut gcra, 0, Rate::LOG_LINES)).count();
    assert_eq!(at_once, 10);
    assert!(!passes(&mut gcra, SECOND - 1, Rate::LOG_LINES));
    assert_eq!(gcra.admit(SECOND, Rate::LOG_LINES), Verdict::Pass { suppressed: 91 });
    assert!(!passes(&mut gcra, SECOND, Rate::LOG_LINES));
    assert_eq!(gcra.admit(2 * SECOND, Rate::LOG_LINES), Verdict::Pass { suppressed: 1 });
}

#[test]
fn silence_earns_the_burst_and_no_more() {
    let mut gcra = Gcra::new();
    while passes(&mut gcra, 0, Rate::LOG_LINES) {}
    let later = 1_000_000 * SECOND;
    assert_eq!((0..100).filter(|_| passes(&mut gcra, later, Rate::LOG_LINES)).count(), 10);
}

#[test]
fn the_ends_of_the_clock_neither_panic_nor_open_the_gate() {
    let mut gcra = Gcra::new();
    let at_end = (0..100).filter(|_| passes(&mut gcra, u64::MAX, Rate::LOG_LINES)).count();
    assert!(at_end >= 1, "nothing passes at the end of time");
    let backwards = (0..100).filter(|_| passes(&mut gcra, 0, Rate::LOG_LINES)).count();
    assert_eq!(backwards, 0, "a clock that went back opened the gate");
    let never = Rate::new(u32::MAX, Duration::MAX);
    assert!(passes(&mut Gcra::new(), 0, never));
    let free = Rate::new(0, Duration::ZERO);
    assert!(passes(&mut Gcra::new(), 0, free));
}

#[test]
fn sec_02_a_capped_target_prints_a_bounded_number_of_lines() {
    let targets = ThrottledTargets::default();
    // 100,000 records in ten seconds, from the crate and its modules: one budget.
    let printed = (0..100_000u64)
        .filter(|n| {
            let target = if n % 2 == 0 { "virtio_queue::chain" } else { "virtio_queue" };
            targets.admit(target, Duration::from_micros(n * 100)) != Verdict::Suppress
        })
        .count();
    assert_eq!(printed, 10 + 9, "burst, then one for each second passed");
}

#[test]
fn targets_have_budgets_of_their_own_and_others_have_none() {
    let targets = ThrottledTargets::default();
    let now = Duration::ZERO;
    while targets.admit("virtio_queue", now) != Verdict::Suppress {}
    assert_eq!(targets.admit("vm_superio::serial", now), Verdict::Pass { suppressed: 0 });
    for _ in 0..1000 {
        assert_eq!(targets.admit("ringlet::vm", now), Verdict::Pass { suppressed: 0 });
        assert_eq!(targets.admit("virtio_queue_of_another_crate", now), Verdict::Pass { suppressed: 0 });
    }
    assert!(targets.is_capped("vm_superio") && !targets.is_capped("vm_superiority"));
}

proptest! {
    /// Against the definition: within any window, at most burst + window / interval events pass, and every event
    /// that is not printed is counted by a later one or still waiting to be.
    #[test]
    fn no_window_holds_more_than_its_rate(
        burst in 1u32..20,
        interval in 1u64..1000,
        gaps in prop::collection::vec(0u64..500, 1..300),
    ) {
        let rate = Rate::new(burst, Duration::from_nanos(interval));
        let mut gcra = Gcra::new();
        let (mut now, mut passed, mut accounted) = (0u64, Vec::new(), 0u64);
        for gap in &gaps {
            now += gap;
            if let Verdict::Pass { suppressed } = gcra.admit(now, rate) {
                passed.push(now);
                accounted += 1 + suppressed;
            }
        }
        for (i, from) in passed.iter().enumerate() {
            for (j, to) in passed.iter().enumerate().skip(i) {
                let bound = u64::from(burst) + (to - from) / interval;
                prop_assert!((j - i + 1) as u64 <= bound, "{} events in {} ns", j - i + 1, to - from);
            }
        }
        prop_assert_eq!(accounted + gcra.suppressed, gaps.len() as u64);
    }

    /// A stream that keeps to its rate is never held back.
    #[test]
    fn a_stream_within_its_rate_passes(burst in 1u32..20, interval in 1u64..1000, start in any::<u32>()) {
        let rate = Rate::new(burst, Duration::from_nanos(interval));
        let mut gcra = Gcra::new();
        for n in 0..100 {
            prop_assert_eq!(gcra.admit(u64::from(start) + n * interval, rate), Verdict::Pass { suppressed: 0 });
        }
    }
}
