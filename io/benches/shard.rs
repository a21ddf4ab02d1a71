//! What a shard costs: starting it, waking it, accounting for its tasks, and a doorbell storm on it.
//!
//! `cargo bench -p ringlet-io` prints one table for both engines.

#![expect(clippy::expect_used, reason = "a benchmark fails by panicking")]

mod common;

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use common::{Run, shard, start};
use ringlet_io::{Doorbell, EngineKind, MonoTime, Owner, RingFile, Shard, ShardContext, probe_uring};
use rustix::time::{ClockId, clock_gettime};

/// Runs `make`'s task on the shard and waits for its result.
fn run<T, F>(shard: &Shard<Run>, make: impl FnOnce(ShardContext) -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    start(shard, make).recv().expect("a result")
}

fn print(what: &str, mut micros: Vec<f64>) {
    micros.sort_by(f64::total_cmp);
    let at = |part: usize| micros.get(micros.len() * part / 100).copied().unwrap_or(f64::NAN);
    println!("{what:<52} {:>9.2} {:>9.2}", at(50), at(90));
}

fn micros(since: MonoTime) -> f64 {
    MonoTime::now().nanos_since(since) as f64 / 1e3
}

fn probe() {
    let times = (0..200).map(|_| {
        let start = MonoTime::now();
        let _ = probe_uring();
        micros(start)
    });
    print("probe for io_uring", times.collect());
}

fn start_and_stop(engine: EngineKind) {
    let (mut spawned, mut first, mut stopped) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..200 {
        let start = MonoTime::now();
        let shard = shard(engine);
        spawned.push(micros(start));
        let (sender, receiver) = mpsc::channel();
        let command: Run = Box::new(move |_| sender.send(MonoTime::now()).expect("a receiver"));
        assert!(shard.send(command).is_ok());
        let handled = receiver.recv().expect("a time");
        first.push(handled.nanos_since(start) as f64 / 1e3);
        let start = MonoTime::now();
        shard.stop().expect("a clean end");
        stopped.push(micros(start));
    }
    print(&format!("{engine}: spawn returns"), spawned);
    print(&format!("{engine}: spawn to first command handled"), first);
    print(&format!("{engine}: stop"), stopped);
}

/// From a thread's `ring` to the listener's return, with the loop parked.
fn doorbell_wake(engine: EngineKind) {
    let shard = shard(engine);
    let (bell, sender) = Doorbell::pair().expect("a doorbell");
    let rung = Arc::new(AtomicU64::new(0));
    let (stamp, heard) = (Arc::clone(&rung), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&heard);
    let ringer = thread::spawn(move || {
        for number in 1..=2000u64 {
            thread::sleep(Duration::from_micros(100));
            rung.store(MonoTime::now().as_nanos(), Ordering::SeqCst);
            sender.ring();
            while count.load(Ordering::SeqCst) < number {
                thread::yield_now();
            }
        }
    });
    let times = run(&shard, |cx| async move {
        let mut listener = bell.listen(&cx).expect("a listener");
        let mut times = Vec::new();
        for _ in 0..2000 {
            listener.wait().await.expect("a ring");
            times.push(micros(MonoTime::from_nanos(stamp.load(Ordering::SeqCst))));
            heard.fetch_add(1, Ordering::SeqCst);
        }
        times
    });
    ringer.join().expect("the ringer");
    shard.stop().expect("a clean end");
    print(&format!("{engine}: doorbell, ring to wait's return"), times);
}

/// A turn of `tasks` tasks that each wake themselves: nanoseconds of the loop per poll.
fn turns(engine: EngineKind, tasks: u64) {
    let shard = shard(engine);
    let per_poll = run(&shard, move |cx| async move {
        let polls = Rc::new(Cell::new(0u64));
        for _ in 0..tasks {
            let polls = Rc::clone(&polls);
            let spin = poll_fn(move |cx| {
                polls.set(polls.get() + 1);
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            });
            cx.spawn(&Owner::shard(), spin).detach();
        }
        let mut samples = Vec::new();
        for _ in 0..20 {
            let (start, before) = (MonoTime::now(), polls.get());
            cx.timer().sleep(Duration::from_millis(10)).await;
            samples.push(micros(start) / (polls.get() - before) as f64);
        }
        samples
    });
    shard.stop().expect("a clean end");
    print(&format!("{engine}: one poll, {tasks} ready a turn"), per_poll);
}

fn accounting() {
    let start = MonoTime::now();
    for _ in 0..1_000_000 {
        std::hint::black_box(MonoTime::now());
    }
    print("reading the clock (once a poll)", vec![micros(start) / 1e6]);
    let counter = ringlet_metrics::Counter::default();
    let start = MonoTime::now();
    for _ in 0..1_000_000 {
        std::hint::black_box(&counter).add(1);
    }
    print("adding to a busy counter (once a poll)", vec![micros(start) / 1e6]);
}

fn timer_lateness(engine: EngineKind) {
    let shard = shard(engine);
    let late = run(&shard, |cx| async move {
        let mut late = Vec::new();
        for _ in 0..1000 {
            let deadline = MonoTime::now() + Duration::from_micros(500);
            cx.timer().sleep_until(deadline).await;
            late.push(micros(deadline));
        }
        late
    });
    shard.stop().expect("a clean end");
    print(&format!("{engine}: sleep of 500 us, lateness"), late);
}

fn file_reads(engine: EngineKind) {
    let shard = shard(engine);
    let times = run(&shard, |cx| async move {
        let file = RingFile::new(std::fs::File::open("/proc/self/exe").expect("this program"));
        let (mut times, mut buf) = (Vec::new(), vec![0; 4096]);
        for number in 0..2000 {
            let start = MonoTime::now();
            let result;
            (result, buf) = cx.ring().read_at(&file, buf, number % 64 * 4096).await;
            result.expect("a read");
            times.push(micros(start));
        }
        times
    });
    shard.stop().expect("a clean end");
    print(&format!("{engine}: read 4 KiB of a cached file"), times);
}

/// Part of a core that a shard spends on a thread that rings as fast as it can.
fn storm(engine: EngineKind) {
    let shard = shard(engine);
    let (bell, sender) = Doorbell::pair().expect("a doorbell");
    let on = Arc::new(AtomicBool::new(true));
    let storming = Arc::clone(&on);
    let ringer = thread::spawn(move || {
        let mut rings = 0u64;
        while storming.load(Ordering::Relaxed) {
            sender.ring();
            rings += 1;
        }
        rings
    });
    let (share, waits) = run(&shard, |cx| async move {
        let mut listener = bell.listen(&cx).expect("a listener");
        let cpu = || {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
        };
        let (start, busy, mut waits) = (MonoTime::now(), cpu(), 0u64);
        while MonoTime::now().since(start) < Duration::from_secs(1) {
            listener.wait().await.expect("a ring");
            waits += 1;
        }
        ((cpu() - busy) * 100.0, waits)
    });
    on.store(false, Ordering::Relaxed);
    let rings = ringer.join().expect("the ringer");
    shard.stop().expect("a clean end");
    println!("{engine}: storm of {rings} rings/s: {waits} waits/s, {share:.1} % of a core");
}

fn main() {
    println!("{:<52} {:>9} {:>9}", "microseconds", "median", "p90");
    probe();
    accounting();
    for engine in [EngineKind::Uring, EngineKind::Epoll] {
        start_and_stop(engine);
        doorbell_wake(engine);
        turns(engine, 1);
        turns(engine, 16);
        turns(engine, 256);
        timer_lateness(engine);
        file_reads(engine);
        storm(engine);
    }
}
