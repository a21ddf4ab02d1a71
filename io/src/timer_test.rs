use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::engine::EngineKind;
use crate::owner::Owner;
use crate::testing::*;

on_both_engines!(
    sleepers_wake_in_the_order_of_their_deadlines,
    a_sleep_is_never_short_and_not_rounded_to_a_tick,
    a_dropped_sleeper_is_forgotten,
    an_earlier_sleeper_is_not_kept_by_a_later_one,
    the_past_does_not_wait,
    ten_thousand_sleepers,
);

fn sleepers_wake_in_the_order_of_their_deadlines(engine: EngineKind) {
    let order = on_shard(engine, |cx| async move {
        let order: Rc<RefCell<Vec<u64>>> = Rc::default();
        let start = MonoTime::now();
        let tasks: Vec<_> = [7u64, 3, 9, 1, 5, 8, 2, 6, 4]
            .into_iter()
            .map(|millis| {
                let (timer, order) = (cx.timer().clone(), Rc::clone(&order));
                cx.spawn(&Owner::shard(), async move {
                    timer.sleep_until(start + Duration::from_millis(millis)).await;
                    order.borrow_mut().push(millis);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        order.take()
    });
    assert_eq!(order, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

fn a_sleep_is_never_short_and_not_rounded_to_a_tick(engine: EngineKind) {
    let span = Duration::from_micros(300);
    let late = on_shard(engine, move |cx| async move {
        let mut late = Vec::new();
        for _ in 0..200 {
            let deadline = MonoTime::now() + span;
            cx.timer().sleep_until(deadline).await;
            let now = MonoTime::now();
            assert!(now >= deadline, "woken early");
            late.push(now.nanos_since(deadline));
        }
        late.sort_unstable();
        late
    });
    // A 1 ms wheel could never do this; the lower quartile keeps a busy machine out of it.
    assert!(late[late.len() / 4] < 500_000, "{late:?}");
}

fn a_dropped_sleeper_is_forgotten(engine: EngineKind) {
    let waiting = on_shard(engine, |cx| async move {
        let timer = cx.timer().clone();
        let long = cx.spawn(&Owner::shard(), timer.sleep(Duration::from_secs(3600)));
        timer.sleep(Duration::from_millis(1)).await;
        let before = timer.waiting();
        cx.abort(&long);
        (before, timer.waiting())
    });
    assert_eq!(waiting, (1, 0));
}

fn an_earlier_sleeper_is_not_kept_by_a_later_one(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let timer = cx.timer().clone();
        let long = cx.spawn(&Owner::shard(), timer.sleep(Duration::from_secs(3600)));
        timer.sleep(Duration::from_millis(2)).await;
        timer.sleep(Duration::from_millis(1)).await;
        cx.abort(&long);
    });
}

fn the_past_does_not_wait(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        cx.timer().sleep_until(MonoTime::from_nanos(0)).await;
        cx.timer().sleep(Duration::ZERO).await;
        // The far end of the clock can be asked for, and given up.
        let never = cx.spawn(&Owner::shard(), cx.timer().sleep(Duration::MAX));
        cx.timer().sleep(Duration::from_millis(1)).await;
        assert!(!never.is_finished());
        cx.abort(&never);
    });
}

fn ten_thousand_sleepers(engine: EngineKind) {
    let left = on_shard(engine, |cx| async move {
        let start = MonoTime::now();
        let tasks: Vec<_> = (0..10_000u64)
            .map(|number| {
                let deadline = start + Duration::from_micros(number % 977);
                cx.spawn(&Owner::shard(), cx.timer().sleep_until(deadline))
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        cx.timer().waiting()
    });
    assert_eq!(left, 0);
}
