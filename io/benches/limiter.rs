//! What limits are worth: the rate that was asked for against the rate obtained, shares by weight, and what an
//! admission and the memory of a request cost.
//!
//! `cargo bench -p ringlet-io --bench limiter` prints one table for both engines. A rate is taken from the first
//! request that had to wait to the last one, over at least 100 refills.

#![expect(clippy::expect_used, reason = "a benchmark fails by panicking")]

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use common::{shard, start};
use ringlet_io::limiter::{
    Cost, DEFAULT_WEIGHT, Level, Limiter, Limits, Meter, PerUnit, Shared, TokenBucket,
};
use ringlet_io::{Buffers, EngineKind, MonoTime, Owner, Room};

fn bytes(size: u64, refill: Duration) -> Limits {
    let bytes = Some(TokenBucket::new(size, refill));
    Limits { total: PerUnit { operations: None, bytes }, ..Limits::default() }
}

fn operations(size: u64, refill: Duration) -> Limits {
    let operations = Some(TokenBucket::new(size, refill));
    Limits { total: PerUnit { operations, bytes: None }, ..Limits::default() }
}

/// One row: what is limited, and by whom it is asked for.
struct Row {
    what: &'static str,
    limits: Limits,
    /// Bytes of a request, and its tokens.
    request: (u64, u64),
    refill: Duration,
    size: u64,
    queues: usize,
}

impl Row {
    fn rate(&self) -> f64 {
        self.size as f64 / self.refill.as_secs_f64()
    }

    /// Requests that take 200 refills, and at least 200.
    fn requests(&self) -> u64 {
        (200 * self.size / self.request.1).max(200)
    }
}

/// Bytes that have to wait: a bucket that is overdrawn by the first request.
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for refill in [1, 10].map(Duration::from_millis) {
        for queues in [1, 8] {
            let size = 10;
            let limits = operations(size, refill);
            rows.push(Row { what: "operations", limits, request: (4096, 1), refill, size, queues });
            for (what, request) in [
                ("bytes, a quarter of size", 16 << 10),
                ("bytes, size", 64 << 10),
                ("bytes, twice size", 128 << 10),
            ] {
                let size = 64 << 10;
                let limits = bytes(size, refill);
                rows.push(Row { what, limits, request: (request, request), refill, size, queues });
            }
        }
    }
    rows
}

/// Tokens a second that a level with these limits let pass.
fn obtained(engine: EngineKind, row: &Row) -> f64 {
    let shard = shard(engine);
    let (limits, queues, length) = (row.limits, row.queues, row.request.0);
    let (first, requests) = (row.size / row.request.1 + 1, row.requests());
    let (waited, elapsed) = start(&shard, move |cx| async move {
        let level = Level::new(&limits, MonoTime::now()).expect("a level");
        let limiter = Limiter::levels(cx.timer(), vec![level]);
        // What the full bucket gives, and one that waits.
        for _ in 0..first {
            limiter.admit(Cost::read(length)).await;
        }
        let (begun, admitted) = (MonoTime::now(), Rc::new(Cell::new(0)));
        let tasks: Vec<_> = (0..queues)
            .map(|_| {
                let (limiter, admitted) = (limiter.clone(), Rc::clone(&admitted));
                cx.spawn(&Owner::shard(), async move {
                    while admitted.get() < requests {
                        limiter.admit(Cost::read(length)).await;
                        admitted.set(admitted.get() + 1);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a queue");
        }
        (admitted.get(), MonoTime::now().since(begun))
    })
    .recv()
    .expect("a result");
    shard.stop().expect("a clean end");
    (waited * row.request.1) as f64 / elapsed.as_secs_f64()
}

/// Counts what VMs of these weights got of 20,000 operations a second, on two shards.
fn shares(engine: EngineKind, weights: &[u32]) {
    let span = Duration::from_secs(3);
    let shards = [shard(engine), shard(engine)];
    let limits = operations(20, Duration::from_millis(1));
    let tenant = Shared::new(&limits, MonoTime::now()).expect("a tenant");
    let begun = MonoTime::now();
    let (from, until) = (begun + span / 10, begun + span);
    let counts: Vec<mpsc::Receiver<u64>> = weights
        .iter()
        .zip(shards.iter().cycle())
        .map(|(&weight, shard)| {
            let tenant = tenant.clone();
            start(shard, move |cx| async move {
                let limiter = Limiter::within(cx.timer(), Vec::new(), &tenant.member(weight));
                let mut count = 0;
                while MonoTime::now() < until {
                    limiter.admit(Cost::read(512)).await;
                    count += u64::from((from..until).contains(&MonoTime::now()));
                }
                count
            })
        })
        .collect();
    let counts: Vec<f64> = counts.iter().map(|count| count.recv().expect("a count") as f64).collect();
    for shard in shards {
        shard.stop().expect("a clean end");
    }
    let whole: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let sum: f64 = counts.iter().sum();
    let relative: Vec<f64> =
        counts.iter().zip(weights).map(|(c, &w)| c / sum * whole / f64::from(w)).collect();
    let worst = relative.iter().map(|share| (share - 1.0).abs() * 100.0).fold(0.0, f64::max);
    let squares: f64 = relative.iter().map(|share| share * share).sum();
    let jain = relative.iter().sum::<f64>().powi(2) / squares / relative.len() as f64;
    let rate = sum / (until.since(from)).as_secs_f64();
    println!(
        "{engine:?}: {} VMs on two shards, weights {}: {rate:.0}/s of 20000, worst share {worst:.2} % off, Jain {jain:.5}",
        weights.len(),
        if weights.iter().all(|&weight| weight == DEFAULT_WEIGHT) { "equal" } else { "unequal" },
    );
}

/// Nanoseconds of an admission that need not wait.
fn costs(engine: EngineKind) {
    let shard = shard(engine);
    let rows = start(&shard, |cx| async move {
        let now = MonoTime::now();
        let plenty = operations(1 << 40, Duration::from_secs(1));
        let level = |limits: &Limits| Level::new(limits, now).expect("a level");
        let (none, limited) = (Limits::default(), plenty);
        let tenant = Shared::new(&plenty, now).expect("a tenant");
        let limiters = [
            ("unlimited", Limiter::unlimited()),
            ("two levels without limits", Limiter::levels(cx.timer(), vec![level(&none), level(&none)])),
            ("two levels with limits", Limiter::levels(cx.timer(), vec![level(&limited), level(&limited)])),
            (
                "and a tenant",
                Limiter::within(
                    cx.timer(),
                    vec![level(&limited), level(&limited)],
                    &tenant.member(DEFAULT_WEIGHT),
                ),
            ),
        ];
        let mut rows = Vec::new();
        for (what, limiter) in limiters {
            let begun = MonoTime::now();
            for _ in 0..1_000_000 {
                limiter.admit(std::hint::black_box(Cost::read(4096))).await;
            }
            rows.push((what, MonoTime::now().nanos_since(begun) as f64 / 1e6));
        }
        rows
    })
    .recv()
    .expect("rows");
    shard.stop().expect("a clean end");
    for (what, nanos) in rows {
        println!("{engine:?}: an admission, {what}: {nanos:.1} ns");
    }
}

/// Nanoseconds of the arithmetic of one meter.
fn arithmetic() {
    let bucket = TokenBucket::new(1 << 20, Duration::from_millis(10));
    let mut meter = Meter::new(bucket, MonoTime::now()).expect("a bucket").expect("a limit");
    let begun = MonoTime::now();
    for _ in 0..1_000_000 {
        let at = meter.earliest(std::hint::black_box(4096));
        meter.charge(4096, at);
    }
    println!("a meter asked and charged: {:.1} ns", MonoTime::now().nanos_since(begun) as f64 / 1e6);
}

/// Nanoseconds of memory for a request in flight, taken and given back: what was reserved, and what the account has.
fn memory() {
    let room = Room::new(&Buffers::unlimited());
    let time = |what: &str| {
        let begun = MonoTime::now();
        for _ in 0..1_000_000 {
            drop(std::hint::black_box(room.try_enter(std::hint::black_box(4096))));
        }
        let nanos = MonoTime::now().nanos_since(begun) as f64 / 1e6;
        println!("memory for a request, {what}: {nanos:.1} ns");
    };
    time("reserved");
    let _reserve = room.try_enter(0);
    time("of the account");
}

fn main() {
    arithmetic();
    memory();
    println!("{:<58} {:>12} {:>12} {:>8}", "tokens a second", "asked", "obtained", "error %");
    for engine in [EngineKind::Uring, EngineKind::Epoll] {
        costs(engine);
        for row in rows() {
            let (asked, obtained) = (row.rate(), obtained(engine, &row));
            let what = format!("{engine:?}: {}, {:?}, {} queues", row.what, row.refill, row.queues);
            println!("{what:<58} {asked:>12.0} {obtained:>12.1} {:>8.3}", (obtained / asked - 1.0) * 100.0);
        }
        for count in [2, 8, 64] {
            shares(engine, &vec![DEFAULT_WEIGHT; count]);
            shares(engine, &(0..count).map(|n| 100 * (n as u32 % 4 + 1)).collect::<Vec<_>>());
        }
    }
}
