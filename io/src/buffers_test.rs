use std::future::Future;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::task::Context;
use std::thread;

use proptest::prelude::*;

use super::*;

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicU64);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn used(buffers: &Buffers) -> u64 {
    buffers.reading().used
}

#[test]
fn what_is_taken_is_counted_and_goes_back() {
    let buffers = Buffers::new(100);
    let (a, b) = (buffers.try_take(60).unwrap(), buffers.try_take(40).unwrap());
    assert!(buffers.try_take(1).is_none());
    assert_eq!((a.bytes(), used(&buffers)), (60, 100));
    drop(a);
    let small = buffers.try_take(10).unwrap();
    assert_eq!(buffers.reading(), BufferReading { max: 100, used: 50, peak: 100, held_back: 0 });
    drop((b, small));
    assert_eq!(buffers.source().read(), BufferReading { max: 100, used: 0, peak: 100, held_back: 0 });
}

#[test]
fn no_number_overflows() {
    let buffers = Buffers::unlimited();
    let all = buffers.try_take(u64::MAX).unwrap();
    assert!(buffers.try_take(1).is_none());
    assert!(buffers.try_take(u64::MAX).is_none());
    let nothing = buffers.try_take(0).unwrap();
    drop((all, nothing));
    assert_eq!(used(&buffers), 0);
}

#[test]
fn a_lower_limit_takes_nothing_away_and_grants_nothing_more() {
    let buffers = Buffers::new(100);
    let half = buffers.try_take(50).unwrap();
    buffers.set_max(10);
    assert!(buffers.try_take(0).is_none());
    assert_eq!(used(&buffers), 50);
    drop(half);
    assert!(buffers.try_take(11).is_none());
    assert!(buffers.try_take(10).is_some());
}

#[test]
fn a_room_has_one_place_whatever_the_account_says() {
    let buffers = Buffers::new(0);
    let room = Room::new(&buffers);
    let first = room.try_enter(u64::MAX).unwrap();
    assert!(room.try_enter(1).is_none());
    assert_eq!(used(&buffers), 0, "it was reserved elsewhere");
    drop(first);
    assert!(room.try_enter(1).is_some());
}

#[test]
fn sec_02_further_places_are_taken_from_the_account_while_they_fit() {
    let buffers = Buffers::new(100);
    let (one, other) = (Room::new(&buffers), Room::new(&buffers));
    let reserved = one.try_enter(60).unwrap();
    let taken = one.try_enter(60).unwrap();
    assert_eq!(used(&buffers), 60);
    assert!(one.try_enter(60).is_none());
    let _others_first = other.try_enter(60).unwrap();
    assert!(other.try_enter(60).is_none());
    // The reserved place is the next one's as soon as it is free.
    drop(reserved);
    let _next = one.try_enter(60).unwrap();
    assert_eq!(used(&buffers), 60);
    drop(taken);
    assert!(other.try_enter(60).is_some());
}

#[test]
fn who_waits_goes_on_when_a_place_of_its_own_room_is_free() {
    let buffers = Buffers::new(0);
    let room = Room::new(&buffers);
    let first = room.try_enter(8).unwrap();
    let (mut waits, mut gone) = (pin!(room.enter(8)), Box::pin(room.enter(8)));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    for _ in 0..3 {
        assert!(waits.as_mut().poll(&mut context).is_pending());
        assert!(gone.as_mut().poll(&mut context).is_pending());
    }
    assert_eq!(buffers.reading().held_back, 2, "once for each that waits");
    assert_eq!(room.0.waiting.borrow().len(), 1, "however often it is polled");
    drop(gone);
    drop(first);
    assert!(room.0.waiting.borrow().is_empty());
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert!(poll(waits).is_ready());
}

#[test]
fn bytes_that_others_give_back_are_there_at_the_next_look() {
    let buffers = Buffers::new(10);
    let (one, other) = (Room::new(&buffers), Room::new(&buffers));
    let _reserved = (one.try_enter(10).unwrap(), other.try_enter(10).unwrap());
    let taken = other.try_enter(10).unwrap();
    let mut waits = pin!(one.enter(10));
    assert!(poll(waits.as_mut()).is_pending());
    drop(taken);
    assert!(poll(waits).is_ready());
}

#[test]
fn sec_02_threads_never_have_more_than_the_limit_together() {
    const MAX: u64 = 1000;
    let buffers = Buffers::new(MAX);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let reading = buffers.reading();
                assert!(reading.used <= MAX && reading.peak <= MAX, "{reading:?}");
            }
        });
        let taking: Vec<_> = (1..=4_u64)
            .map(|thread| {
                let buffers = &buffers;
                scope.spawn(move || {
                    for round in 0..5_000 {
                        let held = buffers.try_take((thread * 7919 + round) % MAX);
                        let more = buffers.try_take(MAX / 3);
                        drop((held, more));
                    }
                })
            })
            .collect();
        for thread in taking {
            thread.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        watching.join().unwrap();
    });
    assert_eq!(used(&buffers), 0);
}

proptest! {
    #[test]
    fn sec_02_the_account_is_the_sum_of_what_is_held_and_never_above_its_limit(
        max in 0..2_000_u64,
        steps in prop::collection::vec((0..3_usize, any::<bool>(), 0..600_u64), 0..200),
    ) {
        let buffers = Buffers::new(max);
        let rooms = [Room::new(&buffers), Room::new(&buffers), Room::new(&buffers)];
        let mut places: [Vec<Space>; 3] = Default::default();
        for (index, enters, bytes) in steps {
            let (room, mine) = (&rooms[index], &mut places[index]);
            if enters {
                let place = room.try_enter(bytes);
                prop_assert!(place.is_some() || !mine.is_empty(), "refused with nothing in flight");
                mine.extend(place);
            } else if !mine.is_empty() {
                drop(mine.swap_remove(bytes as usize % mine.len()));
            }
            let held: u64 = places.iter().flatten().filter_map(|place| place.bytes).sum();
            let reserved = places.iter().map(|places| places.iter().filter(|place| place.bytes.is_none()).count());
            prop_assert!(reserved.into_iter().all(|count| count <= 1));
            prop_assert_eq!(used(&buffers), held);
            prop_assert!(held <= max);
        }
        drop(places);
        prop_assert_eq!(used(&buffers), 0);
    }
}
