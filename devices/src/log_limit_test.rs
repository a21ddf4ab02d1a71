use super::*;

#[test]
fn sec_02_a_failure_that_a_guest_repeats_prints_a_bounded_number_of_lines() {
    let limit = LogLimit::default();
    let told = (0..10_000).filter(|_| limit.admit().is_some()).count();
    assert!((1..100).contains(&told), "{told} lines");
}
