use proptest::prelude::*;

use super::*;

#[test]
fn the_oldest_bytes_go_and_are_counted() {
    let log = ConsoleLog::new(4);
    assert_eq!(log.append(b"abc"), 0);
    assert_eq!(log.append(b"de"), 1);
    assert_eq!((log.contents(), log.dropped()), (b"bcde".to_vec(), 1));
    assert_eq!(log.append(b"0123456789"), 10);
    assert_eq!((log.clone().contents(), log.dropped()), (b"6789".to_vec(), 11));
}

#[test]
fn a_log_without_room_drops_everything() {
    let log = ConsoleLog::new(0);
    assert_eq!(log.append(b"abc"), 3);
    assert!(log.contents().is_empty());
}

#[test]
fn sec_02_memory_is_bounded_and_taken_as_bytes_come() {
    let log = ConsoleLog::new(1000);
    assert_eq!(log.lock().bytes.capacity(), 0);
    log.append(b"x");
    assert!(log.lock().bytes.capacity() < 200);
    for _ in 0..10_000 {
        log.append(&[0; 333]);
    }
    assert!(log.lock().bytes.capacity() <= 1000, "{}", log.lock().bytes.capacity());
    log.append(&[0; 1 << 20]);
    assert!(log.lock().bytes.capacity() <= 1000, "{}", log.lock().bytes.capacity());
}

proptest! {
    #[test]
    fn it_is_the_tail_of_all_that_was_appended(
        capacity in 0usize..50,
        blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20),
    ) {
        let log = ConsoleLog::new(capacity);
        for block in &blocks {
            log.append(block);
        }
        let all = blocks.concat();
        let kept = all.len().min(capacity);
        prop_assert_eq!(log.contents(), &all[all.len() - kept..]);
        prop_assert_eq!(log.dropped(), (all.len() - kept) as u64);
    }
}
