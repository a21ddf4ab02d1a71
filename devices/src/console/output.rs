//! Where a console's output goes.
//!
//! Owns the choice between a stream that makes the guest wait, a log that does not, both, and nothing. Never
//! blocks: whoever finds no room waits for it, and may stop waiting at any time.

use super::log::ConsoleLog;
use super::pipe::PipeWriter;

/// Where the bytes go that a guest prints. Plain data that can be sent to the device's shard.
#[derive(Debug, Default)]
pub struct ConsoleOutput {
    log: Option<ConsoleLog>,
    stream: Option<PipeWriter>,
}

/// What became of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Put {
    /// Bytes that were taken, from the front. The rest has to wait for room.
    pub(super) taken: usize,
    /// Bytes, of these or older ones, that nobody can read any more.
    pub(super) lost: u64,
}

impl ConsoleOutput {
    /// Output goes nowhere; it is counted only.
    pub const fn discard() -> Self {
        Self { log: None, stream: None }
    }

    /// Output is kept in `log`. The guest never waits; what the log drops is counted as lost.
    pub const fn log(log: ConsoleLog) -> Self {
        Self { log: Some(log), stream: None }
    }

    /// Output goes to `stream`. Nothing is lost: the guest waits while the stream is full. Once its reader is
    /// gone, output is lost and counted.
    pub const fn stream(stream: PipeWriter) -> Self {
        Self { log: None, stream: Some(stream) }
    }

    /// Also keeps the last of the output in `log`.
    pub fn and_log(self, log: ConsoleLog) -> Self {
        Self { log: Some(log), ..self }
    }

    /// Takes what there is room for.
    pub(super) fn put(&self, bytes: &[u8]) -> Put {
        let streamed = self.stream.as_ref().map(|stream| stream.try_write(bytes));
        let taken = match streamed {
            Some(Ok(taken)) => taken,
            Some(Err(_)) | None => bytes.len(),
        };
        let logged = self.log.as_ref().map(|log| log.append(bytes.get(..taken).unwrap_or(bytes)));
        let lost = match (streamed, logged) {
            (Some(Ok(_)), _) | (None, None) => 0,
            (_, Some(dropped)) => dropped,
            (Some(Err(_)), None) => taken as u64,
        };
        Put { taken, lost }
    }

    /// Waits until at least one byte would be taken; returns how many. Cancel-safe.
    pub(super) async fn room(&self) -> usize {
        match &self.stream {
            // A stream without a reader takes everything.
            Some(stream) => stream.room().await.unwrap_or(usize::MAX),
            None => usize::MAX,
        }
    }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
