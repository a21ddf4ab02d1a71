use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::buffers::Buffers;
use crate::engine::EngineKind;
use crate::owner::Owner;
use crate::testing::*;

on_both_engines!(
    sec_02_an_owner_without_cpu_time_begins_nothing,
    sec_02_an_owner_that_only_uses_the_loop_has_its_quotas_and_no_more,
);

const HOUR: Duration = Duration::from_secs(3600);
const MILLI: Duration = Duration::from_millis(1);

#[test]
fn a_bound_grows_by_a_quota_a_period() {
    let start = MonoTime::from_nanos(1_000);
    let bound = Bound { nanos: 100, renewed_at: start, quota: Duration::from_nanos(10), period: MILLI };
    assert_eq!(bound.passed_at(99), None);
    assert_eq!(bound.passed_at(100), Some(start));
    assert_eq!(bound.passed_at(109), Some(start));
    assert_eq!(bound.passed_at(110), Some(start + MILLI));
    assert_eq!(bound.passed_at(135), Some(start + MILLI * 3));
    let never = Bound { quota: Duration::ZERO, period: Duration::MAX, ..bound };
    assert_eq!(never.passed_at(u64::MAX), Some(start + Duration::MAX));
}

#[test]
fn what_is_not_bound_is_not_held() {
    let hold = Hold::default();
    assert!(!hold.is_set() && hold.until(u64::MAX).is_none());
    let bound = Bound { nanos: 5, renewed_at: MonoTime::now() + HOUR, quota: MILLI, period: HOUR };
    hold.set(Some(bound));
    assert_eq!((hold.until(4), hold.until(5)), (None, Some(bound.renewed_at)));
    hold.set(None);
    assert!(!hold.is_set() && hold.until(5).is_none());
}

/// It has work for ever, as a ring that its own device fills.
fn sec_02_an_owner_without_cpu_time_begins_nothing(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (metrics, hold) = (vm_metrics(), Hold::default());
        let owner = Owner::limited(Arc::clone(&metrics), Buffers::unlimited(), hold.clone());
        hold.set(Some(Bound { nanos: 1, renewed_at: MonoTime::now() + HOUR, quota: MILLI, period: HOUR }));
        metrics.shard_busy_nanos.add(1);
        let begun = Rc::new(Cell::new(0u32));
        let (count, budget) = (Rc::clone(&begun), cx.budget(&owner));
        let task = cx.spawn(&owner, async move {
            loop {
                budget.begin().await;
                count.set(count.get() + 1);
            }
        });
        for _ in 0..50 {
            cx.next_turn().await;
        }
        assert_eq!(begun.get(), 0);
        assert!(!cx.budget(&owner).try_begin());
        // What others wait for goes on.
        cx.budget(&owner).spend().await;
        // So does what is within its bound.
        hold.set(Some(Bound { nanos: u64::MAX, renewed_at: MonoTime::now(), quota: MILLI, period: HOUR }));
        cx.next_turn().await;
        assert!(cx.budget(&owner).try_begin());
        hold.set(None);
        hold.wake();
        while begun.get() == 0 {
            cx.next_turn().await;
        }
        cx.abort(&task);
    });
}

/// Nobody looks at its account meanwhile.
fn sec_02_an_owner_that_only_uses_the_loop_has_its_quotas_and_no_more(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (metrics, hold) = (vm_metrics(), Hold::default());
        let owner = Owner::limited(Arc::clone(&metrics), Buffers::unlimited(), hold.clone());
        let (start, period, account) = (MonoTime::now(), MILLI * 20, Arc::clone(&metrics));
        hold.set(Some(Bound { nanos: 0, renewed_at: start, quota: MILLI, period }));
        let (inner, budget, longest) = (cx.clone(), cx.budget(&owner), Rc::new(Cell::new(0)));
        let turn = Rc::clone(&longest);
        let task = cx.spawn(&owner, async move {
            loop {
                budget.begin().await;
                let begun = account.shard_busy_nanos.get();
                let start = crate::charge::thread_nanos();
                while crate::charge::thread_nanos() - start < 200_000 {}
                inner.next_turn().await;
                turn.set(turn.get().max(account.shard_busy_nanos.get() - begun));
            }
        });
        cx.timer().sleep(period * 10).await;
        cx.abort(&task);
        let quotas = MonoTime::now().nanos_since(start) / nanos(period) + 1;
        let (used, most) = (metrics.shard_busy_nanos.get(), quotas * nanos(MILLI));
        // One turn more than it had, and the one that the end cut off: on a machine that is kept from running, turns are long.
        let more = nanos(MILLI) + 2 * longest.get();
        assert!(used > 0 && used < most + more, "{used} of {most} ns and {more}");
    });
}
