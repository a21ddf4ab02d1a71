//! The serial console on the shard's side: what the guest prints goes out, what the host types goes in.
//!
//! Output is taken from the VM's [`SerialOutput`] in batches: the first byte at once, what follows in one write a
//! millisecond. Where the console is a stream, nothing is lost and a slow reader makes the guest wait; elsewhere
//! the oldest output is dropped and counted. Guest bytes are raw only in a stream; lines are escaped (SEC-13).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ringlet_devices::{Overflow, Serial, SerialOutput};
use ringlet_io::{Owner, Ring, RingFile, ShardContext, Task};
use ringlet_metrics::{Escaped, VmMetrics};
use tokio::sync::{Notify, mpsc};

use crate::vcpu::VcpuControl;

/// Least time between two writes of one VM's output.
const BATCH: Duration = Duration::from_millis(1);
/// Longest line of a prefixed console in bytes; longer ones are broken.
const MAX_LINE: usize = 4096;
/// Bytes of prefixed, escaped output that are made, and written, at a time.
const CHUNK: usize = 32 << 10;
/// Blocks of input that may wait for the guest; the sender waits beyond that.
const INPUT_QUEUE: usize = 16;

/// Where a VM's serial output goes.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Console {
    /// Nowhere; it is counted only.
    #[default]
    Discard,
    /// To a stream, byte for byte. A guest that prints faster than the stream takes waits.
    Stream(Arc<OwnedFd>),
    /// To a stream that several VMs share: whole lines, each with a prefix, control characters escaped. Output
    /// that the stream does not take in time is dropped, oldest first, and counted.
    Lines(LineConsole),
    /// Into memory: the last bytes.
    Buffer(ConsoleBuffer),
}

impl Console {
    /// What happens when the guest prints faster than the console takes.
    pub(crate) fn overflow(&self) -> Overflow {
        match self {
            Self::Stream(_) => Overflow::Park,
            Self::Discard | Self::Lines(_) | Self::Buffer(_) => Overflow::DropOldest,
        }
    }
}

/// A console of prefixed lines. Clones share the stream, and their lines do not mix.
#[derive(Debug, Clone)]
pub struct LineConsole {
    stream: Arc<OwnedFd>,
    turn: Arc<tokio::sync::Mutex<()>>,
    prefix: String,
}

impl LineConsole {
    /// A console that writes to `stream`, without a prefix.
    pub fn new(stream: OwnedFd) -> Self {
        Self { stream: Arc::new(stream), turn: Arc::default(), prefix: String::new() }
    }

    /// The same stream with each line preceded by `prefix`.
    pub fn with_prefix(&self, prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..self.clone() }
    }
}

/// The last bytes of a VM's serial output, in memory. Clones share them.
#[derive(Debug, Clone)]
pub struct ConsoleBuffer {
    held: Arc<Mutex<Held>>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Held {
    bytes: VecDeque<u8>,
    first_byte_at: Option<Instant>,
}

impl ConsoleBuffer {
    /// Keeps the last `capacity` bytes.
    pub fn new(capacity: usize) -> Self {
        Self { held: Arc::default(), capacity }
    }

    /// A copy of what is there, oldest first.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().bytes.iter().copied().collect()
    }

    /// When the first byte of all arrived here; `None` before that.
    pub fn first_byte_at(&self) -> Option<Instant> {
        self.lock().first_byte_at
    }

    fn append(&self, new: &[u8]) {
        if new.is_empty() {
            return;
        }
        let mut held = self.lock();
        held.first_byte_at.get_or_insert_with(Instant::now);
        let length = held.bytes.len();
        let new = new.get(new.len().saturating_sub(self.capacity)..).unwrap_or_default();
        let excess = (length + new.len()).saturating_sub(self.capacity);
        held.bytes.drain(..excess.min(length));
        held.bytes.extend(new);
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
            sink: Sink::new(self.console, cx).unwrap_or_else(|error| {
                tracing::error!(%error, "the console cannot be opened; serial output is discarded");
                Sink::Discard
            }),
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

    /// A reader that is gone is no failure of the VM: what it prints from now on has nowhere to go.
    fn lose(&mut self, bytes: u64, error: &io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            tracing::debug!("the console's reader is gone; serial output is discarded");
        } else {
            tracing::warn!(vm = self.metrics.id(), %error, "the console cannot be written; serial output is discarded");
        }
        self.metrics.serial_dropped_bytes.add(bytes);
        self.sink = Sink::Discard;
    }
}

/// A console at work.
enum Sink {
    Discard,
    Stream { ring: Ring, file: RingFile },
    Lines(Lines),
    Buffer(ConsoleBuffer),
}

impl Sink {
    fn new(console: Console, cx: &ShardContext) -> io::Result<Self> {
        let ring = cx.ring().clone();
        Ok(match console {
            Console::Discard => Self::Discard,
            Console::Buffer(buffer) => Self::Buffer(buffer),
            Console::Stream(stream) => Self::Stream { ring, file: RingFile::new(stream.try_clone()?) },
            Console::Lines(console) => {
                let file = RingFile::new(console.stream.try_clone()?);
                Self::Lines(Lines { cx: cx.clone(), file, console, pending: Vec::new() })
            }
        })
    }

    /// Writes the batch and leaves it empty, whether it could be written or not.
    async fn write(&mut self, batch: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Discard => batch.clear(),
            Self::Buffer(buffer) => {
                buffer.append(batch);
                batch.clear();
            }
            Self::Stream { ring, file } => write_all(ring, file, batch).await?,
            Self::Lines(lines) => {
                lines.pending.append(batch);
                lines.write(batch, false).await?;
            }
        }
        Ok(())
    }

    /// The VM has ended: an unfinished line is finished.
    async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Lines(lines) => lines.write(&mut Vec::new(), true).await,
            _ => Ok(()),
        }
    }
}

/// A console of lines at work.
struct Lines {
    cx: ShardContext,
    file: RingFile,
    console: LineConsole,
    pending: Vec<u8>,
}

impl Lines {
    /// Writes the whole lines of what is pending (with `all`, also what is unfinished), some at a time: a prefix and
    /// escapes make much of little, and neither memory nor the stream is taken from the other VMs for longer.
    async fn write(&mut self, buffer: &mut Vec<u8>, all: bool) -> io::Result<()> {
        loop {
            let turn = self.console.turn.lock().await;
            *buffer = take_lines(&mut self.pending, &self.console.prefix, all);
            if buffer.is_empty() {
                return Ok(());
            }
            write_all(self.cx.ring(), &self.file, buffer).await?;
            drop(turn);
            self.cx.next_turn().await;
        }
    }
}

/// Writes `bytes`, keeping their allocation for the next batch.
async fn write_all(ring: &Ring, file: &RingFile, bytes: &mut Vec<u8>) -> io::Result<()> {
    let (result, buffer) = ring.write_all(file, std::mem::take(bytes)).await;
    *bytes = buffer;
    bytes.clear();
    result.map(drop)
}

/// Takes whole lines out of `pending` (with `all`, also what is unfinished) and makes them fit for a terminal: some of
/// them, [`CHUNK`] bytes or a little more.
fn take_lines(pending: &mut Vec<u8>, prefix: &str, all: bool) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut rest = pending.as_slice();
    while lines.len() < CHUNK {
        let (line, after) = match rest.iter().position(|&byte| byte == b'\n') {
            Some(end) if end < MAX_LINE => (rest.get(..end), rest.get(end + 1..)),
            _ if rest.len() >= MAX_LINE => (rest.get(..MAX_LINE), rest.get(MAX_LINE..)),
            _ if all && !rest.is_empty() => (Some(rest), None),
            _ => break,
        };
        let line = line.unwrap_or_default();
        let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        lines.extend(format!("{prefix}{}\n", Escaped(&text)).bytes());
        rest = after.unwrap_or_default();
    }
    let taken = pending.len() - rest.len();
    pending.drain(..taken);
    lines
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
