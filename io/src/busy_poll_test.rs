use std::sync::Arc;

use super::*;
use crate::buffers::Buffers;
use crate::engine::EngineKind;
use crate::hold::{Bound, Hold};
use crate::owner::Owner;
use crate::shard::ShardConfig;
use crate::testing::*;

on_both_engines!(work_that_comes_soon_is_looked_for, sec_02_a_vm_without_cpu_time_gets_none_by_waiting);

const MICRO: Duration = Duration::from_micros(1);

/// A loop whose turns take 2 µs, if there is something to do, and which comes to look every 3 µs.
struct Loop {
    busy_poll: BusyPoll,
    now: MonoTime,
    looks: bool,
    awaits_files: bool,
    looked_for: Duration,
}

impl Loop {
    fn new() -> Self {
        let busy_poll = BusyPoll::new(BUSY_POLL);
        Self {
            busy_poll,
            now: MonoTime::now(),
            looks: false,
            awaits_files: false,
            looked_for: Duration::ZERO,
        }
    }

    fn turn(&mut self, worked: bool, leaves_work: bool, is_free: bool) {
        let began = self.now;
        self.now = if worked { began + MICRO * 2 } else { began };
        let turn =
            Turn { began, ended: self.now, worked, leaves_work, awaits_files: self.awaits_files, is_free };
        self.looked_for += self.busy_poll.looked_for(&turn);
        self.looks = self.busy_poll.looks(&turn);
    }

    /// There is work after this time, for one turn.
    fn work_after(&mut self, idle: Duration) {
        let at = self.now + idle;
        while self.looks && self.now + MICRO * 3 < at {
            self.now = self.now + MICRO * 3;
            self.turn(false, false, true);
        }
        self.now = self.now.max(at);
        self.turn(true, false, true);
    }

    fn work_often(&mut self, times: u8, idle: Duration) {
        (0..times).for_each(|_| self.work_after(idle));
    }

    /// A loop that looks.
    fn looking() -> Self {
        let mut looking = Self::new();
        looking.work_often(MOST + 1, MICRO * 40);
        assert!(looking.looks);
        looking
    }
}

#[test]
fn it_is_looked_once_work_has_come_soon_so_often() {
    let mut one = Loop::new();
    // There is nothing to be judged of the first.
    one.work_often(ENOUGH, BUSY_POLL * ASLEEP);
    assert!(!one.looks);
    one.work_after(BUSY_POLL * ASLEEP);
    assert!(one.looks);
    assert_eq!(one.looked_for, Duration::ZERO);
    one.work_after(MICRO * 30);
    assert!(one.looks && one.looked_for > MICRO * 20, "{:?}", one.looked_for);
}

#[test]
fn who_has_little_to_do_always_sleeps() {
    let mut one = Loop::new();
    one.work_often(200, BUSY_POLL * ASLEEP + MICRO);
    assert!(!one.looks);
    assert_eq!(one.looked_for, Duration::ZERO);
}

#[test]
fn it_is_not_looked_for_longer_than_that() {
    let mut one = Loop::looking();
    one.looked_for = Duration::ZERO;
    one.work_after(Duration::from_secs(1));
    assert!((BUSY_POLL..BUSY_POLL + MICRO * 10).contains(&one.looked_for), "{:?}", one.looked_for);
    // Not as often as it was worth it.
    let in_a_row =
        (1..100).take_while(|_| one.looks.then(|| one.work_after(Duration::from_secs(1))).is_some());
    assert_eq!(in_a_row.count(), usize::from((MOST - ENOUGH) / LATE));
}

#[test]
fn what_is_looked_for_in_vain_did_not_come_soon() {
    let mut one = Loop::looking();
    // It would have, if the loop had slept.
    one.work_often(20, BUSY_POLL + MICRO * 20);
    assert!(!one.looks);
}

#[test]
fn one_of_nine_may_be_late_and_not_one_of_eight() {
    for (soon, looks) in [(LATE, true), (LATE - 1, false)] {
        let mut one = Loop::looking();
        for _ in 0..100 {
            one.work_often(soon, MICRO * 30);
            one.work_after(Duration::from_millis(1));
        }
        assert_eq!(one.looks, looks, "of {soon} one late");
    }
}

#[test]
fn what_is_left_to_do_is_not_waited_for() {
    let mut one = Loop::looking();
    one.turn(true, true, true);
    assert!(!one.looks);
    let score = one.busy_poll.score;
    one.turn(true, false, true);
    assert!(one.looks);
    assert_eq!(one.busy_poll.score, score);
    // Another thread has woken a task, just when nothing was found.
    one.turn(false, true, true);
    assert!(!one.looks);
}

#[test]
fn a_disk_is_not_looked_for() {
    let mut one = Loop { awaits_files: true, ..Loop::new() };
    one.work_often(200, MICRO * 40);
    assert!(!one.looks);
    one = Loop { awaits_files: true, ..Loop::looking() };
    one.work_after(MICRO * 40);
    assert!(!one.looks);
    let score = one.busy_poll.score;
    one.work_often(200, Duration::from_millis(1));
    assert_eq!(one.busy_poll.score, score);
}

#[test]
fn nobody_whose_cpu_time_is_limited_gets_the_loops() {
    let mut one = Loop::looking();
    let score = one.busy_poll.score;
    for pause in [MICRO, Duration::from_secs(1)] {
        one.turn(true, false, false);
        assert!(!one.looks);
        one.now = one.now + pause;
    }
    // Nor do its pauses change what others get.
    one.turn(true, false, true);
    assert!(one.looks);
    assert_eq!(one.busy_poll.score, score);
}

#[test]
fn the_cpu_is_left_to_others_who_want_it() {
    let mut one = Loop::looking();
    one.looked_for = Duration::ZERO;
    one.now = one.now + LOST * 100;
    one.turn(true, false, true);
    assert!(!one.looks);
    assert_eq!(one.looked_for, LOST, "the rest was not looked for");
    let until = one.now + REST;
    while one.now + MICRO * 50 < until {
        one.work_after(MICRO * 40);
        assert!(!one.looks);
    }
    one.work_often(2, MICRO * 40);
    assert!(one.looks);
}

#[test]
fn nothing_is_never() {
    let mut one = Loop { busy_poll: BusyPoll::new(Duration::ZERO), ..Loop::new() };
    one.work_often(200, MICRO);
    assert!(!one.looks);
}

/// What is soon on any machine.
const SOON: Duration = Duration::from_secs(1);

/// Has a task of `owner` run often, soon after each other. Gives for how long the loop looked for it, in nanoseconds.
fn looked_for(
    engine: EngineKind,
    busy_poll: Duration,
    owner: impl FnOnce() -> Owner + Send + 'static,
) -> u64 {
    let config = ShardConfig { busy_poll, ..config(engine) };
    let metrics = Arc::clone(&config.metrics);
    let shard = runner(config);
    let often = start(&shard, |cx| async move {
        let timer = cx.timer().clone();
        let task = cx.spawn(&owner(), async move {
            for _ in 0..1000 {
                timer.sleep(Duration::from_micros(20)).await;
            }
            metrics.polling_nanos.get()
        });
        task.await
    });
    let looked_for = often.recv_timeout(PATIENCE).unwrap().unwrap();
    shard.stop().unwrap();
    looked_for
}

fn work_that_comes_soon_is_looked_for(engine: EngineKind) {
    assert!(looked_for(engine, SOON, Owner::shard) > 0);
    assert_eq!(looked_for(engine, Duration::ZERO, Owner::shard), 0);
}

fn sec_02_a_vm_without_cpu_time_gets_none_by_waiting(engine: EngineKind) {
    let limited = || {
        let hold = Hold::default();
        let bound = Bound { nanos: u64::MAX, renewed_at: MonoTime::now(), quota: SOON, period: SOON };
        hold.set(Some(bound));
        Owner::limited(vm_metrics(), Buffers::unlimited(), hold)
    };
    assert_eq!(looked_for(engine, SOON, limited), 0);
}
