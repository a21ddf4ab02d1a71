use std::sync::Mutex;
use std::task::Wake;

use rustix::time::timerfd_gettime;

use super::*;
use crate::engine::EngineKind;
use crate::owner::Owner;
use crate::testing::*;

on_both_engines!(
    sleepers_wake_in_the_order_of_their_deadlines,
    a_sleep_is_never_short,
    the_kernel_is_told_the_very_nanosecond,
    a_dropped_sleeper_is_forgotten,
    an_earlier_sleeper_is_not_kept_by_a_later_one,
    the_past_does_not_wait,
    ten_thousand_sleepers,
);

/// A waker that writes its number to a list.
struct Recorder {
    number: u64,
    list: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Recorder {
    fn wake(self: Arc<Self>) {
        self.list.lock().unwrap().push(self.number);
    }
}

fn poll_once(sleep: &mut Sleep, waker: &Waker) -> Poll<()> {
    Pin::new(sleep).poll(&mut Context::from_waker(waker))
}

fn sleepers_wake_in_the_order_of_their_deadlines(engine: EngineKind) {
    let list: Arc<Mutex<Vec<u64>>> = Arc::default();
    let order = Arc::clone(&list);
    on_shard(engine, |_| async move {
        let timer = Timer::new().unwrap();
        // So far away that all of them wait, and none ends by itself.
        let start = MonoTime::now() + Duration::from_secs(3600);
        let at = |number: u64| start + Duration::from_nanos(number / 10);
        let mut sleeps = Vec::new();
        // Those of one deadline (70 to 79, ...) in the order of their arrival.
        for number in [70, 30, 90, 10, 71, 50, 80, 31, 20, 60, 40, 32] {
            let mut sleep = timer.sleep_until(at(number));
            let waker = Waker::from(Arc::new(Recorder { number, list: Arc::clone(&order) }));
            assert!(poll_once(&mut sleep, &waker).is_pending());
            sleeps.push(sleep);
        }
        timer.fire(at(0));
        assert!(order.lock().unwrap().is_empty(), "nobody is due");
        timer.fire(at(50));
        assert_eq!(timer.waiting(), 5);
        timer.fire(at(1000));
    });
    assert_eq!(*list.lock().unwrap(), [10, 20, 30, 31, 32, 40, 50, 60, 70, 71, 80, 90]);
}

fn a_sleep_is_never_short(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        for round in 0..200 {
            let deadline = MonoTime::now() + Duration::from_micros(round * 3);
            cx.timer().sleep_until(deadline).await;
            assert!(MonoTime::now() >= deadline, "woken early");
        }
    });
}

fn the_kernel_is_told_the_very_nanosecond(engine: EngineKind) {
    on_shard(engine, |_| async {
        let timer = Timer::new().unwrap();
        let deadline = MonoTime::now() + Duration::new(3600, 123_456_789);
        let mut sleep = timer.sleep_until(deadline);
        assert!(poll_once(&mut sleep, Waker::noop()).is_pending());
        timer.arm(None).unwrap();
        let before = MonoTime::now();
        let left = timerfd_gettime(&timer.0.fd).unwrap().it_value;
        let after = MonoTime::now();
        let left = Duration::new(left.tv_sec.unsigned_abs(), u32::try_from(left.tv_nsec).unwrap());
        assert!((before + left..=after + left).contains(&deadline), "{left:?} are left");
    });
}

fn a_dropped_sleeper_is_forgotten(engine: EngineKind) {
    let waiting = on_shard(engine, |cx| async move {
        let timer = cx.timer().clone();
        let long = cx.spawn(&Owner::shard(), timer.sleep(Duration::from_secs(3600)));
        cx.next_turn().await;
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
        // It sleeps after a turn, and the kernel knows its deadline after another.
        cx.next_turn().await;
        cx.next_turn().await;
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
        cx.next_turn().await;
        cx.next_turn().await;
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
