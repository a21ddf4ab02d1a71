use std::cell::Cell;
use std::thread;

use super::*;
use crate::engine::EngineKind;
use crate::testing::*;

on_both_engines!(
    no_ring_is_lost_between_two_threads,
    a_cancelled_wait_loses_nothing,
    rings_from_before_listening_count,
    a_storm_is_polled_and_silence_ends_that,
    a_storm_is_polled_while_something_else_is_waited_for,
    an_honest_pace_is_never_polled,
    a_foreign_eventfd_is_made_non_blocking,
    what_brings_work_is_woken_for_however_fast,
    sec_02_a_storm_with_a_little_work_is_polled,
    sec_02_a_storm_without_work_is_looked_at_ever_less,
);

fn no_ring_is_lost_between_two_threads(engine: EngineKind) {
    const EACH: u64 = 20_000;
    let (bell, sender) = Doorbell::pair().unwrap();
    let ringers: Vec<_> = (0..2)
        .map(|seed| {
            let sender = sender.clone();
            thread::spawn(move || {
                for number in 0..EACH {
                    sender.ring();
                    // Bursts, pauses in which the listener parks, and everything between.
                    match (number + seed) % 97 {
                        0 => thread::sleep(Duration::from_micros(50)),
                        1..=30 => thread::yield_now(),
                        _ => {}
                    }
                }
            })
        })
        .collect();
    let heard = on_shard(engine, |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        let mut heard = 0;
        while heard < 2 * EACH {
            heard += listener.wait().await.unwrap();
        }
        heard
    });
    ringers.into_iter().for_each(|ringer| ringer.join().unwrap());
    assert_eq!(heard, 2 * EACH);
}

fn a_cancelled_wait_loses_nothing(engine: EngineKind) {
    const RINGS: u64 = 3_000;
    let (bell, sender) = Doorbell::pair().unwrap();
    let ringer = thread::spawn(move || {
        for number in 0..RINGS {
            sender.ring();
            if number % 8 == 0 {
                // Varies the pace; the test is right at any.
                thread::sleep(Duration::from_micros(20));
            }
        }
    });
    let heard = on_shard(engine, |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        let mut heard = 0;
        while heard < RINGS {
            tokio::select! {
                rings = listener.wait() => heard += rings.unwrap(),
                () = cx.timer().sleep(Duration::from_micros(30)) => {}
            }
        }
        heard
    });
    ringer.join().unwrap();
    assert_eq!(heard, RINGS);
}

fn rings_from_before_listening_count(engine: EngineKind) {
    let (bell, sender) = Doorbell::pair().unwrap();
    sender.ring();
    sender.ring();
    let heard = on_shard(engine, move |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        let first = listener.wait().await.unwrap();
        sender.ring();
        // Taken off the loop and put on again, the ring is still there.
        let mut listener = listener.unlisten().listen(&cx).unwrap();
        (first, listener.wait().await.unwrap())
    });
    assert_eq!(heard, (2, 1));
}

#[test]
fn a_rate_is_too_fast_below_what_is_worthwhile() {
    let start = MonoTime::from_nanos(1_000_000);
    for (pace, expected) in [(WORTHWHILE - Duration::from_nanos(1), true), (WORTHWHILE, false)] {
        let mut rate = Rate { wakes: 0, since: start };
        let verdicts: Vec<_> =
            (1..=2 * RINGS_MEASURED).map(|wake| rate.too_fast(start + pace * wake)).collect();
        // It is judged once in so many wakes.
        let due = (1..=2 * RINGS_MEASURED).map(|wake| expected && wake % RINGS_MEASURED == 0);
        assert!(verdicts.into_iter().eq(due), "{pace:?}");
    }
}

/// One wake before the rate is judged, and in no time, on a machine of any speed.
fn about_to_be_polled(listener: &mut DoorbellListener) {
    let Mode::Woken(_, rate) = &mut listener.mode else { panic!("polled before any ring") };
    *rate = Rate { wakes: RINGS_MEASURED - 1, since: MonoTime::now() + Duration::from_secs(3600) };
}

fn sec_02_a_storm_without_work_is_looked_at_ever_less(engine: EngineKind) {
    let (bell, sender) = Doorbell::pair().unwrap();
    on_shard(engine, |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        about_to_be_polled(&mut listener);
        sender.ring();
        listener.wait().await.unwrap();
        for _ in 0..4 {
            listener.unjudged = true;
            listener.was_worth_it(false);
        }
        // What nobody rang for is not judged.
        listener.was_worth_it(true);
        assert!(matches!(listener.mode, Mode::Polled(Looks { period: LONGEST_PERIOD, .. })));
        // The look that was due already, and then one each millisecond.
        sender.ring();
        listener.wait().await.unwrap();
        let start = MonoTime::now();
        for _ in 0..10 {
            sender.ring();
            listener.wait().await.unwrap();
            listener.was_worth_it(false);
        }
        assert!(MonoTime::now().since(start) >= LONGEST_PERIOD * 9);
        sender.ring();
        listener.wait().await.unwrap();
        listener.was_worth_it(true);
        assert!(matches!(listener.mode, Mode::Polled(Looks { period: POLL_PERIOD, .. })));
    });
}

/// Makes every wake one that came too fast, on a machine of any speed.
fn in_no_time(listener: &mut DoorbellListener) {
    if let Mode::Woken(_, rate) = &mut listener.mode {
        rate.since = MonoTime::now() + Duration::from_secs(3600);
    }
}

fn what_brings_work_is_woken_for_however_fast(engine: EngineKind) {
    let (bell, sender) = Doorbell::pair().unwrap();
    on_shard(engine, |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        let ring = async |listener: &mut DoorbellListener| {
            in_no_time(listener);
            sender.ring();
            assert_eq!(listener.wait().await.unwrap(), 1);
            listener.is_polled()
        };
        for _ in 0..RINGS_MEASURED * 3 {
            assert!(!ring(&mut listener).await);
            listener.was_worth_it(true);
            assert!(matches!(listener.mode, Mode::Woken(_, Rate { wakes: 0, .. })));
        }
        // A ring is judged once.
        assert!(!ring(&mut listener).await && !ring(&mut listener).await);
        listener.was_worth_it(true);
        listener.was_worth_it(true);
        assert!(matches!(listener.mode, Mode::Woken(_, Rate { wakes: 1, .. })));
        // Nobody says so: a storm.
        for wake in 2..=RINGS_MEASURED {
            assert_eq!(ring(&mut listener).await, wake == RINGS_MEASURED);
        }
        // So many looks in a row that bring work end polling; one that brings none starts anew.
        for look in 1..=2 * RINGS_MEASURED - 1 {
            assert!(ring(&mut listener).await);
            listener.was_worth_it(look != RINGS_MEASURED - 1);
        }
        assert!(!ring(&mut listener).await);
    });
}

fn sec_02_a_storm_with_a_little_work_is_polled(engine: EngineKind) {
    let (bell, sender) = Doorbell::pair().unwrap();
    on_shard(engine, |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        let mut wakes = 0;
        while !listener.is_polled() {
            in_no_time(&mut listener);
            sender.ring();
            listener.wait().await.unwrap();
            wakes += 1;
            listener.was_worth_it(wakes % 2 == 0);
        }
        // The last is counted before anybody can say that it was worth it.
        assert_eq!(wakes, 2 * RINGS_MEASURED - 2);
    });
}

fn a_storm_is_polled_while_something_else_is_waited_for(engine: EngineKind) {
    let (bell, sender) = Doorbell::pair().unwrap();
    on_shard(engine, |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        about_to_be_polled(&mut listener);
        let wakes = Cell::new(0);
        sender.ring();
        let so_many_wakes = async |count| {
            while wakes.get() < count {
                sender.ring();
                cx.next_turn().await;
            }
            "done"
        };
        let output = listener.wait_for(so_many_wakes(1), || wakes.set(wakes.get() + 1)).await;
        assert_eq!(output.unwrap(), "done");
        assert!(listener.is_polled());
        // On a slow machine the looks may be over before the next ring, so that it ends; but rings come through.
        let output = listener.wait_for(so_many_wakes(4), || wakes.set(wakes.get() + 1)).await;
        assert_eq!(output.unwrap(), "done");
        // Whatever was waited for comes first, and a ring that was not taken is still there.
        sender.ring();
        listener.wait_for(std::future::ready(()), || panic!("nobody waited")).await.unwrap();
        assert!(listener.wait().await.unwrap() >= 1);
    });
}

fn a_storm_is_polled_and_silence_ends_that(engine: EngineKind) {
    let (bell, sender) = Doorbell::pair().unwrap();
    on_shard(engine, |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        about_to_be_polled(&mut listener);
        sender.ring();
        assert_eq!(listener.wait().await.unwrap(), 1);
        assert!(listener.is_polled());

        // At most one look a period, however fast it rings.
        let start = MonoTime::now();
        for _ in 0..50 {
            (0..3).for_each(|_| sender.ring());
            assert_eq!(listener.wait().await.unwrap(), 3);
            assert!(listener.is_polled());
        }
        assert!(MonoTime::now().since(start) >= POLL_PERIOD * 49);

        while listener.is_polled() {
            tokio::select! {
                rings = listener.wait() => panic!("{rings:?} out of silence"),
                () = cx.timer().sleep(Duration::from_millis(5)) => {}
            }
        }
        // Awake again: a single ring arrives.
        sender.ring();
        assert_eq!(listener.wait().await.unwrap(), 1);
        assert!(!listener.is_polled());
    });
}

fn an_honest_pace_is_never_polled(engine: EngineKind) {
    let (bell, sender) = Doorbell::pair().unwrap();
    on_shard(engine, |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        for _ in 0..RINGS_MEASURED * 3 {
            sender.ring();
            listener.wait().await.unwrap();
            assert!(!listener.is_polled());
            cx.timer().sleep(WORTHWHILE * 2).await;
        }
    });
}

fn a_foreign_eventfd_is_made_non_blocking(engine: EngineKind) {
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let bell = Doorbell::from_fd(fd).unwrap();
    let sender = bell.sender();
    let rings = on_shard(engine, move |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        let silent = tokio::select! {
            _ = listener.wait() => false,
            () = cx.timer().sleep(Duration::from_millis(2)) => true,
        };
        assert!(silent);
        sender.ring();
        listener.wait().await.unwrap()
    });
    assert_eq!(rings, 1);
}
