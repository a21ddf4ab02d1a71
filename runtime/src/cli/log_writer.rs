//! Writes log lines by a thread of its own: whoever has something to say never waits for the reader of the stream.
//!
//! Owns the queue and the thread, which is started with the first line. What does not fit into the queue is dropped and
//! counted, and so is what is said while the kernel gives no thread; the next line asks for one again. Never panics: a
//! line may come from a vCPU or an event loop, at the very moment at which the process is out of threads.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that may wait for the reader.
const QUEUE: usize = 1024;
/// How long the end waits for what is queued.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the end looks for room in a full queue.
const LOOK_PERIOD: Duration = Duration::from_millis(1);

/// What the thread is given: a line, or `None` for the end.
type Message = Option<Vec<u8>>;

/// Starts a thread.
pub(super) type Spawn = fn(Box<dyn FnOnce() + Send>) -> io::Result<()>;

/// Starts a thread of the process, which ends with its work.
pub(super) fn spawn(work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    thread::Builder::new().name("log".into()).spawn(work).map(drop)
}

/// Lines on their way to a stream.
pub(super) struct LogWriter {
    running: OnceLock<Running>,
    /// Held while the thread is started, by one at a time.
    starting: Mutex<()>,
    dropped: AtomicU64,
}

struct Running {
    queue: SyncSender<Message>,
    /// Ends with the thread.
    ended: Mutex<Receiver<()>>,
}

impl LogWriter {
    pub(super) const fn new() -> Self {
        Self { running: OnceLock::new(), starting: Mutex::new(()), dropped: AtomicU64::new(0) }
    }

    /// Hands a line over, for a thread from `spawn` to write to `stream` if there is none yet.
    pub(super) fn write(&self, line: &[u8], stream: impl Write + Send + 'static, spawn: Spawn) {
        let is_queued = self
            .running(stream, spawn)
            .is_ok_and(|running| running.queue.try_send(Some(line.to_vec())).is_ok());
        if !is_queued {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn running(&self, stream: impl Write + Send + 'static, spawn: Spawn) -> io::Result<&Running> {
        if let Some(running) = self.running.get() {
            return Ok(running);
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = self.running.get() {
            return Ok(running);
        }
        let (queue, lines) = mpsc::sync_channel(QUEUE);
        let (end, ended) = mpsc::channel();
        spawn(Box::new(move || write_all(lines, stream, end)))?;
        Ok(self.running.get_or_init(|| Running { queue, ended: Mutex::new(ended) }))
    }

    /// Lines that were not written and will not be.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what is queued is written, for a second at most; what comes later is dropped. Whether all of it was.
    pub(super) fn finish(&self) -> bool {
        let Some(running) = self.running.get() else { return true };
        let deadline = Instant::now() + PATIENCE;
        while let Err(TrySendError::Full(_)) = running.queue.try_send(None) {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(LOOK_PERIOD);
        }
        let ended = running.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        ended.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Disconnected)
    }
}

/// The thread: writes until the end. That the stream is gone concerns nobody.
fn write_all(lines: Receiver<Message>, mut stream: impl Write, end: Sender<()>) {
    while let Ok(Some(line)) = lines.recv() {
        let _ = stream.write_all(&line).and_then(|()| stream.flush());
    }
    // From here on a line is one that is dropped: first this, then who waits for the end is told.
    drop(lines);
    drop(end);
}

#[cfg(test)]
#[path = "log_writer_test.rs"]
mod tests;
