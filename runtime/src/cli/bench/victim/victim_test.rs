use super::*;

fn result(requests: u64) -> BlockResult {
    BlockResult { ok: true, ns: 1_000_000_000, reads: requests, writes: 0, p50_ns: 1, p99_ns: 2 }
}

#[test]
fn ratios_are_to_the_same_round_alone() {
    let mut seen = [Beside::default(), Beside::default()];
    assert_eq!(finish(&mut seen, &[(0, result(999)), (1, result(1))], true), 999.0);
    assert_eq!(finish(&mut seen, &[(1, result(900)), (0, result(1000))], false), 1000.0);
    assert_eq!(finish(&mut seen, &[(0, result(2000)), (1, result(1000))], false), 2000.0);
    let [alone, beside] = seen.map(|beside| beside.ratio.summary().unwrap());
    assert_eq!((alone.samples, alone.min, alone.max), (2, 1.0, 1.0));
    assert_eq!((beside.samples, beside.min, beside.max), (2, 0.5, 0.9));
}

#[test]
fn there_is_a_target_for_each_disk_and_storm_that_means_harm() {
    let harmless = STORMS.iter().filter(|storm| storm.targets.is_empty()).count();
    assert_eq!(harmless, 1);
    assert_eq!(targets().len(), 2 * (STORMS.len() - harmless));
}
