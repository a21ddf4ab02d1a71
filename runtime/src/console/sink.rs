//! A console at work on its shard.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringlet_devices::SerialOutput;
use ringlet_io::{Ring, RingFile, ShardContext};
use ringlet_metrics::Escaped;

use super::{Console, ConsoleBuffer, LineConsole, StreamState};
use crate::config::MAX_NAME;

/// Longest line of a prefixed console in bytes; longer ones are broken.
const MAX_LINE: usize = 4096;
/// Bytes of prefixed, escaped output that are made, and written, at a time.
const CHUNK: usize = 32 << 10;

/// Memory that a prefixed console takes at most, in bytes: a batch and an unfinished line, and prefixed lines in a buffer
/// that may be half empty. The last of them may be a whole line of control characters, each six characters when it
/// is escaped.
pub(super) const LINES_BYTES: usize =
    SerialOutput::DEFAULT_CAPACITY + MAX_LINE + 2 * (CHUNK + 6 * MAX_LINE + MAX_PREFIX);
/// Longest prefix in bytes: a VM's name, a number, brackets.
const MAX_PREFIX: usize = 2 * MAX_NAME;

/// A console at work.
pub(crate) enum Sink {
    Discard,
    Stream { ring: Ring, file: RingFile, state: Arc<StreamState> },
    Lines(Lines),
    Buffer(ConsoleBuffer),
}

impl Sink {
    /// The console at work, or nothing if it cannot be opened.
    pub(crate) fn open(console: Console, cx: &ShardContext) -> Self {
        Self::new(console, cx).unwrap_or_else(|error| {
            tracing::error!(%error, "a console cannot be opened; its output is discarded");
            Self::Discard
        })
    }

    /// It cannot be written: what comes from now on has nowhere to go, which is no failure of the VM. `whose` names the
    /// VM or the device.
    pub(crate) fn lose(&mut self, whose: &str, error: &io::Error) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            tracing::debug!("the console's reader is gone; output is discarded");
        } else {
            tracing::warn!(whose, %error, "a console cannot be written; output is discarded");
            let state = match self {
                Self::Stream { state, .. } => Some(&*state),
                Self::Lines(lines) => Some(&lines.console.state),
                Self::Discard | Self::Buffer(_) => None,
            };
            // The first reason stands.
            let _ = state.map(|state| state.lost.set(error.to_string()));
        }
        *self = Self::Discard;
    }

    fn new(console: Console, cx: &ShardContext) -> io::Result<Self> {
        let ring = cx.ring().clone();
        Ok(match console {
            Console::Discard => Self::Discard,
            Console::Buffer(buffer) => Self::Buffer(buffer),
            Console::Stream(console) => {
                let file = RingFile::new(console.stream.try_clone()?);
                Self::Stream { ring, file, state: console.state }
            }
            Console::Lines(console) => {
                let file = RingFile::new(console.stream.try_clone()?);
                Self::Lines(Lines { cx: cx.clone(), file, console, pending: Vec::new() })
            }
        })
    }

    /// Writes the batch and leaves it empty, whether it could be written or not.
    pub(crate) async fn write(&mut self, batch: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Discard => batch.clear(),
            Self::Buffer(buffer) => {
                buffer.append(batch);
                batch.clear();
            }
            Self::Stream { ring, file, state } => {
                if let Some(last) = batch.last() {
                    state.in_line.store(*last != b'\n', Ordering::Relaxed);
                }
                write_all(ring, file, batch).await?;
            }
            Self::Lines(lines) => {
                // No more than it takes: what it takes is counted.
                lines.pending.reserve_exact(batch.len());
                lines.pending.append(batch);
                lines.write(batch, false).await?;
            }
        }
        Ok(())
    }

    /// The VM has ended: an unfinished line is finished.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Lines(lines) => lines.write(&mut Vec::new(), true).await,
            _ => Ok(()),
        }
    }
}

/// A console of lines at work.
pub(crate) struct Lines {
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
#[path = "sink_test.rs"]
mod tests;
