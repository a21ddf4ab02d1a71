use std::collections::HashSet;

use super::*;

fn check<K: Label + PartialEq + std::fmt::Debug>() {
    let mut seen = HashSet::new();
    for (index, value) in K::ALL.iter().enumerate() {
        assert_eq!(value.index(), index, "{value:?}");
        assert!(seen.insert(value.as_str()), "{value:?} has the text of another value");
        assert!(
            value.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{value:?} is not snake_case"
        );
    }
    assert_eq!(K::cells(|i| i).as_ref().len(), K::ALL.len());
}

#[test]
fn every_set_is_dense_distinct_and_snake_case() {
    check::<ExitKind>();
    check::<GuestErrorKind>();
    check::<VmState>();
    check::<OutcomeKind>();
    check::<BootPhase>();
    check::<DeviceKind>();
    check::<DropReason>();
    check::<ConnectionResult>();
    check::<ResetReason>();
    check::<RequestKind>();
    check::<RequestStatus>();
}
