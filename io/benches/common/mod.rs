//! What the benchmarks of this crate run on: a shard that takes closures.

use std::sync::mpsc;

use ringlet_io::{EngineKind, Owner, Service, Shard, ShardConfig, ShardContext};
use ringlet_metrics::Registry;

/// What it takes.
pub(crate) type Run = Box<dyn FnOnce(&ShardContext) + Send>;

/// Runs what it is sent.
pub(crate) struct Runner;

impl Service for Runner {
    type Command = Run;

    fn command(&mut self, cx: &ShardContext, command: Run) {
        command(cx);
    }

    async fn drain(&mut self, _cx: &ShardContext) {}
}

/// A shard on `engine`.
pub(crate) fn shard(engine: EngineKind) -> Shard<Run> {
    let metrics = Registry::new().register_shard(0, engine.as_str());
    Shard::spawn(ShardConfig::new(0, engine, metrics), |_| Runner).expect("a shard")
}

/// Starts `make`'s task on the shard.
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
        let future = make(cx.clone());
        cx.spawn(&Owner::shard(), async move { sender.send(future.await).expect("a receiver") }).detach();
    });
    assert!(shard.send(command).is_ok(), "the shard takes commands");
    receiver
}
