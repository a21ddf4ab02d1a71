//! The serial port on the shard's side: what the guest prints goes out, what the host types goes in.
//!
//! Output is taken from the VM's [`SerialOutput`] in batches: the first byte at once, what follows in one write a
//! millisecond. Where the console is a stream, nothing is lost and a slow reader makes the guest wait; elsewhere
//! the oldest output is dropped and counted.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ringlet_devices::{Serial, SerialOutput};
use ringlet_io::{Owner, ShardContext, Task};
use ringlet_metrics::VmMetrics;
use tokio::sync::{Notify, mpsc};

use crate::console::{Console, Sink};
use crate::vcpu::VcpuControl;

/// Least time between two writes of one VM's output.
const BATCH: Duration = Duration::from_millis(1);
/// Blocks of input that may wait for the guest; the sender waits beyond that.
const INPUT_QUEUE: usize = 16;

/// The host's side of a VM's serial input.
#[derive(Debug, Clone)]
pub struct SerialInput(mpsc::Sender<Vec<u8>>);

impl SerialInput {
    /// Types `bytes` into the guest's serial port. Waits while the guest does not read; returns `false` when the
    /// VM has ended.
    pub async fn send(&self, bytes: Vec<u8>) -> bool {
        self.0.send(bytes).await.is_ok()
    }

    /// Types `bytes` into the guest's serial port if there is room for them; `false` if not.
    pub fn try_send(&self, bytes: Vec<u8>) -> bool {
        self.0.try_send(bytes).is_ok()
    }

    /// As [`Self::send`], blocking the calling thread.
    pub fn send_blocking(&self, bytes: Vec<u8>) -> bool {
        self.0.blocking_send(bytes).is_ok()
    }
}

/// A queue for input: the handle's end and the shard's.
pub(crate) fn input_queue() -> (SerialInput, mpsc::Receiver<Vec<u8>>) {
    let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
    (SerialInput(sender), receiver)
}

/// What the shard needs of a VM's serial port. Plain data until [`Self::start`].
pub(crate) struct SerialParts {
    pub(crate) console: Console,
    pub(crate) output: Arc<SerialOutput>,
    /// Rung when there is output.
    pub(crate) output_bell: Arc<Notify>,
    pub(crate) serial: Arc<Serial>,
    /// Rung when the guest has emptied the input FIFO.
    pub(crate) input_bell: Arc<Notify>,
    pub(crate) input: mpsc::Receiver<Vec<u8>>,
    pub(crate) controls: Vec<Arc<VcpuControl>>,
    pub(crate) metrics: Arc<VmMetrics>,
}

/// The running pumps of one VM's serial port.
pub(crate) struct SerialPumps {
    end: Arc<Notify>,
    output: Task<()>,
    input: Task<()>,
    pending: Arc<SerialOutput>,
    metrics: Arc<VmMetrics>,
}

impl SerialParts {
    /// Starts the pumps on the shard.
    pub(crate) fn start(self, cx: &ShardContext, owner: &Owner) -> SerialPumps {
        let end = Arc::new(Notify::new());
        let pump = OutputPump {
            sink: Sink::open(self.console, cx),
            output: Arc::clone(&self.output),
            bell: self.output_bell,
            controls: self.controls,
            metrics: Arc::clone(&self.metrics),
            end: Arc::clone(&end),
        };
        let (serial, bell, queue) = (self.serial, self.input_bell, self.input);
        SerialPumps {
            end,
            output: cx.spawn(owner, pump.run(cx.clone())),
            input: cx.spawn(owner, pump_input(serial, bell, queue)),
            pending: self.output,
            metrics: self.metrics,
        }
    }
}

impl SerialPumps {
    /// Ends the input, and lets the output end once all is written.
    pub(crate) fn finish(self, cx: &ShardContext) -> Draining {
        cx.abort(&self.input);
        self.end.notify_one();
        Draining { output: self.output, metrics: self.metrics, pending: self.pending }
    }
}

/// Output on its way out after the end of its VM.
pub(crate) struct Draining {
    output: Task<()>,
    pending: Arc<SerialOutput>,
    metrics: Arc<VmMetrics>,
}

impl Draining {
    /// Returns when all output is written. May be dropped and called again.
    pub(crate) async fn done(&mut self) {
        if let Err(error) = (&mut self.output).await {
            tracing::error!(%error, "the serial output ended early");
        }
    }

    /// Gives up what is not written yet. What is still in the VM's buffer counts as dropped; a write under way is cut
    /// where it stands.
    pub(crate) fn abandon(self, cx: &ShardContext) {
        cx.abort(&self.output);
        let mut rest = Vec::new();
        self.pending.take(&mut rest);
        self.metrics.serial_dropped_bytes.add(rest.len() as u64);
    }
}

/// Feeds queued input to the guest as its FIFO empties.
async fn pump_input(serial: Arc<Serial>, bell: Arc<Notify>, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(block) = queue.recv().await {
        let mut rest = block.as_slice();
        loop {
            let accepted = serial.input(rest);
            rest = rest.get(accepted..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            bell.notified().await;
        }
    }
}

/// Takes a VM's output to its console until the VM has ended.
struct OutputPump {
    sink: Sink,
    output: Arc<SerialOutput>,
    bell: Arc<Notify>,
    controls: Vec<Arc<VcpuControl>>,
    metrics: Arc<VmMetrics>,
    end: Arc<Notify>,
}

impl OutputPump {
    async fn run(mut self, cx: ShardContext) {
        let mut batch = Vec::new();
        loop {
            let last = tokio::select! {
                () = self.bell.notified() => false,
                () = self.end.notified() => true,
            };
            if self.output.take(&mut batch) {
                self.controls.iter().for_each(|vcpu| vcpu.shard_replied());
            }
            let bytes = batch.len() as u64;
            if let Err(error) = self.sink.write(&mut batch).await {
                self.lose(bytes, &error);
            }
            if last {
                if let Err(error) = self.sink.flush().await {
                    self.lose(0, &error);
                }
                return;
            }
            // Whatever comes within this time goes out in one write; the end of the VM cuts it short.
            tokio::select! {
                () = cx.timer().sleep(BATCH) => {}
                () = self.end.notified() => self.end.notify_one(),
            }
        }
    }

    fn lose(&mut self, bytes: u64, error: &io::Error) {
        self.metrics.serial_dropped_bytes.add(bytes);
        self.sink.lose(self.metrics.id(), error);
    }
}
