use proptest::prelude::*;

use super::*;
use crate::testing::{Buffer, DriverQueue, Rig};
use crate::virtio::RawLayout;

const SIZE: u16 = 8;

fn pair(features: u64) -> (DriverQueue, Queue) {
    let ram = Rig::memory();
    let driver = DriverQueue::new(&ram, 0, SIZE, Rig::RINGS);
    let raw = RawLayout {
        size: SIZE.into(),
        descriptors: driver.descriptors,
        driver: driver.driver,
        device: driver.device,
    };
    let layout = raw.check(SIZE, &ram).unwrap();
    (driver, Queue::new(layout, features, &ram).unwrap())
}

fn buffers() -> [Buffer; 2] {
    [Buffer::readable(Rig::DATA, 8), Buffer::writable(Rig::DATA + 0x100, 8)]
}

#[test]
fn a_peek_changes_nothing() {
    let (mut driver, mut queue) = pair(0);
    assert!(queue.peek().unwrap().is_none());
    let head = driver.add(&buffers());
    for _ in 0..3 {
        let chain = queue.peek().unwrap().unwrap();
        assert_eq!((chain.head(), queue.in_flight(), queue.state().next_avail), (head, 0, 0));
    }
    let chain = queue.peek().unwrap().unwrap();
    let token = queue.consume(&chain).unwrap();
    assert!(matches!(queue.consume(&chain), Err(QueueError::NotCurrent { .. })), "once");
    assert!(queue.peek().unwrap().is_none());
    assert_eq!(driver.used_index(), 0);
    queue.complete(token, 5).unwrap();
    assert_eq!(driver.take_used().map(|used| (used.head, used.len)), Some((head, 5)));
}

#[test]
fn no_more_is_reported_written_than_there_was_room() {
    let (mut driver, mut queue) = pair(0);
    driver.add(&buffers());
    let chain = queue.peek().unwrap().unwrap();
    let token = queue.consume(&chain).unwrap();
    queue.complete(token, u32::MAX).unwrap();
    assert_eq!(driver.take_used().unwrap().len, 8);
}

#[test]
fn sec_07_a_head_in_flight_is_refused_and_the_error_latches() {
    let (mut driver, mut queue) = pair(0);
    let head = driver.add(&buffers());
    let chain = queue.peek().unwrap().unwrap();
    let token = queue.consume(&chain).unwrap();
    driver.offer(head);
    assert_eq!(queue.peek().unwrap_err(), QueueError::DuplicateHead { head });
    assert!(queue.is_broken() && queue.state().broken);
    assert!(queue.peek().unwrap().is_none(), "it is told once");
    queue.complete(token, 0).unwrap();
    assert_eq!(driver.used_index(), 1, "what was in flight is completed");
    assert!(queue.peek().unwrap().is_none());
}

#[test]
fn sec_07_an_impossible_index_is_exactly_that() {
    let (mut driver, mut queue) = pair(0);
    driver.set_available(SIZE + 1);
    let error = QueueError::AvailIndex { index: SIZE + 1, position: 0, size: SIZE };
    assert_eq!(queue.peek().unwrap_err(), error);
    assert_eq!(error.kind(), GuestErrorKind::BadRing);
}

#[test]
fn the_event_index_is_compared_over_a_whole_batch() {
    let (mut driver, mut queue) = pair(feature::EVENT_IDX);
    let mut batch = |count: u16, event: u16| {
        driver.set_used_event(event);
        for _ in 0..count {
            driver.add(&buffers());
            let chain = queue.peek().unwrap().unwrap();
            let token = queue.consume(&chain).unwrap();
            queue.complete(token, 0).unwrap();
        }
        queue.take_owed().unwrap()
    };
    assert_eq!(batch(0, 0), Owed::Nothing);
    assert_eq!(batch(3, 1), Owed::Interrupt, "entry 1 is among 0, 1, 2");
    assert_eq!(batch(3, 1), Owed::Suppressed, "and not among 3, 4, 5");
    assert_eq!(batch(2, 7), Owed::Interrupt, "the last of 6, 7");
    assert_eq!(batch(2, 10), Owed::Suppressed, "the one after 8, 9");
    assert_eq!(batch(0, 10), Owed::Nothing);
}

/// Peeks as many chains as there are, and none twice.
fn peek_all(queue: &mut Queue) -> Vec<Chain> {
    let mut chains = Vec::new();
    while let Some(chain) = queue.peek_beyond(chains.len() as u16).unwrap() {
        chains.push(chain);
    }
    chains
}

#[test]
fn chains_that_are_finished_together_are_seen_together() {
    let (mut driver, mut queue) = pair(feature::EVENT_IDX);
    let heads = [(); 4].map(|()| driver.add(&buffers()));
    let chains = peek_all(&mut queue);
    assert!(chains.iter().map(Chain::head).eq(heads));
    assert_eq!((queue.state().next_avail, queue.in_flight()), (0, 0), "peeking changes nothing");
    driver.set_used_event(2);
    queue.finish([(&chains[0], 8), (&chains[1], 8), (&chains[2], 9)].into_iter()).unwrap();
    assert_eq!((driver.used_index(), queue.state().next_avail, queue.in_flight()), (3, 3, 0));
    let used = [(); 3].map(|()| driver.take_used().map(|used| (used.head, used.len)).unwrap());
    assert_eq!(used, [(heads[0], 8), (heads[1], 8), (heads[2], 8)], "no more than there is room");
    assert_eq!(queue.take_owed().unwrap(), Owed::Interrupt, "entry 2 is among 0, 1, 2");
    assert_eq!(queue.peek().unwrap().unwrap().head(), heads[3], "the rest is still the driver's");
    queue.finish([].into_iter()).unwrap();
    assert_eq!((queue.take_owed().unwrap(), driver.used_index()), (Owed::Nothing, 3));
}

#[test]
fn chains_that_are_finished_together_wrap_around() {
    let (mut driver, mut queue) = pair(0);
    let near = QueueState { next_avail: u16::MAX - 1, next_used: u16::MAX - 1, broken: false };
    queue.resume(&near);
    (driver.offered, driver.taken) = (u16::MAX - 1, u16::MAX - 1);
    let heads = [(); 4].map(|()| driver.add(&buffers()));
    let chains = peek_all(&mut queue);
    queue.finish(chains.iter().zip(1..)).unwrap();
    assert_eq!(queue.state(), QueueState { next_avail: 2, next_used: 2, broken: false });
    for (head, len) in heads.into_iter().zip(1..) {
        assert_eq!(driver.take_used().map(|used| (used.head, used.len)), Some((head, len)));
    }
}

#[test]
fn sec_07_a_head_that_is_offered_twice_cannot_be_finished_twice() {
    let (mut driver, mut queue) = pair(0);
    let head = driver.add(&buffers());
    driver.offer(head);
    let chains = peek_all(&mut queue);
    assert_eq!(chains.len(), 2);
    let finished = queue.finish(chains.iter().map(|chain| (chain, 0)));
    assert_eq!(finished.unwrap_err(), QueueError::DuplicateHead { head });
    assert!(queue.is_broken() && driver.used_index() == 0);
}

#[test]
fn only_the_next_chains_can_be_finished() {
    let (mut driver, mut queue) = pair(0);
    let heads = [(); 2].map(|()| driver.add(&buffers()));
    let chains = peek_all(&mut queue);
    let finished = queue.finish([(&chains[1], 0)].into_iter());
    assert_eq!(finished.unwrap_err(), QueueError::NotCurrent { head: heads[1] });
}

#[test]
fn sec_07_an_index_that_goes_back_behind_what_was_peeked_is_impossible() {
    let (mut driver, mut queue) = pair(0);
    let _ = [(); 3].map(|()| driver.add(&buffers()));
    assert_eq!(peek_all(&mut queue).len(), 3);
    driver.set_available(2);
    let error = QueueError::AvailIndex { index: 2, position: 3, size: SIZE };
    assert_eq!(queue.peek_beyond(3).unwrap_err(), error);
    assert!(queue.peek().unwrap().is_none(), "it is told once");
}

#[test]
fn indices_wrap_around() {
    let (mut driver, mut queue) = pair(feature::EVENT_IDX);
    let near = QueueState { next_avail: u16::MAX - 1, next_used: u16::MAX - 1, broken: false };
    queue.resume(&near);
    driver.offered = u16::MAX - 1;
    driver.taken = u16::MAX - 1;
    for _ in 0..4 {
        let head = driver.add(&buffers());
        let chain = queue.peek().unwrap().unwrap();
        let token = queue.consume(&chain).unwrap();
        queue.complete(token, 1).unwrap();
        assert_eq!(driver.take_used().unwrap().head, head);
    }
    assert_eq!(queue.state(), QueueState { next_avail: 2, next_used: 2, broken: false });
    driver.set_used_event(u16::MAX);
    assert_eq!(queue.take_owed().unwrap(), Owed::Interrupt, "the event was before the wrap");
}

proptest! {
    /// Any order of completion: every head comes back once, and no more is in flight than the queue is long.
    #[test]
    fn chains_come_back_in_any_order(picks in prop::collection::vec(any::<u8>(), 1..200)) {
        let (mut driver, mut queue) = pair(0);
        let mut tokens = Vec::new();
        let mut heads = Vec::new();
        for pick in picks {
            if pick % 2 == 0 && tokens.len() < usize::from(SIZE / 2) {
                let free = (0..SIZE).step_by(2).find(|head| !heads.contains(head)).unwrap();
                driver.next_descriptor = free;
                prop_assert_eq!(driver.add(&buffers()), free);
                let chain = queue.peek().unwrap().unwrap();
                tokens.push(queue.consume(&chain).unwrap());
                heads.push(free);
            } else if !tokens.is_empty() {
                let index = usize::from(pick) % tokens.len();
                let token = tokens.swap_remove(index);
                let head = token.head();
                queue.complete(token, 0).unwrap();
                heads.retain(|other| *other != head);
                prop_assert_eq!(driver.take_used().unwrap().head, head);
            }
            prop_assert_eq!(usize::from(queue.in_flight()), tokens.len());
        }
    }

    /// Whatever the rings hold, a peek ends in a chain, in nothing, or in a latched error.
    #[test]
    fn sec_06_rings_of_any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0x120)) {
        let (driver, mut queue) = pair(feature::EVENT_IDX | feature::INDIRECT_DESC);
        driver.ram.write(driver.descriptors, &bytes[..0x80]).unwrap();
        driver.ram.write(driver.driver, &bytes[0x80..0xA0]).unwrap();
        driver.ram.write(driver.device, &bytes[0xA0..]).unwrap();
        for _ in 0..2 * SIZE {
            match queue.peek() {
                Ok(Some(chain)) => {
                    let token = queue.consume(&chain).unwrap();
                    queue.complete(token, 0).unwrap();
                }
                Ok(None) => break,
                Err(_) => prop_assert!(queue.is_broken()),
            }
            queue.take_owed().unwrap();
            queue.enable_notification().unwrap();
        }
        prop_assert_eq!(queue.in_flight(), 0);
    }
}
