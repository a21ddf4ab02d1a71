use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;

use super::*;
use crate::engine::EngineKind;
use crate::limiter::{Limiter, PerUnit, TokenBucket};
use crate::owner::Owner;
use crate::shard::ShardContext;
use crate::testing::*;

on_both_engines!(
    sec_02_nobody_gets_more_than_the_rate,
    a_charge_does_not_depend_on_when_the_shard_woke,
    a_shard_that_was_late_makes_up_for_it,
    who_is_not_held_back_has_nothing_to_make_up_for,
    requests_of_a_lane_are_admitted_in_the_order_of_asking,
    a_dropped_waiter_has_taken_nothing_and_holds_up_nobody,
    writes_wait_for_reads_only_where_both_need_the_same_meter,
    a_device_that_waits_holds_up_no_other,
    a_request_is_charged_to_all_levels_or_none,
    sec_02_a_limit_that_becomes_slow_holds_up_no_other_device,
    waiters_go_by_limits_that_were_changed,
    levels_without_limits_never_wait_and_count_beside_one_that_has,
    a_restored_level_goes_on_where_it_was,
);

const HOUR: Duration = Duration::from_secs(3600);

/// A limit of operations, in the field that `of` picks.
fn operations(size: u64, refill: Duration) -> PerUnit<TokenBucket> {
    PerUnit { operations: Some(TokenBucket::new(size, refill)), bytes: None }
}

fn total(size: u64, refill: Duration) -> Level {
    level(&Limits { total: operations(size, refill), ..Limits::default() })
}

fn level(limits: &Limits) -> Level {
    Level::new(limits, MonoTime::now()).unwrap()
}

fn limiter(cx: &ShardContext, levels: &[&Level]) -> Limiter {
    Limiter::levels(cx.timer(), levels.iter().map(|&level| level.clone()).collect())
}

fn poll(future: &mut (impl Future<Output = ()> + Unpin)) -> Poll<()> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// The balance of operations and the instant at which it was that.
fn account(level: &Level) -> (i128, u64) {
    let now = MonoTime::now();
    let state = level.save(now).total.operations.unwrap();
    (state.balance, now.as_nanos() - state.elapsed)
}

fn sec_02_nobody_gets_more_than_the_rate(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = total(10, Duration::from_millis(2));
        let limiter = limiter(&cx, &[&level]);
        let start = MonoTime::now();
        let queues = [0; 3].map(|_| {
            let limiter = limiter.clone();
            cx.spawn(&Owner::shard(), async move {
                for _ in 0..20 {
                    limiter.admit(Cost::read(512)).await;
                }
            })
        });
        for queue in queues {
            queue.await.unwrap();
        }
        assert!(MonoTime::now().since(start) >= Duration::from_millis(10), "60 requests, 10 at once");
        let stats = level.stats();
        assert_eq!((stats.operations.get(), stats.bytes.get()), (60, 60 * 512));
        assert!(stats.throttled.get() > 0 && stats.throttled_nanos.get() > 0);
        assert_eq!((stats.waiting.get(), cx.timer().waiting()), (0, 0));
    });
}

fn a_charge_does_not_depend_on_when_the_shard_woke(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let refill = Duration::from_millis(5);
        loop {
            let level = total(3, refill);
            let limiter = limiter(&cx, &[&level]);
            limiter.admit(Cost::read(0)).await;
            limiter.admit(Cost::read(0)).await;
            limiter.admit(Cost::read(0)).await;
            let (mut balance, start) = account(&level);
            let waiting = [0; 8].map(|_| {
                let limiter = limiter.clone();
                cx.spawn(&Owner::shard(), async move { limiter.admit(Cost::read(0)).await })
            });
            cx.next_turn().await;
            // All of them had asked before the first had its token, unless the machine had other things to do.
            let in_time = MonoTime::now() < MonoTime::from_nanos(start) + refill / 3;
            for task in waiting {
                task.await.unwrap();
            }
            if in_time {
                let (left, charged) = account(&level);
                balance += 3 * i128::from(charged - start) - 8 * 5_000_000;
                assert_eq!(left, balance, "not a unit more or less than the rate");
                // In units a token is 5,000,000, and less than one nanosecond's worth was left over.
                assert!((0..3).contains(&left), "charged {left} units late");
                break;
            }
        }
    });
}

fn a_shard_that_was_late_makes_up_for_it(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        loop {
            let level = total(1, Duration::from_millis(5));
            let limiter = limiter(&cx, &[&level]);
            limiter.admit(Cost::read(0)).await;
            let (_, start) = account(&level);
            let mut waiting = pin!(limiter.admit(Cost::read(0)));
            let waits = poll(&mut waiting).is_pending();
            // The shard has other things to do.
            while MonoTime::now().as_nanos() < start + 10_500_000 {}
            assert!(poll(&mut waiting).is_ready());
            let mut admitted = 1;
            while poll(&mut pin!(limiter.admit(Cost::read(0)))).is_ready() {
                admitted += 1;
            }
            let end = MonoTime::now().as_nanos();
            // Unless it is late once more, meanwhile: everything is as if it had asked every five milliseconds.
            if waits && end < start + 14_500_000 {
                assert_eq!((admitted, account(&level)), (2, (0, start + 10_000_000)));
                break;
            }
        }
    });
}

fn who_is_not_held_back_has_nothing_to_make_up_for(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = total(4, Duration::from_micros(400));
        let limiter = limiter(&cx, &[&level]);
        for _ in 0..5 {
            limiter.admit(Cost::read(0)).await;
        }
        // It asks again and again, well below its rate, for longer than the bucket takes to fill.
        let mut as_of_then = 0;
        for _ in 0..100 {
            let next = MonoTime::now() + Duration::from_micros(200);
            while MonoTime::now() < next {}
            let asked = MonoTime::now();
            limiter.admit(Cost::read(0)).await;
            as_of_then += usize::from(account(&level).1 >= asked.as_nanos());
        }
        assert!(as_of_then > 90, "charged as of the past, {as_of_then} as of then");
    });
}

fn requests_of_a_lane_are_admitted_in_the_order_of_asking(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = total(1, Duration::from_micros(200));
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..20)
            .map(|number| {
                let (limiter, order) = (limiter(&cx, &[&level]), Rc::clone(&order));
                let cost = if number % 3 == 0 { Cost::write(1 << 20) } else { Cost::read(1) };
                cx.spawn(&Owner::shard(), async move {
                    limiter.admit(cost).await;
                    order.borrow_mut().push(number);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.borrow(), (0..20).collect::<Vec<_>>());
    });
}

fn a_dropped_waiter_has_taken_nothing_and_holds_up_nobody(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = total(2, HOUR);
        let limiter = limiter(&cx, &[&level]);
        limiter.admit(Cost::read(0)).await;
        limiter.admit(Cost::read(0)).await;
        let before = account(&level);
        {
            let mut first = pin!(limiter.admit(Cost::read(7)));
            let mut second = pin!(limiter.admit(Cost::write(7)));
            assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
            assert_eq!((level.stats().waiting.get(), cx.timer().waiting()), (2, 1));
        }
        assert_eq!(account(&level), before);
        let stats = level.stats();
        assert_eq!((stats.waiting.get(), stats.operations.get(), stats.throttled.get()), (0, 2, 2));
        assert_eq!(cx.timer().waiting(), 0);
        // One that goes from the middle of the line lets the next pass.
        level
            .change(
                &Limits { total: operations(1, Duration::from_millis(1)), ..Limits::default() },
                MonoTime::now(),
            )
            .unwrap();
        limiter.admit(Cost::read(0)).await;
        let tasks = [0; 3].map(|_| {
            let limiter = limiter.clone();
            cx.spawn(&Owner::shard(), async move { limiter.admit(Cost::read(0)).await })
        });
        cx.next_turn().await;
        cx.abort(&tasks[0]);
        let [_, second, third] = tasks;
        second.await.unwrap();
        third.await.unwrap();
    });
}

fn writes_wait_for_reads_only_where_both_need_the_same_meter(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let apart = level(&Limits { read: operations(1, HOUR), ..Limits::default() });
        let limiter_apart = limiter(&cx, &[&apart]);
        limiter_apart.admit(Cost::read(0)).await;
        let mut read = pin!(limiter_apart.admit(Cost::read(0)));
        assert!(poll(&mut read).is_pending());
        limiter_apart.admit(Cost::write(1 << 30)).await;
        limiter_apart.admit(Cost::other()).await;
        let mut next = pin!(limiter_apart.admit(Cost::read(0)));
        assert!(poll(&mut next).is_pending(), "passed in its lane");

        // Where the read lacks what both need, the smaller write does not starve it.
        let bytes = PerUnit { operations: None, bytes: Some(TokenBucket::new(1000, HOUR)) };
        let together = level(&Limits { total: bytes, ..Limits::default() });
        let limiter_together = limiter(&cx, &[&together]);
        limiter_together.admit(Cost::write(500)).await;
        let mut large = pin!(limiter_together.admit(Cost::read(900)));
        let mut small = pin!(limiter_together.admit(Cost::write(1)));
        assert!(poll(&mut large).is_pending() && poll(&mut small).is_pending());
    });
}

fn a_device_that_waits_holds_up_no_other(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (slow, fast, vm) = (total(1, HOUR), total(1 << 20, HOUR), total(1 << 20, HOUR));
        let (slow_disk, fast_disk) = (limiter(&cx, &[&slow, &vm]), limiter(&cx, &[&fast, &vm]));
        slow_disk.admit(Cost::read(1)).await;
        let mut waiting = pin!(slow_disk.admit(Cost::read(1)));
        assert!(poll(&mut waiting).is_pending());
        for _ in 0..100 {
            fast_disk.admit(Cost::read(1)).await;
        }
        assert_eq!((vm.stats().operations.get(), vm.stats().waiting.get()), (101, 0));
    });
}

fn a_request_is_charged_to_all_levels_or_none(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (device, vm) = (total(10, HOUR), total(1, HOUR));
        let limiter = limiter(&cx, &[&device, &vm]);
        limiter.admit(Cost::read(1)).await;
        let before = (account(&device), account(&vm));
        {
            let mut waiting = pin!(limiter.admit(Cost::read(1)));
            assert!(poll(&mut waiting).is_pending());
            assert_eq!((device.stats().waiting.get(), vm.stats().waiting.get()), (0, 1));
            assert_eq!((account(&device), account(&vm)), before);
        }
        // The device's tokens go while the request waits for the VM's: it waits for both.
        let mut waiting = pin!(limiter.admit(Cost::read(1)));
        assert!(poll(&mut waiting).is_pending());
        device.change(&Limits { total: operations(1, HOUR), ..Limits::default() }, MonoTime::now()).unwrap();
        device.commit(Cost::read(1), MonoTime::now());
        vm.change(&Limits { total: operations(5, HOUR), ..Limits::default() }, MonoTime::now()).unwrap();
        let before = account(&vm);
        assert!(poll(&mut waiting).is_pending(), "the device had no token");
        assert_eq!(account(&vm), before);
        device.change(&Limits { total: operations(0, HOUR), ..Limits::default() }, MonoTime::now()).unwrap();
        assert!(poll(&mut waiting).is_ready());
        assert_eq!(account(&vm).0, 4 * i128::try_from(HOUR.as_nanos()).unwrap());
    });
}

fn sec_02_a_limit_that_becomes_slow_holds_up_no_other_device(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (slow, fast, vm) = (total(10, HOUR), total(10, HOUR), total(1, HOUR));
        let (slow_disk, fast_disk) = (limiter(&cx, &[&slow, &vm]), limiter(&cx, &[&fast, &vm]));
        fast_disk.admit(Cost::read(1)).await;
        let mut waiting = pin!(slow_disk.admit(Cost::read(1)));
        assert!(poll(&mut waiting).is_pending());
        // While it waits for the VM, its device gets a limit, and that is spent.
        slow.change(&Limits { total: operations(1, HOUR), ..Limits::default() }, MonoTime::now()).unwrap();
        slow.commit(Cost::read(1), MonoTime::now());
        vm.change(&Limits { total: operations(5, HOUR), ..Limits::default() }, MonoTime::now()).unwrap();
        assert!(poll(&mut waiting).is_pending(), "its device has none");
        assert_eq!((slow.stats().waiting.get(), vm.stats().waiting.get()), (1, 0));
        for _ in 0..4 {
            assert!(poll(&mut pin!(fast_disk.admit(Cost::read(1)))).is_ready(), "the VM has five");
        }
        slow.change(&Limits { total: operations(0, HOUR), ..Limits::default() }, MonoTime::now()).unwrap();
        assert!(poll(&mut waiting).is_ready());
        assert_eq!((slow.stats().operations.get(), vm.stats().operations.get()), (2, 6));
    });
}

fn waiters_go_by_limits_that_were_changed(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = total(1, HOUR);
        let limiter = limiter(&cx, &[&level]);
        limiter.admit(Cost::read(0)).await;
        let passed = Rc::new(Cell::new(0));
        let tasks = [0; 3].map(|_| {
            let (limiter, passed) = (limiter.clone(), Rc::clone(&passed));
            cx.spawn(&Owner::shard(), async move {
                limiter.admit(Cost::read(0)).await;
                passed.set(passed.get() + 1);
            })
        });
        cx.next_turn().await;
        assert_eq!((passed.get(), level.stats().waiting.get()), (0, 3));
        // A full bucket for two; and then none at all.
        let two = Limits { total: operations(2, HOUR), ..Limits::default() };
        level.change(&two, MonoTime::now()).unwrap();
        assert_eq!(level.limits(), two);
        let [first, second, third] = tasks;
        first.await.unwrap();
        second.await.unwrap();
        assert!(!third.is_finished());
        level.change(&two.change_to(&Limits::default()), MonoTime::now()).unwrap();
        third.await.unwrap();
        assert!(level.limits().is_empty());
    });
}

fn levels_without_limits_never_wait_and_count_beside_one_that_has(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (level, limited) = (level(&Limits::default()), total(1000, Duration::from_secs(1)));
        let all = [Cost::read(u64::MAX / 4), Cost::write(5), Cost::other()];
        let stats = level.stats();
        // Alone they are not even asked.
        for (limiter, counted) in [(limiter(&cx, &[&level]), 0), (limiter(&cx, &[&level, &limited]), 3)] {
            for cost in all {
                assert!(poll(&mut pin!(limiter.admit(cost))).is_ready());
            }
            assert_eq!(stats.operations.get(), counted);
        }
        assert_eq!((stats.operations.get(), stats.bytes.get()), (3, u64::MAX / 4 + 5));
        assert_eq!((stats.throttled.get(), stats.throttled_nanos.get()), (0, 0));
        assert!(stats.tokens(MonoTime::now()).is_empty());
    });
}

fn a_restored_level_goes_on_where_it_was(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = total(2, HOUR);
        limiter(&cx, &[&level]).admit(Cost::read(0)).await;
        let (limits, state) = (level.limits(), level.save(MonoTime::now()));
        let restored = Level::restore(&limits, &state, MonoTime::now()).unwrap();
        let limiter = limiter(&cx, &[&restored]);
        limiter.admit(Cost::read(0)).await;
        assert!(poll(&mut pin!(limiter.admit(Cost::read(0)))).is_pending());
        assert_eq!(restored.stats().tokens(MonoTime::now()).total.operations, Some(0));
    });
}
