//! Helpers for this crate's tests: every test of the loop runs on both engines.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ringlet_metrics::{Registry, ShardMetrics, VmInfo, VmMetrics};

use crate::engine::{EngineKind, probe_uring};
use crate::owner::Owner;
use crate::shard::{Service, Shard, ShardConfig, ShardContext};

/// How long a test waits for what must happen before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Makes `#[test]`s in modules `uring` and `epoll` of functions that take an [`EngineKind`].
macro_rules! on_both_engines {
    ($($name:ident),+ $(,)?) => {
        mod uring { $(
            #[test]
            fn $name() {
                $crate::testing::require_uring();
                super::$name($crate::engine::EngineKind::Uring);
            }
        )+ }
        mod epoll { $(
            #[test]
            fn $name() {
                super::$name($crate::engine::EngineKind::Epoll);
            }
        )+ }
    };
}
pub(crate) use on_both_engines;

pub(crate) fn require_uring() {
    if let Err(reason) = probe_uring() {
        panic!("this test needs io_uring: {reason}");
    }
}

/// A command that runs a closure on the shard.
pub(crate) type Run = Box<dyn FnOnce(&ShardContext) + Send>;

/// A service that runs closures and has nothing to drain.
pub(crate) struct Runner;

impl Service for Runner {
    type Command = Run;

    fn command(&mut self, cx: &ShardContext, command: Run) {
        command(cx);
    }

    async fn drain(&mut self, _cx: &ShardContext) {}
}

pub(crate) fn shard_metrics(engine: EngineKind) -> Arc<ShardMetrics> {
    Registry::new().register_shard(0, engine.as_str())
}

pub(crate) fn vm_metrics() -> Arc<VmMetrics> {
    Registry::new().register_vm(VmInfo::default())
}

pub(crate) fn config(engine: EngineKind) -> ShardConfig {
    ShardConfig::new(0, engine, shard_metrics(engine))
}

pub(crate) fn runner(config: ShardConfig) -> Shard<Run> {
    Shard::spawn(config, |_| Runner).expect("a shard")
}

/// Spawns the task that `make` builds on the shard; its result comes through the receiver.
pub(crate) fn start<T, F>(
    shard: &Shard<Run>,
    make: impl FnOnce(ShardContext) -> F + Send + 'static,
) -> mpsc::Receiver<T>
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let (sender, receiver) = mpsc::channel();
    let command: Run = Box::new(move |cx| {
        let future: Pin<Box<dyn Future<Output = T>>> = Box::pin(make(cx.clone()));
        cx.spawn(&Owner::shard(), async move {
            let _ = sender.send(future.await);
        })
        .detach();
    });
    assert!(shard.send(command).is_ok(), "the shard takes commands");
    receiver
}

/// Runs a task on a shard of its own and gives its result.
pub(crate) fn on_shard<T, F>(engine: EngineKind, make: impl FnOnce(ShardContext) -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let shard = runner(config(engine));
    let result = start(&shard, make).recv_timeout(PATIENCE).expect("the task ends");
    shard.stop().expect("the shard ends well");
    result
}

/// Waits for what another thread, process or the kernel does and tells nobody of.
pub(crate) fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        // Between two looks.
        thread::sleep(Duration::from_micros(200));
    }
}
