use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::engine::EngineKind;
use crate::testing::*;

on_both_engines!(
    no_ring_is_lost_between_two_threads,
    a_cancelled_wait_loses_nothing,
    rings_from_before_listening_count,
    a_storm_is_polled_and_silence_ends_that,
    an_honest_pace_is_never_polled,
    a_foreign_eventfd_is_made_non_blocking,
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

fn a_storm_is_polled_and_silence_ends_that(engine: EngineKind) {
    let (bell, sender) = Doorbell::pair().unwrap();
    let storming = Arc::new(AtomicBool::new(true));
    let on = Arc::clone(&storming);
    let again = sender.clone();
    let storm = thread::spawn(move || {
        while on.load(Ordering::Relaxed) {
            sender.ring();
        }
    });
    on_shard(engine, |cx| async move {
        let mut listener = bell.listen(&cx).unwrap();
        while !listener.is_polled() {
            listener.wait().await.unwrap();
        }
        let (start, mut waits) = (MonoTime::now(), 0u32);
        while MonoTime::now().since(start) < Duration::from_millis(50) {
            listener.wait().await.unwrap();
            waits += 1;
        }
        // At most one look a period, however fast it rings.
        let elapsed = MonoTime::now().since(start).as_micros();
        assert!(u128::from(waits) <= elapsed / POLL_PERIOD.as_micros() + 1, "{waits} in {elapsed} us");

        storming.store(false, Ordering::Relaxed);
        while listener.is_polled() {
            tokio::select! {
                rings = listener.wait() => drop(rings),
                () = cx.timer().sleep(Duration::from_millis(5)) => {}
            }
        }
        // Awake again: a single ring arrives.
        while tokio::select! {
            rings = listener.wait() => { rings.unwrap(); true }
            () = cx.timer().sleep(Duration::from_millis(20)) => false,
        } {}
        again.ring();
        assert_eq!(listener.wait().await.unwrap(), 1);
    });
    storm.join().unwrap();
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
