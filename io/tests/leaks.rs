//! A thousand shards come and go and leave nothing behind. Alone in its process, which it counts.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use ringlet_io::{
    Doorbell, EngineKind, Owner, RingFile, Service, Shard, ShardConfig, ShardContext, probe_uring,
};
use ringlet_metrics::Registry;

/// Uses everything once: a file, a pipe, a doorbell, a timer; leaves tasks that never end.
struct User;

impl Service for User {
    type Command = fs::File;

    fn command(&mut self, cx: &ShardContext, file: fs::File) {
        let owner = Owner::shard();
        let file = RingFile::new(file);
        let (reader, writer) = io::pipe().expect("a pipe");
        let (reader, writer) = (RingFile::new(reader), RingFile::new(writer));
        let (bell, sender) = Doorbell::pair().expect("a doorbell");
        let mut listener = bell.listen(cx).expect("a listener");
        let inner = cx.clone();
        cx.spawn(&owner, async move {
            let (result, buf) = inner.ring().read_at(&file, vec![0; 512], 0).await;
            result.expect("a read");
            inner.ring().write_all(&writer, buf).await.0.expect("a write");
            sender.ring();
            listener.wait().await.expect("a ring");
            inner.timer().sleep(Duration::from_micros(50)).await;
            // Never ends: the writer is still here.
            let _ = inner.ring().read(&reader, vec![0; 512]).await;
            let _ = inner.ring().read(&reader, vec![0; 512]).await;
            drop(writer);
        })
        .detach();
    }

    async fn drain(&mut self, cx: &ShardContext) {
        cx.timer().sleep(Duration::from_micros(200)).await;
    }
}

fn entries(folder: &str) -> usize {
    fs::read_dir(folder).expect("procfs").count()
}

/// Threads and descriptors of this process, `folder` of /proc itself included.
fn census() -> (usize, usize) {
    (entries("/proc/self/task"), entries("/proc/self/fd"))
}

fn come_and_go(engine: EngineKind, times: u32) {
    let registry = Registry::new();
    for index in 0..times {
        let metrics = registry.register_shard(index, engine.as_str());
        let shard = Shard::spawn(ShardConfig::new(index, engine, metrics), |_| User).expect("a shard");
        let file = fs::File::open("/proc/self/exe").expect("this program");
        shard.send(file).expect("a shard that takes commands");
        shard.stop().expect("a shard that ends well");
    }
}

/// The kernel ends a joined thread and its ring a moment later.
fn settles(is_settled: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_settled() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn a_thousand_shards_leave_no_thread_and_no_descriptor() {
    // Counted before any shard: afterwards one may still be about to end.
    let (threads, _) = census();
    probe_uring().expect("this test needs io_uring");
    for engine in [EngineKind::Uring, EngineKind::Epoll] {
        // Tokio makes two descriptors once for the whole process.
        come_and_go(engine, 3);
        assert!(settles(|| census().0 == threads), "{engine}: {threads} threads became {}", census().0);
        let before = census();
        come_and_go(engine, 500);
        assert!(settles(|| census() == before), "{engine}: {before:?} became {:?}", census());
    }
}
