use std::cell::{Cell, RefCell};
use std::future::pending;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;
use crate::charge::thread_nanos;
use crate::task::JoinError;
use crate::testing::*;

on_both_engines!(
    commands_are_handled_in_order,
    spawn_does_not_wait_for_the_loop,
    what_was_sent_before_stop_is_handled_and_drained,
    a_stopping_shard_refuses_commands,
    a_service_that_does_not_drain_is_cut_off,
    a_panic_in_a_task_ends_that_task_only,
    a_panic_in_a_command_ends_the_shard,
    queue_delay_is_what_commands_and_tasks_waited,
    polls_are_charged_to_the_shard_and_the_owner,
    an_aborted_task_is_dropped_at_once,
    a_task_can_abort_itself,
    tasks_left_at_the_end_are_dropped,
    a_shard_may_drop_its_own_handle,
    wakes_from_other_threads_arrive,
);

fn commands_are_handled_in_order(engine: EngineKind) {
    let shard = runner(config(engine));
    let (sender, receiver) = mpsc::channel();
    for number in 0..1000 {
        let sender = sender.clone();
        assert!(shard.send(Box::new(move |_| sender.send(number).unwrap())).is_ok());
    }
    shard.stop().unwrap();
    drop(sender);
    assert!(receiver.iter().eq(0..1000));
}

fn spawn_does_not_wait_for_the_loop(engine: EngineKind) {
    let (go, gate) = mpsc::channel::<()>();
    let shard = Shard::<Run>::spawn(config(engine), move |_| {
        gate.recv().unwrap();
        Runner
    })
    .unwrap();
    // Only reached because the service is not waited for.
    go.send(()).unwrap();
    assert_eq!(start(&shard, |cx| async move { cx.engine() }).recv_timeout(PATIENCE), Ok(engine));
}

/// A service whose commands take time, which its drain waits for.
struct Slow {
    tasks: Vec<Task<()>>,
    done: mpsc::Sender<u32>,
}

impl Service for Slow {
    type Command = u32;

    fn command(&mut self, cx: &ShardContext, command: u32) {
        let (timer, done) = (cx.timer().clone(), self.done.clone());
        self.tasks.push(cx.spawn(&Owner::shard(), async move {
            timer.sleep(Duration::from_millis(20)).await;
            done.send(command).unwrap();
        }));
    }

    async fn drain(&mut self, _cx: &ShardContext) {
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
    }
}

fn what_was_sent_before_stop_is_handled_and_drained(engine: EngineKind) {
    let (done, results) = mpsc::channel();
    let shard = Shard::spawn(config(engine), |_| Slow { tasks: Vec::new(), done }).unwrap();
    for number in 0..100 {
        shard.send(number).unwrap();
    }
    shard.stop().unwrap();
    assert_eq!(results.iter().count(), 100);
}

fn a_stopping_shard_refuses_commands(engine: EngineKind) {
    let (done, _results) = mpsc::channel();
    let shard = Shard::spawn(config(engine), |_| Slow { tasks: Vec::new(), done }).unwrap();
    let sender = shard.sender();
    shard.stop().unwrap();
    assert_eq!(sender.send(7), Err(7));
}

/// A service that waits for ever when it drains.
struct Stuck;

impl Service for Stuck {
    type Command = ();

    fn command(&mut self, _cx: &ShardContext, (): ()) {}

    async fn drain(&mut self, _cx: &ShardContext) {
        pending().await
    }
}

fn a_service_that_does_not_drain_is_cut_off(engine: EngineKind) {
    let config = ShardConfig { drain_timeout: Duration::from_millis(30), ..config(engine) };
    let shard = Shard::spawn(config, |_| Stuck).unwrap();
    assert!(matches!(shard.stop(), Err(ShardError::DrainTimeout { index: 0, .. })));
}

fn a_panic_in_a_task_ends_that_task_only(engine: EngineKind) {
    let result = on_shard(engine, |cx| async move {
        let bad = cx.spawn(&Owner::shard(), async { panic!("as tested") });
        let result: crate::task::JoinResult<()> = bad.await;
        cx.timer().sleep(Duration::from_millis(1)).await;
        result
    });
    assert_eq!(result, Err(JoinError::Panicked("as tested".to_owned())));
}

fn a_panic_in_a_command_ends_the_shard(engine: EngineKind) {
    let shard = runner(config(engine));
    assert!(shard.send(Box::new(|_| panic!("as tested"))).is_ok());
    let deadline = Instant::now() + PATIENCE;
    while shard.send(Box::new(|_| ())).is_ok() {
        assert!(Instant::now() < deadline, "the shard still takes commands");
        thread::yield_now();
    }
    let error = shard.stop().unwrap_err();
    assert!(
        matches!(&error, ShardError::Panicked { message, .. } if message.contains("as tested")),
        "{error}"
    );
}

fn queue_delay_is_what_commands_and_tasks_waited(engine: EngineKind) {
    let config = config(engine);
    let metrics = Arc::clone(&config.metrics);
    let shard = runner(config);
    let blocked = Duration::from_millis(20);
    let (go, gate) = mpsc::channel::<()>();
    let first: Run = Box::new(move |_| {
        gate.recv().unwrap();
        // The time that the others wait is what is measured.
        thread::sleep(blocked);
    });
    assert!(shard.send(first).is_ok());
    for _ in 0..3 {
        assert!(shard.send(Box::new(|_| ())).is_ok());
    }
    go.send(()).unwrap();
    shard.stop().unwrap();
    let delays = metrics.queue_delay.snapshot();
    // Four commands, and the turns in which they were handled.
    assert!(delays.count > 4, "{}", delays.count);
    // Three commands waited for the first one.
    let waited = Duration::from_nanos(delays.sum_nanos);
    assert!(waited >= blocked * 3, "{waited:?}");
    assert!(metrics.busy_nanos.get() >= 20_000_000);
}

fn polls_are_charged_to_the_shard_and_the_owner(engine: EngineKind) {
    let config = config(engine);
    let shard_metrics = Arc::clone(&config.metrics);
    let vm = vm_metrics();
    let vm_too = Arc::clone(&vm);
    let shard = runner(config);
    let done = start(&shard, |cx| async move {
        let owner = Owner::new(vm_too);
        let timer = cx.timer().clone();
        let task = cx.spawn(&owner, async move {
            // Of the first poll it is not known that it took a CPU; two are one if a sleep is over before it begins.
            for _ in 0..4 {
                let begun = thread_nanos();
                while thread_nanos() - begun < 5_000_000 {}
                // Waiting is not charged.
                timer.sleep(Duration::from_millis(20)).await;
            }
        });
        task.await.unwrap();
        owner.busy_nanos()
    });
    let charged = done.recv_timeout(PATIENCE).unwrap();
    shard.stop().unwrap();
    assert_eq!(charged, vm.shard_busy_nanos.get());
    assert!(charged >= 10_000_000, "{charged}");
    assert!(shard_metrics.busy_nanos.get() >= charged);
}

/// Says when it is dropped.
struct Tell(mpsc::Sender<&'static str>, &'static str);

impl Drop for Tell {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

fn an_aborted_task_is_dropped_at_once(engine: EngineKind) {
    let (sender, dropped) = mpsc::channel();
    let result = on_shard(engine, |cx| async move {
        let tell = Tell(sender, "aborted");
        let task = cx.spawn(&Owner::shard(), async move {
            let _tell = tell;
            pending::<()>().await;
        });
        cx.next_turn().await;
        cx.abort(&task);
        let at_once = dropped.try_recv();
        (at_once, task.await)
    });
    assert_eq!(result, (Ok("aborted"), Err(JoinError::Aborted)));
}

fn a_task_can_abort_itself(engine: EngineKind) {
    let result = on_shard(engine, |cx| async move {
        let handle: Rc<RefCell<Option<Task<()>>>> = Rc::default();
        let (mine, inner) = (Rc::clone(&handle), cx.clone());
        let task = cx.spawn(&Owner::shard(), async move {
            let me = mine.borrow_mut().take().unwrap();
            inner.abort(&me);
            *mine.borrow_mut() = Some(me);
            pending::<()>().await;
        });
        *handle.borrow_mut() = Some(task);
        cx.next_turn().await;
        let task = handle.borrow_mut().take().unwrap();
        task.await
    });
    assert_eq!(result, Err(JoinError::Aborted));
}

fn tasks_left_at_the_end_are_dropped(engine: EngineKind) {
    let (sender, dropped) = mpsc::channel();
    let shard = runner(config(engine));
    assert!(
        shard
            .send(Box::new(move |cx| {
                let tell = Tell(sender, "left over");
                let inner = cx.clone();
                cx.spawn(&Owner::shard(), async move {
                    let _tell = tell;
                    inner.timer().sleep(Duration::from_secs(3600)).await;
                })
                .detach();
            }))
            .is_ok()
    );
    shard.stop().unwrap();
    assert_eq!(dropped.recv(), Ok("left over"));
}

fn a_shard_may_drop_its_own_handle(engine: EngineKind) {
    let shard = runner(config(engine));
    let sender = shard.sender();
    let (done, ended) = mpsc::channel();
    let tell = Tell(done, "ended");
    let command: Run = Box::new(move |cx| {
        let _keep = Cell::new(cx.clone());
        drop(shard);
        drop(tell);
    });
    assert!(sender.send(command).is_ok());
    assert_eq!(ended.recv_timeout(PATIENCE), Ok("ended"));
    let deadline = Instant::now() + PATIENCE;
    while sender.send(Box::new(|_| ())).is_ok() {
        assert!(Instant::now() < deadline, "the shard still takes commands");
        thread::yield_now();
    }
}

fn wakes_from_other_threads_arrive(engine: EngineKind) {
    let sum = on_shard(engine, |_cx| async move {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let sender = sender.clone();
                thread::spawn(move || {
                    for number in 0..5_000u64 {
                        sender.send(number).unwrap();
                        if number % 16 == 0 {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let mut sum = 0;
        while let Some(number) = receiver.recv().await {
            sum += number;
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        sum
    });
    assert_eq!(sum, 4 * (0..5_000u64).sum::<u64>());
}
