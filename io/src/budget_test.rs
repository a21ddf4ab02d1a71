use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::doorbell::Doorbell;
use crate::engine::EngineKind;
use crate::file::RingFile;
use crate::shard::ShardContext;
use crate::task::Task;
use crate::testing::*;

on_both_engines!(
    an_owner_spends_at_most_its_share_in_a_turn,
    tasks_of_one_owner_divide_the_share,
    who_had_no_request_goes_first,
    sec_02_a_storming_owner_does_not_starve_another,
    sec_02_many_storming_owners_do_not_starve_file_io,
    sec_02_self_wakes_do_not_starve_file_io,
    sec_02_commands_from_other_threads_do_not_starve_file_io,
    what_is_not_spent_does_not_add_up,
    next_turn_is_the_next_turn,
    sec_02_tasks_that_take_long_share_their_owners_time_of_a_turn,
    sec_02_requests_that_take_long_end_a_poll,
    what_others_read_of_the_clock_is_not_read_again,
);

/// A task that spends as fast as it may, for ever; it notes the turn of everything that it spends.
fn storm(cx: &ShardContext, owner: &Owner) -> (Task<()>, Rc<RefCell<Vec<u64>>>) {
    let spent: Rc<RefCell<Vec<u64>>> = Rc::default();
    let (budget, inner, log) = (cx.budget(owner), cx.clone(), Rc::clone(&spent));
    let task = cx.spawn(owner, async move {
        loop {
            budget.spend().await;
            log.borrow_mut().push(inner.turn());
        }
    });
    (task, spent)
}

fn most_in_a_turn(turns: &[u64]) -> usize {
    turns.chunk_by(|a, b| a == b).map(<[u64]>::len).max().unwrap_or(0)
}

/// Lets the others go on for that long, and for a turn at least.
async fn millis(cx: &ShardContext, millis: u64) {
    cx.next_turn().await;
    cx.timer().sleep(Duration::from_millis(millis)).await;
}

/// Reads a file many times, one after the other; ends only if the ring's operations are submitted.
async fn read_file(cx: &ShardContext, times: u32) {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], 0).unwrap();
    let file = RingFile::new(file);
    let mut buf = vec![0; 4096];
    for _ in 0..times {
        let result;
        (result, buf) = cx.ring().read_at(&file, buf, 0).await;
        assert_eq!(result.unwrap(), 4096);
    }
    assert_eq!(buf, [7; 4096]);
}

fn an_owner_spends_at_most_its_share_in_a_turn(engine: EngineKind) {
    let turns = on_shard(engine, |cx| async move {
        let owner = Owner::shard();
        let (_first, one) = storm(&cx, &owner);
        let (_second, other) = storm(&cx, &owner);
        millis(&cx, 20).await;
        let mut turns = one.take();
        turns.extend(other.take());
        turns.sort_unstable();
        turns
    });
    assert!((1..=REQUESTS_PER_TURN as usize).contains(&most_in_a_turn(&turns)), "{turns:?}");
}

/// As many tasks' budgets as can each have [`LEAST_PER_POLL`] of a turn, so that the clock has no part in this. They are
/// asked in one task, always in the same order: the first would have everything if each could take what is left.
fn tasks_of_one_owner_divide_the_share(engine: EngineKind) {
    const TASKS: usize = (REQUESTS_PER_TURN / LEAST_PER_POLL) as usize;
    let spend_all = |budget: &Budget| (0..=REQUESTS_PER_TURN).take_while(|_| budget.try_spend()).count();
    let turns = on_shard(engine, move |cx| async move {
        let owner = Owner::shard();
        let budgets: [_; TASKS] = std::array::from_fn(|_| cx.budget(&owner));
        let mut turns = Vec::new();
        for _ in 0..100 {
            cx.next_turn().await;
            turns.push(budgets.each_ref().map(spend_all));
            // Who asks again in vain does not count twice.
            assert!(!budgets.iter().any(Budget::try_spend));
        }
        turns
    });
    // Nobody is known to want anything in the first turn; who asks first has as much as the clock allows.
    let (least, first) = (LEAST_PER_POLL as usize, turns[0]);
    assert!(first[0] >= least && first.iter().sum::<usize>() <= REQUESTS_PER_TURN as usize, "{first:?}");
    assert!(turns[1..].iter().all(|turn| *turn == [least; TASKS]), "{turns:?}");
}

/// One task takes all that there is, with more budgets than a turn has requests: each has one, or none. The other task has
/// none then, and is polled first from then on: that some budgets of the first had none does not count.
fn who_had_no_request_goes_first(engine: EngineKind) {
    const TURNS: usize = 100;
    let served = on_shard(engine, |cx| async move {
        let owner = Owner::shard();
        let (inner, greedy) = (cx.clone(), [(); REQUESTS_PER_TURN as usize + 1].map(|()| cx.budget(&owner)));
        let _greedy = cx.spawn(&owner, async move {
            loop {
                greedy.iter().for_each(|budget| while budget.try_spend() {});
                inner.next_turn().await;
            }
        });
        let (inner, modest) = (cx.clone(), cx.budget(&owner));
        let modest = cx.spawn(&owner, async move {
            let mut served = 0;
            for _ in 0..TURNS {
                served += usize::from(modest.try_spend());
                inner.next_turn().await;
            }
            served
        });
        modest.await.unwrap()
    });
    assert!(served >= TURNS / 2, "{served}");
}

fn sec_02_a_storming_owner_does_not_starve_another(engine: EngineKind) {
    let (bell, sender) = Doorbell::pair().unwrap();
    on_shard(engine, move |cx| async move {
        let (_task, spent) = storm(&cx, &Owner::shard());
        let mut listener = bell.listen(&cx).unwrap();
        for _ in 0..200 {
            // Slow enough not to be polled.
            cx.timer().sleep(Duration::from_micros(50)).await;
            let before = cx.turn();
            sender.ring();
            listener.wait().await.unwrap();
            // The ring is heard in the next turn or, if the driver had just looked, in the one after.
            assert!(cx.turn() - before <= 2, "{} turns", cx.turn() - before);
        }
        read_file(&cx, 200).await;
        assert!(most_in_a_turn(&spent.borrow()) <= REQUESTS_PER_TURN as usize);
    });
}

fn sec_02_many_storming_owners_do_not_starve_file_io(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        // More than tokio runs between two looks at its driver (61).
        let _storms: Vec<_> = (0..200).map(|_| storm(&cx, &Owner::shard())).collect();
        read_file(&cx, 30).await;
        millis(&cx, 1).await;
    });
}

fn sec_02_self_wakes_do_not_starve_file_io(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let spin = cx.spawn(&Owner::shard(), async {
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            })
            .await;
        });
        read_file(&cx, 100).await;
        cx.abort(&spin);
    });
}

fn sec_02_commands_from_other_threads_do_not_starve_file_io(engine: EngineKind) {
    let shard = runner(config(engine));
    let sender = shard.sender();
    let on = Arc::new(AtomicBool::new(true));
    let storming = Arc::clone(&on);
    let storm = thread::spawn(move || {
        while storming.load(Ordering::Relaxed) {
            assert!(sender.send(Box::new(|_| ())).is_ok());
            thread::yield_now();
        }
    });
    let done = start(&shard, |cx| async move { read_file(&cx, 100).await });
    let ended = done.recv_timeout(PATIENCE);
    on.store(false, Ordering::Relaxed);
    storm.join().unwrap();
    shard.stop().unwrap();
    assert_eq!(ended, Ok(()));
}

fn what_is_not_spent_does_not_add_up(engine: EngineKind) {
    let turns = on_shard(engine, |cx| async move {
        millis(&cx, 5).await;
        let (_task, spent) = storm(&cx, &Owner::shard());
        millis(&cx, 5).await;
        spent.take()
    });
    assert!((1..=REQUESTS_PER_TURN as usize).contains(&most_in_a_turn(&turns)), "{turns:?}");
}

fn next_turn_is_the_next_turn(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        for _ in 0..100 {
            let before = cx.turn();
            cx.next_turn().await;
            assert_eq!(cx.turn(), before + 1);
        }
    });
}

/// Four tasks of one owner, each longer than the owner's time in a turn: they take turns, and nobody is left out.
fn sec_02_tasks_that_take_long_share_their_owners_time_of_a_turn(engine: EngineKind) {
    let turns = on_shard(engine, |cx| async move {
        let owner = Owner::shard();
        let log: Rc<RefCell<Vec<(u64, usize)>>> = Rc::default();
        let tasks: Vec<_> = (0..4)
            .map(|number| {
                let (inner, log) = (cx.clone(), Rc::clone(&log));
                cx.spawn(&owner, async move {
                    loop {
                        log.borrow_mut().push((inner.turn(), number));
                        let begun = std::time::Instant::now();
                        while begun.elapsed() < crate::executor::QUANTUM {
                            std::hint::spin_loop();
                        }
                        inner.next_turn().await;
                    }
                })
            })
            .collect();
        while log.borrow().len() < 40 {
            cx.next_turn().await;
        }
        tasks.iter().for_each(|task| cx.abort(task));
        log.take()
    });
    let once = |(first, _): &(u64, usize), (second, _): &(u64, usize)| first == second;
    assert!(turns.chunk_by(once).all(|turn| turn.len() == 1), "{turns:?}");
    for number in 0..4 {
        let polls = turns.iter().filter(|(_, who)| *who == number).count();
        assert!((9..=11).contains(&polls), "task {number}: {polls} polls of {}: {turns:?}", turns.len());
    }
}

/// Each request takes longer than a poll may: there are few in a turn, and another owner has every turn, too.
fn sec_02_requests_that_take_long_end_a_poll(engine: EngineKind) {
    let (long, others) = on_shard(engine, |cx| async move {
        let owner = Owner::shard();
        let log: Rc<RefCell<Vec<u64>>> = Rc::default();
        let (budget, inner, turns) = (cx.budget(&owner), cx.clone(), Rc::clone(&log));
        let _task = cx.spawn(&owner, async move {
            loop {
                budget.spend().await;
                turns.borrow_mut().push(inner.turn());
                let begun = std::time::Instant::now();
                while begun.elapsed() < crate::executor::QUANTUM {
                    std::hint::spin_loop();
                }
            }
        });
        let (_other, others) = storm(&cx, &Owner::shard());
        while log.borrow().len() < 20 {
            cx.next_turn().await;
        }
        (log.take(), others.take())
    });
    assert_eq!(most_in_a_turn(&long), LEAST_PER_POLL as usize, "{long:?}");
    assert!(long.windows(2).all(|two| others.binary_search(&two[0]).is_ok()), "{long:?}");
}

fn what_others_read_of_the_clock_is_not_read_again(engine: EngineKind) {
    on_shard(engine, |_| async {
        let read = MonoTime::now();
        assert_eq!(MonoTime::read_after(MonoTime::default()), read);
        assert!(MonoTime::read_after(read) >= read);
    });
}
