use super::*;

#[test]
fn the_guest_may_be_sent_what_it_has_room_for() {
    let mut credit = Credit::new(100);
    assert_eq!(credit.allowed(), 0, "it has not said anything");
    assert_eq!(credit.hear(50, 0), Ok(()));
    assert_eq!(credit.allowed(), 50);
    credit.sent(30);
    assert_eq!(credit.allowed(), 20);
    assert_eq!(credit.hear(50, 30), Ok(()));
    assert_eq!(credit.allowed(), 50);
    credit.sent(50);
    assert_eq!(credit.hear(10, 30), Ok(()), "its room has shrunk");
    assert_eq!(credit.allowed(), 0);
    assert_eq!(credit.hear(10, 75), Ok(()));
    assert_eq!(credit.allowed(), 5);
}

#[test]
fn sec_07_what_was_never_sent_cannot_be_passed_on() {
    let mut credit = Credit::new(100);
    assert_eq!(credit.hear(1000, 1), Err(Lie::PassedOn(1)));
    credit.hear(1000, 0).unwrap();
    credit.sent(500);
    assert_eq!(credit.hear(1000, 501), Err(Lie::PassedOn(1)));
    assert_eq!(credit.hear(1000, 500), Ok(()));
    assert_eq!(credit.hear(1000, 500 + (1 << 30)), Err(Lie::PassedOn(1 << 30)));
    assert_eq!(credit.hear(1000, 400), Ok(()), "a packet that was overtaken");
    assert_eq!(credit.allowed(), 1000, "which says nothing new");
}

#[test]
fn sec_07_more_than_there_is_room_for_is_refused() {
    let mut credit = Credit::new(100);
    assert_eq!(credit.receive(101), Err(Lie::Beyond(1)));
    assert_eq!(credit.receive(60), Ok(()));
    assert_eq!(credit.receive(u32::MAX), Err(Lie::Beyond(u32::MAX - 40)));
    assert_eq!(credit.receive(40), Ok(()));
    assert_eq!((credit.receive(0), credit.receive(1)), (Ok(()), Err(Lie::Beyond(1))));
    credit.pass_on(100);
    assert_eq!(credit.receive(100), Ok(()));
}

#[test]
fn half_of_the_room_is_worth_telling() {
    let mut credit = Credit::new(100);
    credit.receive(100).unwrap();
    credit.pass_on(49);
    assert!(!credit.is_update_due());
    credit.pass_on(1);
    assert!(credit.is_update_due());
    assert_eq!(credit.tell(), (100, 50));
    assert!(!credit.is_update_due());
}

#[test]
fn counters_may_wrap() {
    let mut credit = Credit::new(1 << 20);
    credit.hear(u32::MAX, 0).unwrap();
    assert_eq!(credit.allowed(), MOST, "more is of no use");
    let mut taken = 0u32;
    for _ in 0..40 {
        credit.sent(MOST / 4);
        taken = taken.wrapping_add(MOST / 4);
        assert_eq!(credit.hear(u32::MAX, taken.wrapping_add(1)), Err(Lie::PassedOn(1)));
        assert_eq!(credit.hear(u32::MAX, taken), Ok(()));
        assert_eq!(credit.allowed(), MOST);
    }
    for _ in 0..5000 {
        assert_eq!(credit.receive(1 << 20), Ok(()));
        assert_eq!(credit.receive(1), Err(Lie::Beyond(1)));
        credit.pass_on(1 << 20);
    }
}
