//! Requests that are charged with what they turned out to be.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use crate::engine::EngineKind;
use crate::testing::*;

on_both_engines!(
    a_request_is_admitted_while_nothing_is_owed_and_charged_afterwards,
    what_does_not_come_costs_nothing,
    it_waits_in_the_order_of_asking_and_does_nothing_before_its_turn,
    a_dropped_waiter_does_nothing,
    a_tenant_is_charged_afterwards_too,
    what_a_vm_does_not_take_is_its_tenants,
    sec_02_what_is_charged_afterwards_keeps_to_the_rate,
);

const HOUR: Duration = Duration::from_secs(3600);

fn poll<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Poll<T> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match poll(&mut pin!(future)) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

/// Limits of reads.
fn reads(operations: Option<u64>, bytes: Option<u64>, refill: Duration) -> Limits {
    let bucket = |size| TokenBucket::new(size, refill);
    Limits {
        read: PerUnit { operations: operations.map(bucket), bytes: bytes.map(bucket) },
        ..Limits::default()
    }
}

fn level(limits: &Limits) -> Level {
    Level::new(limits, MonoTime::now()).unwrap()
}

fn tokens(stats: &LimiterStats) -> (Option<i64>, Option<i64>) {
    let left = stats.tokens(MonoTime::now()).read;
    (left.operations, left.bytes)
}

fn a_request_is_admitted_while_nothing_is_owed_and_charged_afterwards(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = level(&reads(Some(3), Some(1000), HOUR));
        let limiter = Limiter::levels(cx.timer(), vec![level.clone()]);
        let receive = |bytes: u64| limiter.admit_and(CostKind::Read, move || (bytes, Some(bytes)));
        assert_eq!(at_once(receive(1000)), Some(1000));
        assert_eq!(tokens(level.stats()), (Some(2), Some(0)));
        // Nothing is owed, though nothing is left.
        assert_eq!(at_once(receive(65_000)), Some(65_000));
        assert_eq!(tokens(level.stats()), (Some(1), Some(-65_000)));
        assert_eq!(at_once(receive(1)), None, "what is owed comes first");
        assert!(at_once(limiter.admit(Cost::write(10_000))).is_some(), "writes owe nothing");
        assert_eq!((level.stats().operations.get(), level.stats().bytes.get()), (3, 76_000));
        level.change(&reads(None, Some(0), HOUR), MonoTime::now()).unwrap();
        assert_eq!(at_once(receive(2)), Some(2));
        assert_eq!(at_once(receive(3)), None, "three operations an hour");
    });
}

fn what_does_not_come_costs_nothing(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = level(&reads(Some(1), Some(1000), HOUR));
        let limiter = Limiter::levels(cx.timer(), vec![level.clone()]);
        for _ in 0..5 {
            assert_eq!(at_once(limiter.admit_and(CostKind::Read, || ((), None))), Some(()));
        }
        assert_eq!((tokens(level.stats()), level.stats().operations.get()), ((Some(1), Some(1000)), 0));
        assert!(at_once(limiter.admit(Cost::read(1000))).is_some(), "all of it is left");
    });
}

fn it_waits_in_the_order_of_asking_and_does_nothing_before_its_turn(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = level(&reads(Some(1), None, HOUR));
        let limiter = Limiter::levels(cx.timer(), vec![level.clone()]);
        assert!(at_once(limiter.admit(Cost::read(1))).is_some());
        let done = Cell::new(false);
        let mut first = pin!(limiter.admit(Cost::read(1)));
        let mut second = pin!(limiter.admit_and(CostKind::Read, || (done.set(true), Some(9))));
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        assert_eq!(level.stats().waiting.get(), 2);
        level.change(&reads(Some(1), None, HOUR), MonoTime::now()).unwrap();
        assert!(poll(&mut second).is_pending() && !done.get(), "the other asked before");
        assert!(poll(&mut first).is_ready());
        assert!(poll(&mut second).is_pending() && !done.get());
        level.change(&reads(Some(1), None, HOUR), MonoTime::now()).unwrap();
        assert!(poll(&mut second).is_ready() && done.get());
        assert_eq!((level.stats().operations.get(), level.stats().waiting.get()), (3, 0));
    });
}

fn a_dropped_waiter_does_nothing(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = level(&reads(Some(1), None, HOUR));
        let limiter = Limiter::levels(cx.timer(), vec![level.clone()]);
        assert!(at_once(limiter.admit(Cost::read(1))).is_some());
        assert_eq!(at_once(limiter.admit_and(CostKind::Read, || panic!("it was dropped"))), None::<()>);
        assert_eq!((level.stats().operations.get(), level.stats().waiting.get()), (1, 0));
    });
}

fn a_tenant_is_charged_afterwards_too(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let now = MonoTime::now();
        let host = Shared::new(&reads(None, Some(10_000), HOUR), now).unwrap();
        let tenant = host.tenant(&reads(Some(2), None, HOUR), DEFAULT_WEIGHT, now).unwrap();
        let limiter = Limiter::within(cx.timer(), Vec::new(), &tenant.member(DEFAULT_WEIGHT));
        let receive = |bytes| limiter.admit_and(CostKind::Read, move || ((), bytes));
        assert!(at_once(receive(None)).is_some(), "there was nothing");
        assert!(at_once(receive(Some(9_000))).is_some());
        assert_eq!((tokens(tenant.stats()).0, tokens(host.stats()).1), (Some(1), Some(1_000)));
        let mut waiting = pin!(receive(Some(2_000)));
        assert!(poll(&mut waiting).is_ready());
        assert_eq!((tokens(tenant.stats()).0, tokens(host.stats()).1), (Some(0), Some(-1_000)));
        let mut waiting = pin!(receive(Some(5)));
        assert!(poll(&mut waiting).is_pending());
        tenant.change(&reads(Some(2), None, HOUR), MonoTime::now()).unwrap();
        assert!(poll(&mut waiting).is_pending(), "the host is owed");
        host.change(&reads(None, Some(10), HOUR), MonoTime::now()).unwrap();
        assert!(poll(&mut waiting).is_ready());
        assert_eq!((tokens(tenant.stats()).0, tokens(host.stats()).1), (Some(1), Some(5)));
        assert_eq!((host.stats().operations.get(), host.stats().bytes.get()), (3, 11_005));
    });
}

fn what_a_vm_does_not_take_is_its_tenants(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let tenant = Shared::new(&reads(Some(1), None, HOUR), MonoTime::now()).unwrap();
        let vms = [(); 2].map(|()| Limiter::within(cx.timer(), Vec::new(), &tenant.member(DEFAULT_WEIGHT)));
        assert!(at_once(vms[0].admit(Cost::read(1))).is_some());
        let mut first = pin!(vms[0].admit_and(CostKind::Read, || ((), None)));
        let mut second = pin!(vms[1].admit_and(CostKind::Read, || ((), Some(1))));
        assert!(poll(&mut second).is_pending() && poll(&mut first).is_pending());
        tenant.change(&reads(Some(1), None, HOUR), MonoTime::now()).unwrap();
        // Whoever is first, what it was granted for nothing serves the other.
        let _ = (poll(&mut first), poll(&mut second));
        assert_eq!((tenant.stats().operations.get(), tenant.stats().bytes.get()), (2, 2));
    });
}

fn sec_02_what_is_charged_afterwards_keeps_to_the_rate(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let level = level(&reads(None, Some(1_000), Duration::from_millis(1)));
        let limiter = Limiter::levels(cx.timer(), vec![level.clone()]);
        let start = MonoTime::now();
        for _ in 0..30 {
            limiter.admit_and(CostKind::Read, || ((), Some(1_500))).await;
        }
        // What the bucket held and the overdraft of one packet were there at once.
        assert!(MonoTime::now().since(start) >= Duration::from_millis(30 * 15 / 10 - 1 - 2));
        assert_eq!(level.stats().bytes.get(), 45_000);
    });
}
