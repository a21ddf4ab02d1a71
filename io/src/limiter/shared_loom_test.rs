//! The real tree, lock and wakers under every interleaving that loom finds. Run with
//! `RUSTFLAGS="--cfg ringlet_loom" cargo test --release --lib -p ringlet-io loom`.

use std::sync::Arc as StdArc;
use std::task::Wake;

use loom::sync::Condvar;
use loom::thread;

use super::*;
use crate::limiter::{MAX_REFILL_TIME, PerUnit, TokenBucket};

/// The clock stands still: nothing comes back in these tests but what is given back.
const NOW: MonoTime = MonoTime::from_nanos(0);

/// Where a thread sleeps until its waker is called; called twice is called once.
struct Bell(Mutex<bool>, Condvar);

impl Wake for Bell {
    fn wake(self: StdArc<Self>) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }
}

impl Bell {
    fn new() -> StdArc<Self> {
        StdArc::new(Self(Mutex::new(false), Condvar::new()))
    }

    fn wait(&self) {
        let mut rung = self.0.lock().unwrap();
        while !*rung {
            rung = self.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

fn limits(size: u64) -> Limits {
    let operations = Some(TokenBucket::new(size, MAX_REFILL_TIME));
    Limits { total: PerUnit { operations, bytes: None }, ..Limits::default() }
}

/// Looks, and sleeps in between, until the answer is what is hoped for.
fn until(application: &Application<'_>, hoped: impl Fn(Answer) -> bool) {
    let bell = Bell::new();
    let waker = Waker::from(StdArc::clone(&bell));
    while !hoped(application.look(NOW, &waker)) {
        bell.wait();
    }
}

fn is_granted(answer: Answer) -> bool {
    matches!(answer, Answer::Granted(_))
}

fn check(test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

#[test]
fn what_is_given_back_wakes_whoever_waits_for_it() {
    check(|| {
        let tenant = Shared::new(&limits(1), NOW).unwrap();
        let flows = [(); 2].map(|()| tenant.flow(100));
        let threads = flows.map(|flow| {
            thread::spawn(move || {
                // Granted, and given up: the other one has it then.
                until(&flow.apply(Cost::read(1), NOW), is_granted);
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(tenant.flow(100).admit_at_once(Cost::write(1), NOW, NOW, NOW).is_some());
    });
}

#[test]
fn somebody_always_keeps_the_time() {
    check(|| {
        let tenant = Shared::new(&limits(1), NOW).unwrap();
        assert!(tenant.flow(100).admit_at_once(Cost::read(1), NOW, NOW, NOW).is_some());
        let (one, two) = (tenant.flow(100), tenant.flow(100));
        let leaver = thread::spawn(move || {
            let application = one.apply(Cost::read(1), NOW);
            let _ = application.look(NOW, Waker::noop());
        });
        // Sooner or later it is the first, and is told so.
        let application = two.apply(Cost::read(1), NOW);
        until(&application, |answer| matches!(answer, Answer::Wait(Some(_))));
        leaver.join().unwrap();
    });
}

#[test]
fn a_change_reaches_whoever_waits() {
    check(|| {
        let host = Shared::new(&limits(1), NOW).unwrap();
        let tenant = host.tenant(&Limits::default(), 100, NOW).unwrap();
        assert!(tenant.flow(100).admit_at_once(Cost::read(1), NOW, NOW, NOW).is_some());
        let flow = tenant.flow(100);
        let waiter = thread::spawn(move || {
            let application = flow.apply(Cost::write(1), NOW);
            until(&application, is_granted);
            application.confirm(Cost::write(1), NOW);
        });
        host.change(&limits(1), NOW).unwrap();
        waiter.join().unwrap();
        assert!(!tenant.flow(100).admit_at_once(Cost::read(1), NOW, NOW, NOW).is_some(), "granted twice");
        assert_eq!(host.stats().operations.get(), 2);
    });
}

#[test]
fn no_token_is_granted_twice() {
    check(|| {
        let tenant = Shared::new(&limits(3), NOW).unwrap();
        let flows = [(); 2].map(|()| tenant.flow(100));
        let threads = flows.map(|flow| {
            thread::spawn(move || {
                [(); 2].iter().filter(|()| flow.admit_at_once(Cost::read(1), NOW, NOW, NOW).is_some()).count()
            })
        });
        let admitted: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(admitted, 3);
    });
}
