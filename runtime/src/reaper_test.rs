use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use ringlet_metrics::Registry;

use super::{Corpse, LATE, Reaper};

/// A deadline that only a hanging test meets.
const DEADLINE: Duration = Duration::from_secs(60);

/// Remains that tell when they are dropped.
struct Remains(u32, Sender<(u32, Instant)>);

impl Drop for Remains {
    fn drop(&mut self) {
        let _ = self.1.send((self.0, Instant::now()));
    }
}

struct Yard {
    registry: Registry,
    reaper: Reaper,
    closed: Receiver<(u32, Instant)>,
    sender: Sender<(u32, Instant)>,
}

impl Yard {
    fn new() -> Self {
        let registry = Registry::new();
        let (sender, closed) = channel();
        Self { reaper: Reaper::new(registry.clone()), registry, closed, sender }
    }

    fn corpse(&self, number: u32, not_before: Option<Instant>) -> Corpse {
        Corpse { threads: Vec::new(), not_before, remains: Box::new(Remains(number, self.sender.clone())) }
    }

    fn next(&self) -> (u32, Instant) {
        self.closed.recv_timeout(DEADLINE).expect("nothing is closed")
    }

    fn backlog(&self) -> i64 {
        self.registry.runtime().reaper_backlog.get()
    }
}

#[test]
fn remains_are_closed_in_their_order_and_not_before_their_time() {
    let yard = Yard::new();
    let due = Instant::now() + Duration::from_millis(50);
    yard.reaper.reap(yard.corpse(1, Some(due)));
    yard.reaper.reap(yard.corpse(2, Some(due + Duration::from_millis(20))));
    yard.reaper.reap(yard.corpse(3, None));
    let closed: Vec<_> = (0..3).map(|_| yard.next()).collect();
    assert_eq!(closed.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(closed[0].1 >= due && closed[1].1 >= due + Duration::from_millis(20));
}

#[test]
fn the_backlog_is_what_is_not_closed_yet() {
    let yard = Yard::new();
    let (hold, held) = channel::<()>();
    let slow = std::thread::spawn(move || assert!(held.recv().is_err()));
    yard.reaper.reap(Corpse { threads: vec![slow], ..yard.corpse(1, None) });
    yard.reaper.reap(yard.corpse(2, None));
    assert_eq!(yard.backlog(), 2, "a thread of the first has not ended");
    drop(hold);
    assert_eq!((yard.next().0, yard.next().0), (1, 2));
    let Yard { registry, reaper, .. } = yard;
    drop(reaper);
    assert_eq!(registry.runtime().reaper_backlog.get(), 0);
}

#[test]
fn whoever_hands_over_does_not_wait() {
    let yard = Yard::new();
    let (hold, held) = channel::<()>();
    let slow = std::thread::spawn(move || assert!(held.recv().is_err()));
    // Would it wait, it would wait for the thread that goes on only afterwards.
    yard.reaper.reap(Corpse { threads: vec![slow], ..yard.corpse(1, None) });
    assert!(yard.closed.try_recv().is_err());
    drop(hold);
    assert_eq!(yard.next().0, 1);
}

#[test]
fn the_end_of_the_reaper_closes_everything_once_the_last_is_due_and_joins_every_thread() {
    let yard = Yard::new();
    let (sender, ended) = channel();
    let due = Instant::now() + Duration::from_millis(100);
    for number in 0..20 {
        let sender = sender.clone();
        let thread = std::thread::spawn(move || sender.send(number).unwrap());
        yard.reaper.reap(Corpse { threads: vec![thread], ..yard.corpse(number, Some(due)) });
    }
    let Yard { reaper, closed, registry, .. } = yard;
    drop(reaper);
    assert_eq!(ended.try_iter().count(), 20);
    let closed: Vec<_> = closed.try_iter().collect();
    assert_eq!(closed.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert!(closed.iter().all(|(_, at)| *at >= due));
    assert_eq!(registry.runtime().reaper_backlog.get(), 0);
}

#[test]
fn a_panicked_thread_does_not_stop_the_reaper() {
    let yard = Yard::new();
    let thread = std::thread::spawn(|| std::panic::resume_unwind(Box::new("a bug")));
    yard.reaper.reap(Corpse { threads: vec![thread], ..yard.corpse(1, None) });
    yard.reaper.reap(yard.corpse(2, None));
    assert_eq!((yard.next().0, yard.next().0), (1, 2));
}

#[test]
fn a_reaper_that_never_reaped_has_no_thread_to_end() {
    let reaper = Reaper::new(Registry::new());
    assert!(reaper.thread.lock().unwrap().is_none());
}

#[test]
fn a_vm_counts_as_backlog_before_its_end_is_told() {
    let yard = Yard::new();
    let place = yard.reaper.reserve();
    assert_eq!(yard.backlog(), 1);
    place.reap(yard.corpse(1, None));
    assert_eq!(yard.next().0, 1);
    let Yard { registry, reaper, .. } = yard;
    drop(reaper);
    assert_eq!(registry.runtime().reaper_backlog.get(), 0);
}

#[test]
fn whoever_makes_vms_closes_those_that_the_reaper_is_late_with_and_no_others() {
    let yard = Yard::new();
    let (hold, held) = channel::<()>();
    let slow = std::thread::spawn(move || assert!(held.recv().is_err()));
    yard.reaper.reap(Corpse { threads: vec![slow], ..yard.corpse(0, None) });
    // The reaper waits for the first one's thread.
    let begun = Instant::now();
    while !yard.reaper.waiting.lock().corpses.is_empty() {
        assert!(begun.elapsed() < DEADLINE);
        std::thread::yield_now();
    }
    let long_due = Instant::now().checked_sub(LATE).unwrap();
    for number in 1..=3 {
        yard.reaper.reap(yard.corpse(number, Some(long_due)));
    }
    yard.reaper.reap(yard.corpse(4, Some(Instant::now() + DEADLINE)));
    yard.reaper.help();
    assert_eq!((yard.next().0, yard.next().0), (1, 2));
    assert!(yard.closed.try_recv().is_err(), "more than its part");
    yard.reaper.help();
    assert_eq!(yard.next().0, 3);
    yard.reaper.help();
    assert!(yard.closed.try_recv().is_err(), "it is not late with the last");
    assert_eq!(yard.backlog(), 2);
    let last = yard.reaper.waiting.lock().corpses.pop_back();
    assert!(last.is_some());
    drop(hold);
    assert_eq!(yard.next().0, 0);
}
