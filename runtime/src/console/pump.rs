//! The host's ends of a virtio console: what the guest prints goes to a [`Console`], what the host types comes in.
//!
//! Nothing is lost: the guest waits while the console does not take what it prints, whoever types waits while the guest
//! does not read.

use std::sync::Arc;

use ringlet_devices::console::{PipeReader, PipeWriter};
use ringlet_io::{Owner, ShardContext, Task};
use ringlet_metrics::DeviceMetrics;
use tokio::sync::Notify;

use super::{Console, Sink};

/// The host's side of a virtio console's input.
#[derive(Debug, Clone)]
pub struct ConsoleInput(PipeWriter);

impl ConsoleInput {
    pub(crate) const fn new(pipe: PipeWriter) -> Self {
        Self(pipe)
    }

    /// Types `bytes`. Waits while the guest does not read; returns `false` when the VM has ended.
    pub async fn send(&self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// Types as many of `bytes` as there is room for, and returns how many.
    pub fn try_send(&self, bytes: &[u8]) -> usize {
        self.0.try_write(bytes).unwrap_or(0)
    }

    /// As [`Self::send`], blocking the calling thread.
    pub fn send_blocking(&self, bytes: &[u8]) -> bool {
        self.0.write_all_blocking(bytes).is_ok()
    }
}

/// What the shard needs of a virtio console beside the device. Plain data until [`Self::start`].
pub(crate) struct ConsoleParts {
    pub(crate) console: Console,
    /// What the guest prints. Ends with the device.
    pub(crate) output: PipeReader,
    pub(crate) metrics: Arc<DeviceMetrics>,
}

/// The running pump.
pub(crate) struct ConsolePump {
    end: Arc<Notify>,
    task: Task<()>,
}

impl ConsoleParts {
    /// Starts the pump on the shard.
    pub(crate) fn start(self, cx: &ShardContext, owner: &Owner) -> ConsolePump {
        let end = Arc::new(Notify::new());
        let task = cx.spawn(owner, pump(self, cx.clone(), Arc::clone(&end)));
        ConsolePump { end, task }
    }
}

impl ConsolePump {
    /// Lets the output end once all is written. The device has stopped.
    pub(crate) fn finish(&self) {
        self.end.notify_one();
    }

    /// Returns when all output is written. May be dropped and called again.
    pub(crate) async fn done(&mut self) {
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the console output ended early");
        }
    }

    /// Gives up what is not written yet.
    pub(crate) fn abandon(&self, cx: &ShardContext) {
        cx.abort(&self.task);
    }
}

async fn pump(parts: ConsoleParts, cx: ShardContext, end: Arc<Notify>) {
    let ConsoleParts { console, output, metrics } = parts;
    let mut sink = Sink::open(console, &cx);
    let mut batch = Vec::new();
    let mut last = false;
    while !last {
        tokio::select! {
            more = output.ready() => last = !more,
            () = end.notified() => last = true,
        }
        output.take(&mut batch);
        let bytes = batch.len() as u64;
        if let Err(error) = sink.write(&mut batch).await {
            metrics.dropped_bytes.add(bytes);
            sink.lose(metrics.id(), &error);
        }
        // Others print as well.
        cx.next_turn().await;
    }
    if let Err(error) = sink.flush().await {
        sink.lose(metrics.id(), &error);
    }
}
