//! An event loop of a benchmark's own: what devices cost without a VM.

use std::future::Future;
use std::sync::mpsc;

use ringlet_io::{EngineKind, Owner, Service, Shard, ShardConfig, ShardContext};
use ringlet_metrics::Registry;

use super::CliResult;

/// Does what it is sent.
struct Loop;

type Job = Box<dyn FnOnce(&ShardContext) + Send>;

impl Service for Loop {
    type Command = Job;

    fn command(&mut self, cx: &ShardContext, job: Job) {
        job(cx);
    }

    async fn drain(&mut self, _cx: &ShardContext) {}
}

/// What the future gives that `make` makes on an event loop, which ends with it.
pub(super) fn run_on_shard<T, F>(
    engine: EngineKind,
    make: impl FnOnce(ShardContext) -> F + Send + 'static,
) -> CliResult<T>
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let metrics = Registry::new().register_shard(0, engine.as_str());
    let shard = Shard::spawn(ShardConfig::new(0, engine, metrics), |_: &ShardContext| Loop)?;
    let (reply, answer) = mpsc::channel();
    let job = move |cx: &ShardContext| {
        let work = make(cx.clone());
        // Whoever asked waits for it, unless its thread is gone.
        let run = async move { drop(reply.send(work.await)) };
        cx.spawn(&Owner::shard(), run).detach();
    };
    shard.send(Box::new(job)).map_err(|_| "the event loop does not run")?;
    let result = answer.recv().map_err(|_| "the event loop has ended");
    shard.stop()?;
    Ok(result?)
}
