use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::time::Duration;

use super::*;
use crate::engine::EngineKind;
use crate::limiter::{DEFAULT_WEIGHT, Limiter, PerUnit, TokenBucket};
use crate::owner::Owner;
use crate::testing::*;

on_both_engines!(
    sec_02_vms_on_several_shards_get_no_more_than_their_tenant_has,
    a_waiter_is_woken_from_another_thread,
    a_vm_has_its_first_request_of_a_lane_in_the_queue,
    what_a_vm_may_not_have_goes_back_to_its_tenant,
    sec_02_a_device_that_lacks_tokens_holds_up_no_other_at_the_tenant,
    a_vm_that_goes_away_holds_up_nobody,
);

const HOUR: Duration = Duration::from_secs(3600);

fn total(size: u64, refill: Duration) -> Limits {
    let operations = Some(TokenBucket::new(size, refill));
    Limits { total: PerUnit { operations, bytes: None }, ..Limits::default() }
}

fn shared(size: u64, refill: Duration) -> Shared {
    Shared::new(&total(size, refill), MonoTime::now()).unwrap()
}

fn poll(future: &mut (impl Future<Output = ()> + Unpin)) -> Poll<()> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn sec_02_vms_on_several_shards_get_no_more_than_their_tenant_has(engine: EngineKind) {
    let host = shared(10, HOUR);
    let tenant = host.tenant(&Limits::default(), DEFAULT_WEIGHT, MonoTime::now()).unwrap();
    let shards = [runner(config(engine)), runner(config(engine))];
    let ends = [0, 1, 0, 1].map(|shard| start_on(&shards[shard], tenant.clone(), 100));
    let had = || (host.stats().operations.get(), tenant.stats().operations.get());
    let all_wait_after = |operations| {
        wait_until("all wait", || had() == (operations, operations) && tenant.stats().waiting.get() == 4);
    };
    all_wait_after(10);
    host.change(&total(40, HOUR), MonoTime::now()).unwrap();
    all_wait_after(50);
    // An hour's tokens do not come back in a moment.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(had(), (50, 50));
    host.change(&total(1000, Duration::from_millis(20)), MonoTime::now()).unwrap();
    for end in ends {
        end.recv_timeout(PATIENCE).expect("the VM is served");
    }
    assert_eq!(had(), (400, 400));
    assert_eq!(tenant.stats().waiting.get(), 0);
    assert!(tenant.stats().throttled.get() > 0 && tenant.stats().throttled_nanos.get() > 0);
    for shard in shards {
        shard.stop().unwrap();
    }
}

/// A VM that asks so many times on that shard.
fn start_on(shard: &crate::shard::Shard<Run>, tenant: Shared, count: usize) -> mpsc::Receiver<()> {
    start(shard, move |cx| async move {
        let limiter = Limiter::within(cx.timer(), Vec::new(), &tenant.member(DEFAULT_WEIGHT));
        for _ in 0..count {
            limiter.admit(Cost::read(512)).await;
        }
    })
}

fn a_waiter_is_woken_from_another_thread(engine: EngineKind) {
    let tenant = shared(1, HOUR);
    let shard = runner(config(engine));
    let end = start_on(&shard, tenant.clone(), 2);
    wait_until("it waits", || tenant.stats().waiting.get() > 0);
    let zero =
        Limits { total: PerUnit { operations: Some(TokenBucket::ZERO), bytes: None }, ..Limits::default() };
    tenant.change(&zero, MonoTime::now()).unwrap();
    end.recv_timeout(PATIENCE).expect("it was woken");
    assert!(tenant.limits().is_empty());
    shard.stop().unwrap();
}

fn a_vm_has_its_first_request_of_a_lane_in_the_queue(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let tenant = shared(1, HOUR);
        let member = tenant.member(DEFAULT_WEIGHT);
        let disks = [0, 1].map(|_| Limiter::within(cx.timer(), Vec::new(), &member));
        disks[0].admit(Cost::read(1)).await;
        let mut waiting = pin!(disks[0].admit(Cost::read(1)));
        let mut behind = pin!(disks[1].admit(Cost::read(1)));
        let mut write = pin!(disks[1].admit(Cost::write(1)));
        assert!(poll(&mut waiting).is_pending() && poll(&mut behind).is_pending());
        assert_eq!(tenant.stats().waiting.get(), 1);
        assert!(poll(&mut write).is_pending());
        assert_eq!((tenant.stats().waiting.get(), cx.timer().waiting()), (2, 1), "one keeps the time");
        tenant.change(&total(2, HOUR), MonoTime::now()).unwrap();
        assert!(poll(&mut waiting).is_ready());
        assert!(poll(&mut write).is_ready());
        assert!(poll(&mut behind).is_pending());
    });
}

fn what_a_vm_may_not_have_goes_back_to_its_tenant(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let tenant = shared(1, HOUR);
        let vm = Level::new(&Limits::default(), MonoTime::now()).unwrap();
        let limiter = Limiter::within(cx.timer(), vec![vm.clone()], &tenant.member(DEFAULT_WEIGHT));
        let other = Limiter::within(cx.timer(), Vec::new(), &tenant.member(DEFAULT_WEIGHT));
        limiter.admit(Cost::read(1)).await;
        let mut waiting = pin!(limiter.admit(Cost::read(1)));
        assert!(poll(&mut waiting).is_pending());
        // While it waits for its tenant, the VM gets a limit, and that is spent.
        vm.change(&total(1, HOUR), MonoTime::now()).unwrap();
        vm.commit(Cost::read(1), MonoTime::now());
        tenant.change(&total(5, HOUR), MonoTime::now()).unwrap();
        assert!(poll(&mut waiting).is_pending(), "the VM has none");
        for _ in 0..5 {
            assert!(poll(&mut pin!(other.admit(Cost::read(1)))).is_ready(), "the tenant has five");
        }
        assert!(poll(&mut pin!(other.admit(Cost::read(1)))).is_pending());
        assert_eq!(vm.stats().operations.get(), 2);
    });
}

fn sec_02_a_device_that_lacks_tokens_holds_up_no_other_at_the_tenant(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let tenant = shared(1, HOUR);
        let member = tenant.member(DEFAULT_WEIGHT);
        let slow = Level::new(&Limits::default(), MonoTime::now()).unwrap();
        let slow_disk = Limiter::within(cx.timer(), vec![slow.clone()], &member);
        let fast_disk = Limiter::within(cx.timer(), Vec::new(), &member);
        fast_disk.admit(Cost::read(1)).await;
        let mut waiting = pin!(slow_disk.admit(Cost::read(1)));
        assert!(poll(&mut waiting).is_pending());
        slow.change(&total(1, HOUR), MonoTime::now()).unwrap();
        slow.commit(Cost::read(1), MonoTime::now());
        tenant.change(&total(5, HOUR), MonoTime::now()).unwrap();
        assert!(poll(&mut waiting).is_pending(), "its device has none");
        assert_eq!((slow.stats().waiting.get(), tenant.stats().waiting.get()), (1, 0));
        for _ in 0..5 {
            assert!(poll(&mut pin!(fast_disk.admit(Cost::read(1)))).is_ready(), "the tenant has five");
        }
    });
}

fn a_vm_that_goes_away_holds_up_nobody(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let tenant = shared(1, Duration::from_millis(1));
        let vms = [0; 4].map(|_| {
            let limiter = Limiter::within(cx.timer(), Vec::new(), &tenant.member(DEFAULT_WEIGHT));
            cx.spawn(&Owner::shard(), async move {
                for _ in 0..5 {
                    limiter.admit(Cost::write(1)).await;
                }
            })
        });
        cx.next_turn().await;
        // Whoever it is that keeps the time.
        cx.abort(&vms[1]);
        cx.abort(&vms[2]);
        let [first, _, _, last] = vms;
        first.await.unwrap();
        last.await.unwrap();
        assert_eq!(tenant.stats().waiting.get(), 0);
    });
}

#[test]
fn sec_02_a_tenant_is_not_forgotten_before_it_owes_nothing() {
    let tenant = shared(2, HOUR);
    let (now, later) = (MonoTime::now(), MonoTime::now() + HOUR);
    assert!(tenant.may_be_forgotten(now));
    let member = tenant.member(100);
    assert!(!tenant.may_be_forgotten(now), "it has a member");
    assert!(member.admit_at_once(Cost::read(1), now, now, now).is_some());
    drop(member);
    assert!(!tenant.may_be_forgotten(now) && tenant.may_be_forgotten(later));
    let clone = tenant.clone();
    assert!(!tenant.may_be_forgotten(later), "{clone:?} is used");
    // What is there once is missing for ever.
    let burst = TokenBucket { one_time_burst: 1, ..TokenBucket::new(2, HOUR) };
    let limits = Limits { total: PerUnit { operations: Some(burst), bytes: None }, ..Limits::default() };
    let tenant = Shared::new(&limits, now).unwrap();
    assert!(tenant.may_be_forgotten(now));
    assert!(tenant.member(100).admit_at_once(Cost::read(1), now, now, now).is_some());
    assert!(!tenant.may_be_forgotten(later));
}

#[test]
fn it_may_be_shared_between_threads() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    is_shared(&shared(1, HOUR));
}

#[test]
fn a_tenant_is_below_a_host_and_ends_with_its_last_member() {
    let host = shared(1, HOUR);
    let tenant = host.tenant(&total(7, HOUR), 100, MonoTime::now()).unwrap();
    assert_eq!(tenant.tenant(&Limits::default(), 1, MonoTime::now()).unwrap_err(), LimitError::Depth);
    assert!(format!("{tenant:?}").contains("size: 7"));
    let member = tenant.member(100);
    member.set_weight(200);
    tenant.set_weight(300);
    host.set_weight(1);
    drop(tenant);
    assert_eq!(member.shared().limits(), total(7, HOUR));
    let now = MonoTime::now();
    assert_eq!(member.admit_at_once(Cost::read(1), now, now, now), Some(now));
    assert_eq!(member.admit_at_once(Cost::read(1), now, now, now), None);
    drop(member);
    assert_eq!(host.stats().operations.get(), 1);
}
